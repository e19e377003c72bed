"""The house in figures: lines of Python a room, the mean line, circles of imports, arrows against the rule.

    python -m tools.bench.house

A line counts that is not blank. Imports inside functions and of types alone make no circle.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

from tests.unit.test_imports import FILES, MAY_IMPORT, PACKAGE, imported, part


def imported_at_once(path: Path) -> set[str]:
    """The modules that the body of a file imports, whatever it is for."""
    body = ast.parse(path.read_text()).body
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach each other (Tarjan's strongly connected components of more than one)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            at = stack.index(name)
            if len(component := stack[at:]) > 1:
                found.append(component)
            del stack[at:]

    for name in graph:
        if name not in order:
            visit(name)
    return found


def main() -> int:
    """Print the figures; 1 where there is a circle or an arrow against the rule."""
    lines: Counter[str] = Counter()
    characters = 0
    modules: dict[str, Path] = {}
    against = []
    for path in FILES:
        place = path.relative_to(PACKAGE)
        room = place.parts[0].removesuffix(".py")
        rows = [row for row in path.read_text().splitlines() if row.strip()]
        lines[room] += len(rows)
        characters += sum(map(len, rows))
        dotted = ".".join(("ts_lightning", *place.with_suffix("").parts)).removesuffix(".__init__")
        modules[dotted] = path
        for name in imported(path):
            own = name.split(".")[0] == "ts_lightning" and room != "__init__" and part(name) != room
            if own and part(name) not in MAY_IMPORT[room]:
                against.append(f"{place} imports {name}")
    graph = {name: imported_at_once(path) & (modules.keys() - {name}) for name, path in modules.items()}
    found = circles(graph)
    for room, number in lines.most_common():
        print(f"{room:14}{number:7}")
    mean = characters / lines.total()
    print(f"{'all':14}{lines.total():7} lines in {len(FILES)} files, {mean:.1f} characters a line")
    print(f"circles of imports: {len(found)}" + "".join(f"\n  {' <-> '.join(one)}" for one in found))
    print(f"arrows against the rule: {len(against)}" + "".join(f"\n  {one}" for one in against))
    return int(bool(found or against))


if __name__ == "__main__":
    sys.exit(main())
