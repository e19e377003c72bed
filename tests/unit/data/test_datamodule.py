"""Exact streaming through the datamodule: ranks, workers, epochs, resume under Lightning, and what it refuses."""

from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser

from tests.unit.data_samples import encode, shards
from ts_lightning.data import ShardDataModule, ShardSource

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*worker processes in total.*"),
    pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
    pytest.mark.filterwarnings("ignore:predict returned None"),
    pytest.mark.filterwarnings("error:You're resuming from a checkpoint"),  # Lightning must know that we can resume
]


@pytest.fixture
def tars(tmp_path: Path) -> str:
    """26 records in four shards."""
    shards(tmp_path, [3, 11, 1, 11])
    return f"{tmp_path}/s*.tar"


def module(tars: str | None, **options: object) -> ShardDataModule:
    options = {"global_batch_size": 6, "micro_batch_size": 3, "encode": encode, "pad_id": 0} | options
    return ShardDataModule(train=None if tars is None else ShardSource(tars), **options)


def as_rank(data: ShardDataModule, rank: int, world_size: int) -> ShardDataModule:
    """The datamodule as a trainer on one of several ranks would hold it."""
    sharing = {"rank": rank, "num_replicas": world_size}
    data.trainer = SimpleNamespace(distributed_sampler_kwargs=sharing, overfit_batches=0, lightning_module=None)
    return data


def epoch(data: ShardDataModule) -> list[list[str]]:
    """Ids of the batches of one epoch, each counted as trained."""
    loader, batches = data.train_dataloader(), []
    for _, batch in zip(range(len(loader)), loader, strict=False):
        batches.append(batch["ids"])
        data.advance()
    return batches


