"""The anatomy of published WNLL figures as a page, and as a section of the report."""

from pathlib import Path

from robustviz.pages.report import Grid, Section, write_report
from robustviz.records import RunRecord
from robustviz.studies.anatomy import AS_PUBLISHED, CW, HEADS, SWITCHES, Anatomy

_CAUTION = (
    "Which script made a published table cannot be proved. A figure that a switch reproduces is consistent with the "
    "published one, and no more than that. C&W is minimal by design: a perturbation scaled down no longer reaches the "
    "boundary, so that row says nothing about a defense."
)


def anatomy_section(found: Anatomy) -> Section:
    """Write the section: what each switch does, how far it moves the figures, and what that is consistent with."""
    images, few = found.settings["images"], found.settings["few"]
    return Section(
        "Anatomy of a published figure",
        [
            "The paper reports that WNLL lifts the accuracy of an adversarially trained ResNet20 under IFGSM from about "
            "46 % to about 69 % (Wang et al., arXiv 1809.08516). The released code differs from the paper in a few "
            "places. Here each of them is a switch on our own code, on the WNLL head and on the linear head beside it, "
            f"with the same {images} test images ({few} for C&W).",
            *(f"{switch}: {what}" for switch, what in SWITCHES.items() if switch not in (AS_PUBLISHED, CW)),
            reading(found),
            _CAUTION,
        ],
        tables=[Grid(*found.table())],
    )


def reading(found: Anatomy) -> str:
    """Say which switch moves attacked accuracy most, and whether it does so without any WNLL."""
    moved = {
        head: {row.switch: found.moved(row) for row in found.rows if row.head == head and row.switch != CW}
        for head in HEADS
    }
    iterated = [switch for switch in moved["WNLL"] if switch not in (AS_PUBLISHED, "C&W perturbation scaled", "both")]
    largest = max(iterated, key=lambda switch: moved["WNLL"][switch][0])
    (gain, half), (other, other_half) = (moved[head][largest] for head in HEADS)
    if gain <= half:
        return "No switch of IFGSM raises the attacked accuracy of WNLL beyond its interval here."
    base, switched = (found.row(switch, "WNLL").shares()[1] for switch in (AS_PUBLISHED, largest))
    sentence = (
        f"The switch that moves WNLL most is “{largest}”: {base:.1%} becomes {switched:.1%} "
        f"({100 * gain:+.1f} ± {100 * half:.1f} points)"
    )
    if other > other_half:
        return (
            f"{sentence}. The same switch lifts the linear head by {100 * other:.1f} ± {100 * other_half:.1f} points: "
            "what it measures is not the activation. A gain of this kind is consistent with the published figure."
        )
    return f"{sentence}; the linear head does not rise with it."


def anatomy_page(found: Anatomy, path: Path | str, *, title: str, command: str = "") -> Path:
    """Write the section as a page of its own.

    Args:
        found: What `anatomy` measured.
        path: The HTML file.
        title: Heading of the page.
        command: The command that reproduces it, if there is one.
    """
    sections = [anatomy_section(found)]
    if command:
        sections.append(Section("Reproduce this page", code=command))
    record = RunRecord("anatomy", found.settings, {}, command)
    return write_report(path, title, "One switch at a time: where the figures may come from.", sections, record)
