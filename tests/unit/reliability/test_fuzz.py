"""A short form of the files of a stranger, and that a fault would be seen."""

import time

import pytest

from tests.reliability import fuzz


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
@pytest.mark.parametrize(
    ("kind", "count"), [("tar", 60), ("picture", 60), ("checkpoint", 60), ("loaded", 12), ("safetensors", 60)]
)
def test_every_mutated_file_is_read_or_refused_by_name(tmp_path, kind, count):
    outcomes = set()
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcomes.add(fuzz.case(folder, kind, number)[0])
    assert outcomes <= {"read", "bad record", "refused"}
    assert "refused" in outcomes


def test_a_refusal_without_the_files_name_is_a_fault(tmp_path, monkeypatch):
    def nameless(path: object) -> None:
        raise ValueError("seen nothing")

    monkeypatch.setattr(fuzz, "index_shards", nameless)
    assert fuzz.case(tmp_path, "tar", 0)[0].startswith("fault: the refusal 'seen nothing' does not name x.tar")


def test_sleeping_counts_as_work_that_takes_time():
    clock, before = time.monotonic(), fuzz.worked()
    time.sleep(0.05)
    assert fuzz.worked() - before >= 0.05 - 1e-3
    assert fuzz.worked() - before <= time.monotonic() - clock
