"""What a check has found: OK, WARN or FAIL, with a figure and a remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, WARN, FAIL = "OK", "WARN", "FAIL"
#: from harmless to worst
LEVELS = (OK, WARN, FAIL)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    check: its name, such as "optical frame"
    about: a camera, two cameras joined by " + ", a topic, or "rig"
    level: one of LEVELS
    figure: what was measured, in words with its unit
    remedy: what to do; empty if the level is OK
    """

    check: str
    about: str
    level: str
    figure: str
    remedy: str = ""

    @property
    def sentence(self) -> str:
        """The finding in one line, without its level."""
        said = f"{self.about}: {self.check}: {self.figure}"
        return f"{said}; {self.remedy}" if self.remedy else said


def grade(value: float, warn: float, fail: float) -> str:
    """Return the level of a value that should be small: WARN from `warn` on, FAIL from `fail` on and for NaN."""
    if not value < fail:
        return FAIL
    return WARN if value >= warn else OK


def judged(check: str, about: str, level: str, figure: str, remedy: str) -> Finding:
    """Return a finding that has its remedy only if there is something to mend."""
    return Finding(check, about, level, figure, "" if level == OK else remedy)


def worst(findings: Iterable[Finding]) -> str:
    """Return the worst level; OK for no findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default=OK)


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as lines of text, the worst first, each remedy on a line of its own."""
    lines = []
    width = max((len(f.about) for f in findings), default=0)
    name = max((len(f.check) for f in findings), default=0)
    for finding in sorted(findings, key=lambda f: -LEVELS.index(f.level)):
        lines.append(f"{finding.level:4}  {finding.about:{width}}  {finding.check:{name}}  {finding.figure}")
        if finding.remedy:
            lines.append(f"{'':6}{'':{width}}  -> {finding.remedy}")
    counts = ", ".join(f"{sum(f.level == level for f in findings)} {level}" for level in LEVELS)
    return "\n".join([*lines, counts])


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as plain values: the worst level, and a mapping for each finding."""
    return {"level": worst(findings), "findings": [asdict(finding) for finding in findings]}
