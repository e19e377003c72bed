"""What several runs keep of image understanding: a row a run, a column a suite, as in TWIST & SCOUT's Table 3."""

from collections.abc import Mapping
from typing import Any

Report = Mapping[str, Mapping[str, Any]]  # report.json: an entry a suite
_POPE = ("pope_random", "pope_popular", "pope_adversarial")
# heading: suites whose mean counts (all of them have to be there), figure, and what it is multiplied by
COLUMNS: dict[str, tuple[tuple[str, ...], str, float]] = {
    "GQA": (("gqa",), "accuracy", 100),
    "SQA": (("scienceqa",), "accuracy", 100),
    "VQA^T": (("textvqa",), "accuracy", 100),
    "POPE": (_POPE, "accuracy", 100),
    "POPE F1": (_POPE, "f1", 100),
    "MME": (("mme",), "perception", 1),
    "LLaVA^W": (("llava_bench",), "score", 1),
    "MM-Vet": (("mmvet",), "score", 1),
}


def understanding_table(reports: Mapping[str, Report]) -> str:
    """Markdown: the runs by name, their `COLUMNS` to one decimal, a dash for a suite that a run does not have."""
    lines = [["run", *COLUMNS]]
    for name, report in reports.items():
        lines.append([name, *(_cell(report, *column) for column in COLUMNS.values())])
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


def _cell(report: Report, suites: tuple[str, ...], figure: str, scale: float) -> str:
    values = [report.get(suite, {}).get("figures", {}).get(figure) for suite in suites]
    known = [value for value in values if value is not None]
    return f"{scale * sum(known) / len(known):.1f}" if len(known) == len(suites) else "-"
