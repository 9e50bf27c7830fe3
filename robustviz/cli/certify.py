"""The command `certify`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from robustviz.certificate import both_bounds
from robustviz.certificate import certify as certified
from robustviz.cli.app import Count, Radius, Seed, command_line, new_file, say
from robustviz.cli.target import Target, knows_defenses
from robustviz.pages.certificate import certificate_page
from robustviz.records import table
from robustviz.tensors import seeded


@knows_defenses
def certify(
    target: Target,
    *,
    sigma: Radius = 0.25,
    n0: Count = 100,
    n: Count = 1000,
    alpha: Annotated[float, Parameter(validator=validators.Number(gt=0, lt=1))] = 0.001,
    radii: tuple[float, ...] = (),
    steps: Count = 20,
    draws: Count = 20,
    batch_size: Count = 256,
    seed: Seed = 0,
    out: Path = Path("runs/certificate/index.html"),
    resume: bool = False,
    force: bool = False,
) -> None:
    """Certify a trained network by randomized smoothing, and attack the same smoothed network.

    The smoothed network decides by votes under Gaussian noise. Within the certified L2 radius no attack changes its
    decision; an attack says how far the truth can lie above. A network is certified further if it was trained with
    noise of the same sigma.

    Args:
        target: What is certified; its threat is not used, because a certificate is about every L2 radius.
        sigma: Standard deviation of the noise, on pixels in [0, 1].
        n0: Draws that choose the class of an image.
        n: Draws that bound its probability; more of them certify larger radii.
        alpha: Probability with which a certificate may be wrong.
        radii: L2 radii to attack at, one option each; default: eight, a third beyond the largest certifiable one.
        steps: Steps of the attack.
        draws: Noisy copies that each step averages over.
        batch_size: Noisy copies at a time.
        seed: Seed of the noise.
        out: The page, a name ending in .html; the numbers go into a .json file beside it, the picture into a .png.
        resume: Go on with an interrupted run of the same settings.
        force: Replace these files if they exist.
    """
    if out.suffix != ".html":
        raise ValueError(f"--out must end in .html, got {out}")
    if target.norm is not None or target.epsilon is not None:
        raise ValueError("--norm and --epsilon must be left out: a certificate is about every L2 radius; see --radii")
    numbers, state = out.with_suffix(".json"), out.with_suffix(".state.json")
    for path in (out, numbers, out.with_suffix(".png")):
        new_file("--out", path, force, kind="HTML file")
    if state.exists() and not resume:
        if not force:
            raise FileExistsError(
                f"--out {out} has an interrupted run; add --resume to go on, or --force to start again"
            )
        state.unlink()
    if bad := [radius for radius in radii if radius <= 0]:
        raise ValueError(f"--radii must be > 0 on the [0, 1] pixel scale, got {bad[0]:g}")
    if not sigma:
        raise ValueError(f"--sigma must be > 0 on the [0, 1] pixel scale, got {sigma}")
    opened = target.opened(100)
    say(f"{opened.name} on {len(opened.images)} test images of {opened.images.name}, sigma {sigma:g}")
    images, labels = opened.images.images, opened.images.labels
    certificate = certified(
        opened.model,
        images,
        sigma=sigma,
        n0=n0,
        n=n,
        alpha=alpha,
        batch_size=batch_size,
        resume=state,
        generator=seeded(seed),
    )
    shown = radii or [certificate.ceiling * part / 6 for part in range(1, 9)]
    bounds = both_bounds(
        opened.model, images, labels, certificate, radii=shown, steps=steps, draws=draws, generator=seeded(seed, 1)
    )
    say(table(*bounds.rows()))
    certificate.save(numbers)
    title = f"A certificate for {opened.name}"
    certificate_page(certificate, bounds, out, title=title, command=command_line())
    state.unlink(missing_ok=True)
    say(f"open {out}")
