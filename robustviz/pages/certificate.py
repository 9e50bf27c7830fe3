"""Both bounds of a smoothed network as a page."""

from pathlib import Path

from robustviz.certificate import Bounds, Certificate
from robustviz.pages.report import Grid, Picture, Section, write_report
from robustviz.plots.certificate import describe_bounds, plot_bounds
from robustviz.records import RunRecord


def certificate_page(
    certificate: Certificate, bounds: Bounds, path: Path | str, *, title: str, command: str = ""
) -> Path:
    """Write the page: the band between certificate and attack, the table, and what it cost.

    Args:
        certificate: What `certify` gave.
        bounds: What `both_bounds` made of it.
        path: The HTML file; the picture goes beside it, under the same name.
        title: Heading of the page.
        command: The command that reproduces it, if there is one.
    """
    settings = certificate.settings
    lead = (
        f"The smoothed network g decides by the votes of f under Gaussian noise of standard deviation "
        f"{settings['sigma']:g}. It abstains on {int(certificate.abstained.sum())} of {bounds.images} images. "
        f"{describe_bounds(bounds)}"
    )
    picture = Picture.of(
        Path(path).stem,
        plot_bounds(bounds).figure,
        describe_bounds(bounds),
        f"Lower bound: certificates from n = {settings['n']} draws, each wrong with probability at most "
        f"{settings['alpha']:g} (Cohen et al., arXiv 1902.02918). Upper bound: PGD in L2 on the mean over draws (EOT), "
        "the attacked images judged by fresh votes. Both are about the same g.",
    )
    passes = [f"{count:,}" for count in bounds.forward_passes]
    paragraphs = [
        "Elsewhere robust accuracy is an upper bound: a stronger attack may find more. A certificate is a lower bound: "
        "within its radius no attack changes the decision of g. The truth lies between the two, in the shaded band.",
        f"Images that passed through the network: {passes[0]} for the certificate, {passes[1]} for attacks and votes.",
    ]
    sections = [Section("Two bounds, one network", paragraphs, [picture], [Grid(*bounds.rows())])]
    if command:
        sections.append(Section("Reproduce this page", code=command))
    return write_report(path, title, lead, sections, RunRecord("certify", settings, {}, command))
