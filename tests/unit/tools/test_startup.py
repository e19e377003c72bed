"""The start-up figures: a command that ends otherwise than it should is no figure, and one above its bar fails."""

import pytest

from tools.bench import startup


def test_what_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    refused = startup.Case(["-c", "import sys; print('fit: seen x', file=sys.stderr); sys.exit(2)"], 6.0)
    monkeypatch.setattr(startup, "CASES", {"fit": refused})
    assert startup.main(1) == 1
    expected = "startup: fit: seen exit status 2 (fit: seen x), expected 0\n"
    assert capsys.readouterr() == ("", expected)


def test_the_bar_stands_beside_the_figure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    quick, slow = startup.Case(["-c", ""], 60.0), startup.Case(["-c", ""], 0.0)
    monkeypatch.setattr(startup, "CASES", {"quick": quick})
    assert startup.main(1) == 0
    assert capsys.readouterr().out.endswith("s   wanted: at most 60.0 s\n")
    monkeypatch.setattr(startup, "CASES", {"slow": slow, "quick": quick})
    assert startup.main(1) == 1
    assert "wanted: at most 0.0 s: ABOVE\n" in capsys.readouterr().out