def test_a_batch_is_this_ranks_micro_batches(tars):
    data = module(tars)
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == 26 // 6
    batch = next(iter(loader))
    assert batch["num_questions"] == 6
    assert [len(micro["samples"]) for micro in batch["micro_batches"]] == [3, 3]
    assert sorted(batch["ids"]) == sorted(one.id for micro in batch["micro_batches"] for one in micro["samples"])
    lengths = [micro["valid"].sum(1).tolist() for micro in batch["micro_batches"]]
    assert min(lengths[0]) >= max(lengths[1])  # dealt by length
    assert batch["num_tokens"] == sum(map(sum, lengths))
    assert batch["num_pairs"] == sum(n * (n + 1) // 2 for part in lengths for n in part)
    assert batch["num_answers"] == sum(int((micro["step_ids"] >= 0).sum()) for micro in batch["micro_batches"])
    assert batch["num_positions"] == sum(3 * max(part) for part in lengths)
    micro = batch["micro_batches"][0]
    first = int(micro["samples"][0].id.split("/")[1])
    assert micro["input_ids"][0, 0] == first + 1
    assert micro["valid"].sum(1).tolist() == [int(one.id.split("/")[1]) % 5 + 2 for one in micro["samples"]]
    assert micro["row_valid"].all()
    assert sorted(micro) == [
        *("images_per_row", "input_ids", "pixel_values", "position_ids", "row_valid"),
        *("samples", "step_ids", "task", "valid"),
    ]


def test_batches_depend_on_neither_ranks_nor_workers(tars):
    alone = module(tars)
    alone.setup("fit")
    expected = [epoch(alone) for _ in range(2)]
    for e in expected:
        assert len(e) == 4
        assert len({i for ids in e for i in ids}) == 24
    assert expected[0] != expected[1]
    for world_size, workers in ((1, 2), (2, 0), (2, 2)):
        ranks = [as_rank(module(tars, num_workers=workers), rank, world_size) for rank in range(world_size)]
        for data in ranks:
            data.setup("fit")
        for wanted in expected:
            shares = [epoch(data) for data in ranks]
            assert [[i for part in parts for i in part] for parts in zip(*shares, strict=True)] == wanted
        assert len({str(data.state_dict()) for data in ranks}) == 1


def test_the_state_and_an_exact_resume(tars):
    whole = module(tars)
    whole.setup("fit")
    expected = epoch(whole) + epoch(whole)
    first = module(tars)
    first.setup("fit")
    for _, batch in zip(range(3), first.train_dataloader(), strict=False):
        assert batch["ids"]
        first.advance()
    state = first.state_dict()
    assert sorted(state) == ["epoch", "manifest_sha", "samples_consumed", "seed", "shuffle_window", "version"]
    assert (state["epoch"], state["samples_consumed"], state["seed"], state["version"]) == (0, 18, 0, 2)
    rest = module(tars, num_workers=1)
    rest.setup("fit")
    rest.load_state_dict(state)
    assert [batch["ids"] for batch in rest.train_dataloader()] == expected[3:4]  # no trainer: up to the epoch's end
    assert rest.state_dict() == state  # reading ahead counts nothing
    assert epoch(rest) == expected[3:4]
    assert epoch(rest) == expected[4:]


def test_resuming_on_other_data_is_refused(tars, tmp_path):
    data = module(tars)
    data.setup("fit")
    state = data.state_dict()
    other = module(tars, seed=1)
    other.setup("fit")
    with pytest.raises(ValueError, match=r"^data.seed: seen 1, expected 0 as in the checkpoint$"):
        other.load_state_dict(state)
    shards(tmp_path, [4])
    changed = module(tars)
    changed.load_state_dict(state)  # as in `validate`: nothing is trained, nothing is wrong
    assert changed.state_dict() == state
    with pytest.raises(ValueError, match=r"^data.train: seen shards \w+, expected \w+ as in the checkpoint"):
        changed.setup("fit")
    with pytest.raises(ValueError, match="data state: seen version 9, expected 2"):
        data.load_state_dict(state | {"version": 9})
    for bad in ({"samples_consumed": -5}, {"samples_consumed": "x"}, {"epoch": 1.5}, {"epoch": True}):
        with pytest.raises(ValueError, match=r"data state: seen \w+ .*, expected a whole number from 0 on"):
            data.load_state_dict(state | bad)


class Recorder(L.LightningModule):
    """Trains one number and writes down what it is given; counts steps where a training module would."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.vlm = SimpleNamespace(encode=encode, pad_id=0)
        self.trained: list[list[str]] = []
        self.seen: dict[int, list[str]] = {}

    def training_step(self, batch: dict, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(sum(micro["input_ids"].float().mean() for micro in batch["micro_batches"]) * self.weight)
        optimizer.step()
        self.trained.append(batch["ids"])
        self.trainer.datamodule.advance()

    def validation_step(self, batch: dict, batch_idx: int, dataloader_idx: int = 0) -> None:
        ids = [one.id for one, valid in zip(batch["samples"], batch["row_valid"], strict=True) if valid]
        self.seen.setdefault(dataloader_idx, []).extend(ids)

    predict_step = test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, *callbacks: L.Callback, **options: object) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": bool(callbacks), "default_root_dir": folder, "devices": 1}
    return L.Trainer(callbacks=list(callbacks), **quiet | options)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_lightning_resumes_at_the_next_batch(tars, tmp_path, stop, workers):
    whole = Recorder()
    trainer(tmp_path, max_epochs=3).fit(whole, datamodule=module(tars))
    assert len(whole.trained) == 12
    save = L.pytorch.callbacks.ModelCheckpoint(
        tmp_path / "run", every_n_train_steps=1, save_top_k=-1, filename="{step}"
    )
    first = Recorder()
    trainer(tmp_path, save, max_epochs=3, max_steps=stop).fit(first, datamodule=module(tars, num_workers=workers))
    assert first.trained == whole.trained[:stop]
    rest = Recorder()
    data = module(tars, num_workers=workers)
    trainer(tmp_path, max_epochs=3).fit(rest, datamodule=data, ckpt_path=str(tmp_path / f"run/step={stop}.ckpt"))
    assert rest.trained == whole.trained[stop:]
    assert (data.state_dict()["epoch"], data.state_dict()["samples_consumed"]) == (3, 0)


def test_limits_go_on_through_the_data_and_overfitting_repeats(tars, tmp_path):
    whole, limited, fixed = Recorder(), Recorder(), Recorder()
    trainer(tmp_path, max_epochs=3).fit(whole, datamodule=module(tars))
    data = module(tars, val={"all": ShardSource(tars)})
    trainer(tmp_path, max_epochs=3, limit_train_batches=3, num_sanity_val_steps=0).fit(limited, datamodule=data)
    assert limited.trained == whole.trained[:9]
    assert limited.seen[0] == [f"test/{i}" for i in range(26)] * 3  # a validation for every epoch
    trainer(tmp_path, max_epochs=3, overfit_batches=1).fit(fixed, datamodule=module(tars))
    assert fixed.trained == whole.trained[:1] * 3


def test_named_suites_count_each_record_once(tars, tmp_path):
    small = f"{tmp_path}/s0*.tar"
    val = {"all": ShardSource(tars, max_samples=10), "small": ShardSource(small)}
    data = module(None, val=val, eval_batch_size=4)
    assert data.suites == {"val": val, "test": val, "predict": val}
    for run in ("validate", "test", "predict"):
        model = Recorder()
        getattr(trainer(tmp_path), run)(model, datamodule=data)
        assert model.seen == {0: [f"test/{i}" for i in range(10)], 1: ["test/0", "test/1", "test/2"]}
    rows: list[str] = []
    for rank in range(3):
        part = as_rank(module(None, val=val, eval_batch_size=2), rank, 3)
        part.setup("validate")
        loader = part.val_dataloader()[0]
        assert len(loader) == len(list(loader)) == 2
        for batch in loader:
            assert batch["valid"][:, -1].all()  # padded on the left
            assert (batch["step_ids"] == -1).all()
            rows += [one.id for one, valid in zip(batch["samples"], batch["row_valid"], strict=True) if valid]
    assert sorted(rows) == sorted(f"test/{i}" for i in range(10))


def test_what_a_source_asks_behind_its_questions_is_encoded_and_recorded(tars):
    val = {"plain": ShardSource(tars), "official": ShardSource(tars, after_question=" Format: (x1,y1)")}
    data = as_rank(module(None, val=val), 0, 1)
    data.setup("validate")
    for loader, line in zip(data.val_dataloader(), ("", " Format: (x1,y1)"), strict=True):
        (first, *_) = next(iter(loader))["samples"]
        assert first.after_question == line
        assert first.question == "Where?" + line


def test_suites_can_be_chosen_and_unknown_ones_are_named(tars):
    val = {"a": ShardSource(tars), "b": ShardSource(tars)}
    assert module(None, val=val, suites=["b"]).suites["val"] == {"b": val["b"]}
    with pytest.raises(ValueError, match=r"^data.suites: seen 'c', expected some of \['a', 'b'\]$"):
        module(None, val=val, suites=["c"])


@pytest.mark.parametrize(
    ("options", "world_size", "expected"),
    [
        ({"global_batch_size": 8}, 1, "data.global_batch_size: seen 8, expected a multiple of micro_batch_size *"),
        ({"global_batch_size": 9}, 2, "micro_batch_size * devices = 3 * 2 = 6"),
        ({"global_batch_size": 27}, 1, "data.train: seen 26 rows, expected at least one global batch of 27"),
        ({"micro_batch_size": 0}, 1, "data.micro_batch_size: seen 0, expected at least 1"),
        ({"train": ShardSource("no.tar")}, 1, "no.tar: seen no such shard"),
        ({"train": None}, 1, "data.train: seen none, expected shards for fit"),
    ],
)
def test_settings_that_cannot_be_are_one_line(tars, options, world_size, expected):
    def build() -> None:
        values = {"train": ShardSource(tars), "global_batch_size": 6, "micro_batch_size": 3} | options
        as_rank(ShardDataModule(**values, encode=encode, pad_id=0), 0, world_size).setup("fit")

    with pytest.raises(ValueError) as error:
        build()
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_max_samples_takes_the_first_records(tars):
    data = ShardDataModule(
        ShardSource(tars, max_samples=7), global_batch_size=7, micro_batch_size=7, encode=encode, pad_id=0
    )
    data.setup("fit")
    assert sorted(epoch(data)[0]) == sorted(f"test/{i}" for i in range(7))


def test_settings_come_from_the_command_line(tars):
    parser = ArgumentParser()
    parser.add_subclass_arguments(ShardDataModule, "data")
    args = ["--data=ShardDataModule", f"--data.init_args.train.shards={tars}", "--data.init_args.global_batch_size=6"]
    args += ['--data.init_args.val={"a": {"shards": ["x.tar"], "max_samples": 3}}']
    data = parser.instantiate(parser.parse_args(args)).data
    assert data._train == ShardSource(tars)
    assert data.suites["val"] == {"a": ShardSource(["x.tar"], 3)}


def test_samples_are_not_copied_to_a_device(tars):
    data = module(tars)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["micro_batches"][0]["input_ids"].device.type == "meta"
    assert moved["micro_batches"][0]["samples"][0] is batch["micro_batches"][0]["samples"][0]


def test_a_suite_is_scored_by_the_rule_of_its_own_stage() -> None:
    val, test = ShardSource("v.tar", protocol="rec"), ShardSource("t.tar", protocol="localization", reading="strict")
    data = ShardDataModule(val={"g": val}, test={"g": test}, predict=ShardSource("p.tar"))
    assert data.suites == {"val": {"g": val}, "test": {"g": test}, "predict": {"predict": ShardSource("p.tar")}}
    assert ShardDataModule(val={"g": val}).suites["predict"] == {"g": val}


def test_memorization_asks_what_is_trained_on() -> None:
    train = ShardSource("a.tar", max_samples=8, exclude_tags=["cot"])
    data = ShardDataModule(train=train, val={"m": ShardSource("@train"), "few": ShardSource("@train", max_samples=3)})
    assert data.suites["val"]["m"] == train
    assert data.suites["val"]["few"] == ShardSource("a.tar", max_samples=3, exclude_tags=["cot"])
