"""Scores under box noise, as a table (ChatSpot 5.1, Figure 5)."""

import re
from collections.abc import Mapping

_NOISY = re.compile(r"(?P<name>.+)_noise_(?P<scale>\d(?:\.\d+)?)", re.ASCII)
Rows = Mapping[str, Mapping[float, float]]


def by_noise(scores: Mapping[str, float]) -> dict[str, dict[float, float]]:
    """{suite: {noise scale: score}} from suites named `NAME` (scale 0) and `NAME_noise_0.1`.

    Suites that were asked at one scale only are left out.
    """
    rows: dict[str, dict[float, float]] = {}
    for suite, value in scores.items():
        found = _NOISY.fullmatch(suite)
        name, scale = (found["name"], float(found["scale"])) if found else (suite, 0.0)
        rows.setdefault(name, {})[scale] = value
    return {name: dict(sorted(row.items())) for name, row in rows.items() if len(row) > 1}


def noise_table(rows: Rows) -> str:
    """The scores as plain text: a line a suite, a column a scale."""
    scales = sorted({scale for row in rows.values() for scale in row})
    wide = max([len(name) for name in rows] + [9]) + 2
    lines = [f"{'box noise':<{wide}}" + "".join(f"{scale:>8g}" for scale in scales)]
    for name, row in rows.items():
        cells = "".join(f"{row[scale]:>8.3f}" if scale in row else f"{'-':>8}" for scale in scales)
        lines.append(f"{name:<{wide}}{cells}")
    return "\n".join(lines)
