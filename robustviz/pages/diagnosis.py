"""A diagnosis as one page: verdict, reasons, every check, and the accuracies behind them."""

from pathlib import Path

from robustviz.diagnostics import Diagnosis, Finding
from robustviz.pages.report import Grid, Section, write_report
from robustviz.records import RunRecord

HEADINGS = {"fail": "Evidence against it", "doubtful": "Doubtful", "not run": "Not checked", "pass": "Passed"}
"""Heading of the findings with each verdict, most serious first."""


def diagnosis_page(
    diagnosis: Diagnosis, path: Path | str, *, title: str = "Is the robustness real?", command: str = ""
) -> Path:
    """Write a diagnosis as one HTML page without outside references.

    Args:
        diagnosis: What `diagnose` found.
        path: The file.
        title: Heading of the page.
        command: The command that reproduces it, if there is one.

    Returns:
        The path.
    """
    found: dict[str, list[Finding]] = {verdict: [] for verdict in HEADINGS}
    for finding in diagnosis.findings:
        found[finding.verdict].append(finding)
    sections = [
        Section(HEADINGS[verdict], [f"{finding.sentence} [{finding.source}]" for finding in findings])
        for verdict, findings in found.items()
        if findings
    ]
    shares = [[name, f"{share:.1%}"] for name, share in diagnosis.accuracy.items()]
    shares.append(["worst case per image", f"{diagnosis.robust_accuracy:.1%}"])
    attacks = Section("Accuracy under every attack", tables=[Grid(["attack", "accuracy"], shares)])
    sections = [Section("All checks", tables=[Grid(*diagnosis.rows())]), *sections, attacks]
    if command:
        sections.append(Section("Reproduce this page", code=command))
    lead = f"Verdict: {diagnosis.verdict}. {diagnosis.summary()}"
    return write_report(path, title, lead, sections, RunRecord("diagnose", diagnosis.settings, {}, command))
