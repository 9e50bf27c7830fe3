"""What a diagnosis says: findings with verdict, number and reason."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jaxtyping import Bool
from torch import Tensor

from robustviz.records import table, write_atomic

Verdict = Literal["pass", "doubtful", "fail", "not run"]
Overall = Literal["real", "doubtful", "not real"]

FEW = 20
"""Below this many images a single one counts for more than the five points at which most checks fail."""

MORE_IMAGES = "Use at least 100 images."

CAUTION = (
    "Robust accuracy is an upper bound: a stronger attack may find more. A check that passes found no sign of a false "
    "sense of security; it proves nothing."
)


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was asked, in a few words.
        verdict: `"pass"`, `"doubtful"`, `"fail"` or `"not run"`.
        number: What was measured; None if the check was not run.
        unit: What the number is: `"share"` (0 to 1), `"points"` (a difference of shares), or a word.
        reason: A sentence that says what the number means here.
        source: Where the check comes from.
        remedy: What to do about it; empty if there is nothing to do.

    Raises:
        ValueError: If the verdict is unknown, or has no number although the check was run.
    """

    check: str
    verdict: Verdict
    number: float | None
    unit: str
    reason: str
    source: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict must be one of {', '.join(get_args(Verdict))}, got {self.verdict!r}")
        if (self.number is None) != (self.verdict == "not run"):
            raise ValueError(f"number must be None exactly if the check was not run, got {self.number}: {self.verdict}")

    @property
    def sentence(self) -> str:
        """Check, verdict, reason and remedy in one line."""
        remedy = f" What to do: {self.remedy}" if self.remedy else ""
        return f"{self.check} ({self.verdict}): {self.reason}{remedy}"

    @property
    def shown(self) -> str:
        """The number with its unit, for people."""
        if self.number is None:
            return "-"
        if self.unit == "share":
            return f"{self.number:.1%}"
        if self.unit == "points":
            return f"{100 * self.number:.1f} points"
        return f"{self.number:.3g} {self.unit}"


def share_of(right: Bool[Tensor, "n"]) -> float:
    """Share of correct decisions, 0 to 1."""
    return right.double().mean().item()


def graded(number: float, good: float, bad: float) -> Verdict:
    """Pass up to `good`, fail above `bad`, doubtful between; a number that is NaN fails."""
    if number <= good + 1e-9:
        return "pass"
    return "doubtful" if number <= bad + 1e-9 else "fail"


def doubted(finding: Finding, count: int) -> Finding:
    """Downgrade verdicts that too few images cannot support: a pass, or a failure that rests on one image."""
    by_one = finding.unit == "points" and finding.number is not None and finding.number <= 1 / count + 1e-9
    settled = finding.verdict == "doubtful" or (finding.verdict != "pass" and not by_one)
    if count >= FEW or settled or finding.unit not in ("share", "points"):
        return finding
    reason = f"{finding.reason} But one image counts for {100 / count:.0f} points here: too few to tell."
    return replace(finding, verdict="doubtful", reason=reason, remedy=MORE_IMAGES)


@dataclass(frozen=True)
class Diagnosis:
    """Every finding about one network under one threat.

    Attributes:
        findings: One for each check, in the order of the checks.
        accuracy: Share of right decisions on the clean images and under each attack that a check ran.
        robust_accuracy: Share of images that withstand all of these attacks; an upper bound.
        settings: Threat, number of images, attacks, seed, and how many images passed through the network.
    """

    findings: tuple[Finding, ...]
    accuracy: dict[str, float]
    robust_accuracy: float
    settings: dict[str, Any]

    @property
    def verdict(self) -> Overall:
        """Return `"not real"` if a check fails, else `"doubtful"` if one is doubtful, else `"real"`."""
        verdicts = {finding.verdict for finding in self.findings}
        return "not real" if "fail" in verdicts else "doubtful" if "doubtful" in verdicts else "real"

    @property
    def decisive(self) -> tuple[Finding, ...]:
        """The evidence against the robustness: checks that failed, then the doubtful ones."""
        return (*self.having("fail"), *self.having("doubtful"))

    def having(self, verdict: Verdict) -> tuple[Finding, ...]:
        """Findings with a verdict, in the order of the checks."""
        return tuple(finding for finding in self.findings if finding.verdict == verdict)

    def __getitem__(self, check: str) -> Finding:
        """Return the finding of a check, by its name."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"check must be one of {', '.join(f.check for f in self.findings)}, got {check!r}")

    def summary(self) -> str:
        """Say the verdict and the reasons for it, in a few sentences."""
        counts = ", ".join(f"{len(self.having(v))} {v}" for v in get_args(Verdict) if self.having(v))
        said = {
            "real": "No check found evidence against the robustness",
            "doubtful": "The robustness is doubtful",
            "not real": "The robustness is not real as measured",
        }[self.verdict]
        missing = self.having("not run")
        limits = f" Not checked: {', '.join(finding.check for finding in missing)}." if missing else ""
        return (
            f"{said}: of {len(self.findings)} checks, {counts}.{limits} The network classifies "
            f"{self.accuracy['clean']:.1%} of {self.settings['images']} clean images; at most "
            f"{self.robust_accuracy:.1%} withstand every attack tried here. {CAUTION}"
        )

    def to_text(self) -> str:
        """Give the report as text: the verdict, the decisive reasons, then every check."""
        lines = [f"verdict: {self.verdict.upper()}", "", self.summary(), ""]
        for number, finding in enumerate(self.decisive, 1):
            lines += [f"{number}. {finding.sentence}"]
        lines += [""] * bool(self.decisive) + [self.to_markdown(), ""]
        lines += [f"{finding.check}: {finding.reason}" for finding in self.having("not run") + self.having("pass")]
        return "\n".join(lines).strip() + "\n"

    def to_markdown(self) -> str:
        """Give the verdict and the number of every check as a Markdown table."""
        return table(*self.rows())

    def save(self, path: Path | str) -> Path:
        """Write everything as JSON, whole or not at all."""
        return write_atomic(path, json.dumps({"verdict": self.verdict, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> "Diagnosis":
        """Read what `save` wrote.

        Raises:
            ValueError: If the file is something else.
        """
        try:
            content = json.loads(Path(path).read_text())
            content.pop("verdict")
            return cls(**{**content, "findings": tuple(Finding(**finding) for finding in content["findings"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a diagnosis: {error!r}") from error

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows of the table of all checks: number and name, verdict, number with its unit."""
        rows = [[f"{i}. {f.check}", f.verdict, f.shown] for i, f in enumerate(self.findings, 1)]
        return ["check", "verdict", "number"], rows
