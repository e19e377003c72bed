"""`data generate mirg`: the three renderings of Table 3, under the names that the configurations read."""

from pathlib import Path

import yaml

from tests.unit.generation_samples import read
from ts_lightning.cli import main
from ts_lightning.data.write import write_shards
from ts_lightning.pipelines.toy_world.multi_image import multi_image_samples

FIT = Path(__file__).parents[3] / "configs/fit"


def test_three_renderings(tmp_path: Path) -> None:
    data = tmp_path / "data_shards"
    write_shards(multi_image_samples("sft", 3), data / "mgrounding", "some")
    for source, out, style in (
        ("mgrounding", "mirg", "trajectory"),
        ("mirg", "mirg_reasoning", "reasoning"),
        ("mgrounding", "mirg_rl", "answer"),
    ):
        line = [f"{data}/{source}/*.tar", "--out", str(data / out), "--style", style]
        assert main(["data", "generate", "mirg", *line]) == 0
    texts = {name: [s.turns[1].text for s in read(f"{data}/{name}/*.tar")] for name in ("mirg", "mirg_reasoning")}
    assert [len(rows) for rows in texts.values()] == [3, 3]
    for grounded, words in zip(*texts.values(), strict=True):
        assert "{region:0}" in grounded.split("</think>")[0]
        assert "{region" not in words.split("</think>")[0]
        assert grounded.split("</think>")[1] == words.split("</think>")[1] == "<answer>{region:0}</answer>"
    for name in ("mirg_sft", "mirg_grpo"):
        pattern = yaml.safe_load((FIT / f"{name}.yaml").read_text())["data"]["init_args"]["train"]["shards"]
        assert list(tmp_path.glob(pattern)), pattern
