"""The command `explore`: an explorer as one page that works without Python and without a network."""

from pathlib import Path
from typing import Any, Literal

from robustviz.cli.app import Count, Radius, say, writable
from robustviz.cli.target import Target, called
from robustviz.data import DOWNLOADS
from robustviz.types import Norm


def explore(
    kind: Literal["attack"],
    /,
    *checkpoints: str,
    data: str | None = None,
    norm: Norm | None = None,
    epsilon: Radius = None,
    images: Count = 100,
    shown: Count = 30,
    root: Path = DOWNLOADS,
    out: Path = Path("runs/explore.html"),
    force: bool = False,
) -> None:
    """Write an explorer as one page: move its controls in any browser, without Python and without a network.

    The page holds everything that was measured, so it can be mailed, or opened from a USB stick.

    Args:
        kind: attack compares networks on images under attacks of growing strength.
        checkpoints: Run folders, .safetensors files, or names that `robustviz checkpoints` lists; default: a standard
            and an adversarially trained network that come with robustviz.
        data: As in `robustviz train`; default: what the networks were trained on.
        norm: linf or l2; default: what the record of the first network says.
        epsilon: Middle of the strengths, such as 8/255; default: what the record of the first network says.
        images: Test images behind the accuracies, drawn evenly from the classes.
        shown: How many of them have pictures.
        root: Folder of downloaded data sets; default data/downloads.
        out: The page, a name ending in .html.
        force: Replace a page that is there.
    """
    _check_out(out, force)
    from robustviz.explorers.attack import strengths_around
    from robustviz.explorers.attack_view import attack_explorer
    from robustviz.explorers.networks import usual_names, usual_set

    names = {called(name): name for name in checkpoints} or usual_names(data or usual_set())
    settings: dict[str, Any] = {"data": data, "norm": norm, "epsilon": epsilon, "images": images, "root": root}
    opened = {word: Target(name, device="cpu", **settings).opened(images) for word, name in names.items()}
    first, sets = next(iter(opened.values())), {one.images.name for one in opened.values()}
    if len(sets) > 1:
        raise ValueError(f"checkpoints must be trained on one data set, got {', '.join(sorted(sets))}; leave some out")
    say(f"{', '.join(opened)} on {len(first.images)} test images of {first.images.name}")
    networks = {word: one.model for word, one in opened.items()}
    strengths = strengths_around(first.threat)
    explorer = attack_explorer(networks, first.images, strengths=strengths, norm=first.threat.norm, shown=shown)
    say(f"{len(explorer.frames):,} settings measured\nopen {explorer.save(out, force=force)}")


def _check_out(out: Path, force: bool) -> None:
    """Refuse a page that cannot be written, before anything is measured."""
    if out.suffix != ".html":
        raise ValueError(f"--out must end in .html, got {out}")
    writable("--out", out.parent)
    if out.is_dir():
        raise ValueError(f"--out must be a file, but {out} is a folder; choose another name")
    if out.exists() and not force:
        raise FileExistsError(f"--out {out} is there; choose another name, or add --force to replace it")
