"""One family on one layout of photographs by the commands; the thirty are `python -m tests.integration.own_model`."""

from pathlib import Path

import pytest

from tests.integration import own_model
from ts_lightning.cli import main


@pytest.mark.skipif(not own_model.COCO.is_dir(), reason="needs the photographs of ../shared/real")
def test_init_fit_evaluate_ask_export(tmp_path: Path) -> None:
    result = own_model.case("internvl", "yolo", tmp_path, 2, main)
    assert result["ok"], result
    assert "| `internvl` | - | - | - | yes | - |" in own_model.table([result])
