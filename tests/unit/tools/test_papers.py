"""The papers' tables: which settings are the same run, what a verdict is, where a table goes in the page."""

import json
from pathlib import Path

import pytest

from tools.experiments.paper_report import FAILS, HOLDS, OPEN, UNSEEN, Finding, Table, markdown, verdict, write_docs
from tools.experiments.paper_rows import Bench, Row, World, by_name, over
from tools.experiments.paper_tables import grpo, mirg
from tools.experiments.papers import DOCS, TABLES
from ts_lightning.cli.configurations import read_configuration

WORLD = World(lambda folder, share: None, {"known": ("val-*.tar", "rec")})
WEAK, STRONG = Row("weak", "fit/toy_twist.yaml"), Row("strong", "fit/toy_twist.yaml", {"trainer": {"max_steps": 7}})


def bench(tmp_path: Path, *lines: tuple[Row, int, str]) -> Bench:
    made = Bench(tmp_path, tmp_path, tmp_path / "results")
    made.results.mkdir()
    with (made.results / "another_table.jsonl").open("w") as file:
        for row, seed, right in lines:
            line = {"settings": made.name(WORLD, row), "seed": seed, "right": {"known": right}}
            file.write(json.dumps(line | {"figures": {"known/acc50": right.count("1") / len(right)}}) + "\n")
    return made


def table(*findings: Finding) -> Table:
    return Table("x", "X", WORLD, {"known/acc50": "Acc"}, (WEAK, STRONG), findings)


@pytest.mark.parametrize(
    ("weak", "strong", "same", "word"),
    [
        ("0" * 40, "1" * 30 + "0" * 10, False, HOLDS),
        ("1" * 30 + "0" * 10, "0" * 40, False, FAILS),
        ("01" * 20, "10" * 20, False, UNSEEN),
        ("01" * 20, "01" * 20, True, HOLDS),
        ("01" * 20, "10" * 20, True, FAILS),  # as many right, other ones
    ],
)
def test_verdict(tmp_path: Path, weak: str, strong: str, same: bool, word: str) -> None:
    kept = bench(tmp_path, (WEAK, 0, weak), (STRONG, 0, strong))
    finding = Finding("strong is better", "weak", "strong", "known", same)
    assert verdict(table(finding), finding, kept, [0, 1]).startswith(f"{word}, ")
    assert verdict(table(finding), finding, kept, [1]) == OPEN


def test_table_has_means_ranges_and_rows_without_a_run(tmp_path: Path) -> None:
    kept = bench(tmp_path, (WEAK, 0, "0001"), (WEAK, 1, "0111"))
    text = markdown(table(), kept, [0, 1, 2])
    assert "| weak | 2 | 0.500 (0.250 to 0.750) |" in text
    assert f"| strong |  | {OPEN} |" in text


def test_settings_name_what_changes_a_weight(tmp_path: Path) -> None:
    made = Bench(tmp_path, tmp_path, tmp_path)
    watched = Row("other name", WEAK.config, {"trainer": {"default_root_dir": "elsewhere", "val_check_interval": 3}})
    faster = Row("weak", WEAK.config, {"model": {"init_args": {"optimizer": {"init_args": {"lr": 1.0}}}}})
    assert made.name(WORLD, watched) == made.name(WORLD, WEAK)
    assert made.name(WORLD, faster) != made.name(WORLD, WEAK)
    assert made.name(WORLD, Row("weak", WEAK.config, ask={"alpha": 0.0})) != made.name(WORLD, WEAK)
    assert made.name(WORLD, Row("weak", WEAK.config, after=STRONG)) != made.name(WORLD, WEAK)


def test_overlays_merge_mappings_and_replace_the_rest() -> None:
    assert over({"a": {"b": 1, "c": [1]}}, {"a": {"c": [2]}, "d": 3}) == {"a": {"b": 1, "c": [2]}, "d": 3}


def test_docs(tmp_path: Path) -> None:
    page = tmp_path / "papers.md"
    page.write_text("before\n<!-- table x -->\nold\n<!-- end of table x -->\nafter\n")
    write_docs(page, table(), "new")
    assert page.read_text() == "before\n<!-- table x -->\nnew\n<!-- end of table x -->\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match=r"seen no <!-- table x -->"):
        write_docs(page, table(), "new")


@pytest.mark.parametrize("one", TABLES, ids=lambda one: one.name)
def test_every_table_is_whole(one: Table) -> None:
    names = [row.name for row in one.rows]
    assert len(set(names)) == len(names)
    for finding in one.findings:
        by_name(one.rows, finding.less), by_name(one.rows, finding.more)
        assert finding.suite in one.world.suites
    for row in one.rows:
        assert row.config is None or read_configuration(row.config)["model"]
    assert f"<!-- table {one.name} -->" in DOCS.read_text()


def test_grpo_settings() -> None:
    """The run whose figures the table has is the shipped one; the settings change what they say."""
    shipped = Row("", "fit/toy_mirg_grpo.yaml", after=mirg.GROUNDED).settings["made"]
    made = grpo.GRPO.settings["made"]
    (given,), (rollout,) = shipped["trainer"].pop("callbacks"), made["trainer"].pop("callbacks")
    assert given["init_args"]["rewards"] == rollout["init_args"]["rewards"]
    assert made == shipped
    made = grpo.setting("DAPO", True, 2).settings["made"]
    model = made["model"]["init_args"]
    assert model["algorithm"] == {"class_path": "ts_lightning.losses.DAPO", "init_args": {"advantage_eps": 0.3}}
    assert model["num_iterations"] == 2
    (rollout,) = made["trainer"]["callbacks"]
    assert list(rollout["init_args"]["rewards"]) == ["format", "image", "object", "thought"]
