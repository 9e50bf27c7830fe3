"""The command `anatomy`."""

from pathlib import Path

from robustviz.cli.app import Count, Radius, command_line, new_file, say
from robustviz.cli.target import Target, knows_defenses
from robustviz.data import load
from robustviz.geometry.votes import template_source
from robustviz.pages.anatomy import anatomy_page, reading
from robustviz.records import table
from robustviz.studies.anatomy import anatomy as measured


@knows_defenses
def anatomy(
    target: Target,
    *,
    steps: Count = 10,
    step_size: Radius = None,
    batch_size: Count = 100,
    cw_images: Count = 100,
    cw_steps: Count = 50,
    out: Path = Path("runs/anatomy/index.html"),
    force: bool = False,
) -> None:
    """Take published figures apart: what the released code does otherwise, one switch at a time.

    The attack with re-sorted labels, the attacked template, batch norm in training mode and the scaled perturbation of
    Carlini & Wagner are switches on robustviz's own code. The table says how far each moves clean and attacked
    accuracy, on the WNLL head and on the linear head beside it.

    Args:
        target: What is measured: a network with a WNLL head, such as digits-pgd-wnll or cifar10-pgd-wnll.
        steps: Steps of IFGSM.
        step_size: Its length of a step, such as 0.007; default 2.5 * epsilon / steps.
        batch_size: Images at a time; the graph and batch norm see such batches.
        cw_images: Number of images that Carlini & Wagner's attack is made on.
        cw_steps: Its steps, in each of three rounds.
        out: The page; the decisions on every image go into a JSON file beside it.
        force: Replace these files if they exist.
    """
    if out.suffix != ".html":
        raise ValueError(f"--out must end in .html, got {out}")
    numbers = out.with_suffix(".json")
    for path in (out, numbers):
        new_file("--out", path, force, kind="HTML file")
    opened = target.opened(500)
    say(str(opened))
    source = template_source(opened.name, load(opened.data, "train", root=target.root))
    settings = {"threat": opened.threat, "steps": steps, "step_size": step_size}
    from tqdm.auto import tqdm

    with tqdm(desc="anatomy", unit="row", leave=False, disable=None) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = measured(
            opened.model,
            opened.images,
            source,
            batch_size=batch_size,
            cw_images=cw_images,
            cw_steps=cw_steps,
            on_row=advance,
            **settings,  # type: ignore[arg-type]
        )
    say(table(*found.table()))
    say(f"\n{reading(found)}")
    found.save(numbers)
    anatomy_page(found, out, title=f"Anatomy of the WNLL figures: {opened.name}", command=command_line())
    say(f"open {out}")
