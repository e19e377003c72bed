"""`import ts_lightning` is light; `ts_lightning.load` comes when it is asked for."""

import os
import subprocess
import sys

import pytest

import ts_lightning
from ts_lightning.runs.ask import ask
from ts_lightning.runs.load import load


def test_load_is_offered_at_the_top_and_nothing_heavy_is_imported() -> None:
    code = "import sys, ts_lightning; assert not {'torch', 'lightning', 'numpy', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert ts_lightning.load is load
    assert ts_lightning.ask is ask
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ts_lightning.nothing


def test_training_leaves_a_notebook_its_backend_of_matplotlib() -> None:
    code = "import matplotlib as m, ts_lightning.training; assert m.get_backend() == 'pdf'"
    code += "; from ts_lightning.reports import report; assert m.get_backend() == 'pdf'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600, env=os.environ | {"MPLBACKEND": "pdf"})
