"""The table of families in docs/backbones.md, which `python -m tests.unit.models.hf_table` writes."""

import tempfile
from pathlib import Path

from tests.unit.models.hf_checks import CHECKS, Case
from tests.unit.models.hf_families import FAILING, FAMILIES, make_folder
from ts_lightning.models.backbones.hf import DenseExpert

PAGE = Path(__file__).parents[3] / "docs/backbones.md"
BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
NAMES = [*FAMILIES, *FAILING]


def head() -> list[str]:
    cells = ["model_type", "decoder", "regions by default", *CHECKS]
    return [f"| {' | '.join(cells)} |", f"|{'---|' * len(cells)}"]


def row(name: str, case: Case) -> str:
    """The row of a family whose checks have passed."""
    backbone = case.twin.backbone
    kinds = []
    if backbone.recurrent:
        kinds.append("recurrent layers: the prompt again for each answer")
    if "sliding_attention" in backbone.layer_types:
        kinds.append("windows")
    if backbone.blocks_of_pictures:
        kinds.append("pictures seen both ways")
    if backbone.more_for_text:
        kinds.append("per-layer inputs")
    slot = getattr(backbone.layers[-1], backbone.mlp_name).understanding
    if isinstance(backbone.expert_seeds(slot)[0], DenseExpert):
        kinds.append("sparse base")
    cells = [f"`{name}`", ", ".join(kinds) or "causal", f"`{case.twin.codec.name}`", *["yes"] * len(CHECKS)]
    return f"| {' | '.join(cells)} |"


def failing(name: str) -> str:
    return f"| `{name}` | no: {FAILING[name]} |{' |' * (1 + len(CHECKS))}"


def stored() -> list[str]:
    text = PAGE.read_text()
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()


def main() -> None:
    lines = head()
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            case = Case(name, make_folder(name, Path(folder)))
            for check in CHECKS.values():
                check(case)
            lines.append(row(name, case))
    lines += [failing(name) for name in FAILING]
    text = PAGE.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    PAGE.write_text("\n".join([before, *lines, after]))


if __name__ == "__main__":
    main()
