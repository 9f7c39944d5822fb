"""The result of a check: problems, duplicates and statistics, as JSON and as text."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from heatmap.runtime.columns import as_lines

EXAMPLES = 3  # problems of each kind that the text shows

PartName = Literal["train", "test"]
Severity = Literal["error", "warning", "note"]

# All kinds but these are errors.
WARNINGS = (
    "damaged image", "far outside", "all at one point", "same image, other labels",
    "same image, train and test", "alike, other labels", "alike, train and test",
)  # fmt: skip
NOTES = (
    "same image, twice", "alike, twice", "unlabelled row", "unnamed image", "converted image",
)  # fmt: skip
# Training images with these problems are better left out.
EXCLUDED = (
    "missing image", "unreadable image", "damaged image", "far outside", "all at one point",
    "same image, other labels",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A defect of a data set. Errors stop training or a submission."""

    severity: Severity
    kind: str
    part: PartName
    message: str
    row: int | None = None  # of the part's table; the header is row 1
    images: tuple[str, ...] = ()  # file names

    @property
    def is_excluded(self) -> bool:
        return self.part == "train" and self.kind in EXCLUDED


@dataclass(frozen=True)
class Group:
    """Images that are equal or look alike."""

    train: list[str]  # file names
    test: list[str]
    # Largest mean distance between the landmarks of the first labelled training image and those of
    # another one, over the diagonal of the first one's landmarks. None with fewer than two.
    label_distance: float | None


@dataclass(frozen=True)
class Report:
    """Everything that a check finds."""

    root: Path
    problems: list[Problem]  # errors first
    statistics: dict[PartName, dict[str, Any]]
    same: list[Group]  # images whose files are equal
    near: list[Group]  # images that look alike

    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]

    def excluded(self) -> dict[str, list[str]]:
        """The training images that are better left out, with the reasons."""
        reasons = defaultdict[str, list[str]](list)
        for problem in self.problems:
            for name in problem.images if problem.is_excluded else ():
                reasons[name].append(problem.kind)
        return dict(reasons)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"root": str(self.root)}


def severity_of(kind: str) -> Severity:
    return "warning" if kind in WARNINGS else "note" if kind in NOTES else "error"


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def format_report(report: Report) -> str:
    """Formats a report as text: statistics, then problems by kind."""
    lines = [str(report.root), *as_lines(_statistics_rows(report)), ""]
    by_kind = defaultdict[tuple[str, str], list[Problem]](list)
    for problem in report.problems:
        by_kind[problem.severity, problem.kind].append(problem)
    if not by_kind:
        return "\n".join([*lines, "no problems found"])
    rows, examples = [("severity", "kind", "train", "test")], []
    for (severity, kind), problems in by_kind.items():
        parts = Counter(problem.part for problem in problems)
        rows.append((severity, kind, str(parts["train"]), str(parts["test"])))
        examples += ["", f"{severity}: {kind}", *(f"  {p.message}" for p in problems[:EXAMPLES])]
        if len(problems) > EXAMPLES:
            examples.append(f"  ... and {len(problems) - EXAMPLES} more")
    return "\n".join([*lines, *as_lines(rows, left=2), *examples])


def _statistics_rows(report: Report) -> list[tuple[str, ...]]:
    parts = report.statistics
    rows = [("", *parts)]
    for key in min(parts.values(), key=len, default={}):  # a part may have fewer
        is_spread = any(isinstance(part[key], dict) for part in parts.values())
        label = key.replace("_", " ") + (", min / median / max" if is_spread else "")
        rows.append((label, *(_format_statistic(part, key) for part in parts.values())))
    groups_by_label = {"groups of equal files": report.same, "groups that look alike": report.near}
    for label, groups in groups_by_label.items():
        sizes = [[len(getattr(group, part)) for group in groups] for part in parts]
        rows.append((label, *(f"{np.count_nonzero(s)} ({sum(s)} images)" for s in sizes)))
    return rows


def _format_statistic(part: dict[str, Any], key: str) -> str:
    value = part[key]
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " / ".join(f"{number:.0f}" for number in value.values())
    share = "" if key in ("rows", "images") else f" ({100 * value / part['images']:.1f} %)"
    return f"{value}{share}"
