"""The rows of the papers' tables in miniature: what a row is, its run, its figures, and the file that keeps them."""

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tools.experiments import toy_captions
from tools.experiments.fit_once import fit_once
from ts_lightning.cli.asked_in_words import score_in_words
from ts_lightning.cli.configurations import read_configuration
from ts_lightning.data import ShardDataModule, ShardSource, index_shards
from ts_lightning.data.reader import ShardReader
from ts_lightning.metrics.protocols import make_protocol
from ts_lightning.metrics.protocols.captions import GIC
from ts_lightning.metrics.record import Record
from ts_lightning.metrics.suites import by_suite, score_suites
from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.runs.load import load
from ts_lightning.runs.run import quiet_trainer
from ts_lightning.training import SFT, BaseModule
from ts_lightning.training.records import record_of

SHARDS = "data_shards/toy_world"  # as the shipped configurations and the rows name it
CHECKPOINT_EVERY = 25  # steps
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class World:
    """What a table's rows learn from and are asked: `render(folder, size)`, and the held-out suites.

    suites: name -> (shards in the folder, protocol), and by how much the boxes of the questions are off. coco: the file
    in the folder that says what is in the scenes of captions.
    """

    render: Callable[[Path, float], None]
    suites: Mapping[str, tuple[str, str] | tuple[str, str, float]]
    coco: str = ""

    def file(self, shards: Path, protocol: str) -> str | None:
        """The annotations of a suite of this protocol."""
        return str(shards / self.coco) if protocol == "gic" else None


KEPT = {  # the figures of a protocol that are kept
    "rec": ("acc50", "miou", "unparsed"),
    "answers": ("accuracy",),
    "steps": ("right", "answer_acc", "step_recall", "rejection_rate", "false_rejection_rate"),
    "gic": ("AP", "AP50", "pairs", "names_of_no_class"),
}


@dataclass(frozen=True)
class Row:
    """One line of a table: a configuration of configs/fit, what lies over it, and how the result is asked.

    config: None for the untouched base. after: the row whose checkpoint the run starts from. ask: `task` and `alpha` of
    the answering; {"words": True} asks the base for ranges in words,
    {"truth": True} nobody: the true captions are the answers. paper: the paper's own figure, as printed there.
    reason: why the row is not run at all.
    """

    name: str
    config: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    after: "Row | None" = None
    ask: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    reason: str = ""

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that its figures depend on but the seed and the data."""
        made = _resolved(read_configuration(self.config), self.changes) if self.config else {}
        return {"made": made, "after": self.after.settings if self.after else None, "ask": dict(self.ask)}


@dataclass(frozen=True)
class Size:
    """How much of everything: `share` of the questions and records, `steps` in place of the configuration's."""

    share: float = 1.0
    steps: int | None = None


@dataclass
class Bench:
    """Where rows are run, and where their figures are kept."""

    shards: Path
    out: Path
    results: Path
    size: Size = Size()

    def measured(self, table: str, world: World, row: Row, seed: int) -> dict[str, Any]:
        """The line of a row and a seed: the one that is kept, else of a run."""
        if (line := self.kept(world, row, seed)) is not None:
            return line
        seed = seed if row.config else 0
        world.render(self.shards, self.size.share)
        run: dict[str, Any] = {}
        if row.ask.get("words"):
            scored = in_words(world, self.shards)
        elif row.ask.get("truth"):
            scored = scored_records(of_the_truth(world, self.shards))
        else:
            if row.config is None:
                module: BaseModule = SFT(PlainVLM(TinyBackbone(), train=["*"]))
            else:
                run = self.fit(row, seed)
                module = load(run.pop("checkpoint"))
                run["trained"] = sum(p.numel() for p in module.vlm.parameters() if p.requires_grad)
                run["seconds"] = round(run["seconds"])
            scored = scores(module, world, self.shards, row.ask)
        command = f"python -m tools.experiments.papers --table {table} --row {shlex.quote(row.name)} --seeds {seed}"
        named = {"row": row.name, "settings": self.name(world, row), "seed": seed}
        line = {**named, **scored, **run, "command": command}
        self.results.mkdir(parents=True, exist_ok=True)
        with (self.results / f"{table}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def kept(self, world: World, row: Row, seed: int) -> dict[str, Any] | None:
        """The line of these settings and this seed in any table's file."""
        name, seed = self.name(world, row), seed if row.config else 0  # the untouched base knows no seed
        return next((one for one in self.lines() if (one["settings"], one["seed"]) == (name, seed)), None)

    def lines(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self.results.glob("*.jsonl")):
            yield from map(json.loads, path.read_text().splitlines())

    def name(self, world: World, row: Row) -> str:
        """The first twelve digits of the sha256 of all that a row's figures depend on."""
        whole = {**row.settings, "suites": world.suites, "share": self.size.share, "steps": self.size.steps}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]

    def fit(self, row: Row, seed: int) -> dict[str, Any]:
        """The run of a row, or what an earlier call has of it; those that differ in the asking alone share it."""
        settings = {**row.settings, "ask": {}, "share": self.size.share, "steps": self.size.steps}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        root = self.out / f"{digest}-seed{seed}"
        root.mkdir(parents=True, exist_ok=True)
        often = deepcopy(over(read_configuration(row.config or ""), row.changes)["trainer"]["callbacks"])
        for callback in often:
            if callback["class_path"].endswith("ModelCheckpoint"):  # a run that is stopped goes on from there
                callback["init_args"]["every_n_train_steps"] = CHECKPOINT_EVERY
            if callback["class_path"].endswith("RolloutCallback"):
                callback["init_args"]["seed"] = seed
        made = over({"over": row.config, "seed_everything": seed, **row.changes}, {"trainer": {"callbacks": often}})
        (root / "row.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
        quiet = {"enable_progress_bar": "false", "limit_val_batches": 0, "num_sanity_val_steps": 0}
        options = [f"--trainer.{name}={value}" for name, value in quiet.items()] + [f"--data.init_args.seed={seed}"]
        if row.after:
            start = self.fit(row.after, seed)["checkpoint"]
            options.append(f"--model.init_args.vlm.init_args.init_from={start}")
        data = read_configuration(str(root / "row.yaml"))["data"]["init_args"]
        data = {name: value for name in ("train", "mix", "val") if (value := data.get(name))}
        data = json.loads(json.dumps(data).replace(SHARDS, str(self.shards)))
        options += [f"--data.init_args.{name}={json.dumps(value)}" for name, value in data.items()]
        return fit_once(root / "row.yaml", root / "fit", options, self.size.steps)


def scores(module: BaseModule, world: World, shards: Path, ask: Mapping[str, Any] = {}) -> dict[str, Any]:
    """`figures` ("known/acc50": 0.9) and `right` (a digit a question, 1 where it is answered rightly) of all suites."""
    suites = {
        name: ShardSource(
            f"{shards}/{files}", protocol=protocol, box_noise=sum(noise), annotations=world.file(shards, protocol)
        )
        for name, (files, protocol, *noise) in world.suites.items()
    }
    module.answer_as(**ask)
    loaders = quiet_trainer().predict(module, ShardDataModule(val=suites, eval_batch_size=100)) or []
    if loaders and isinstance(loaders[0][0], dict):
        loaders = [loaders]  # Lightning's form for one suite
    scored = scored_records([Record.from_json(values) for batches in loaders for batch in batches for values in batch])
    alpha = {name: round(value, 4) for name, value in module.vlm.log_values().items()}  # where there is one
    return scored | {"figures": scored["figures"] | alpha}


def scored_records(records: Sequence[Record]) -> dict[str, Any]:
    """`figures` and `right` of the records of all suites."""
    figures, right = {}, {}
    for name, entry in score_suites(records, prepare=toy_captions.by_words).items():
        for part, one in {"": entry["figures"], **{f"{sub}/": one for sub, one in entry["subtasks"].items()}}.items():
            known = {key: one[key] for key in KEPT[entry["protocol"]] if one[key] == one[key]}  # not over nothing
            figures |= {f"{name}/{part}{key}": round(value, 4) for key, value in known.items()}
        protocol = make_protocol(entry["protocol"], annotations=by_suite(records)[name][0].annotations)
        protocol.update(by_suite(records)[name])
        if isinstance(protocol, GIC):
            values = [float(toy_captions.whole(row, protocol.truth)) for row in protocol.rows()]
            figures[f"{name}/right"] = round(sum(values) / len(values), 4)
        else:
            values = protocol.values(protocol.rows())[1]
        right[name] = "".join(str(int(value >= 0.5)) for value in values)
    return {"figures": figures, "right": right}


def of_the_truth(world: World, shards: Path) -> list[Record]:
    """The records of one who answers every suite's questions with the truth, as the tiny base would write it."""
    encoder = PlainVLM(TinyBackbone(), train=["*"]).encoder
    records = []
    for name, (files, protocol, *_) in world.suites.items():
        rule = {"protocol": protocol, "annotations": world.file(shards, protocol)}
        for sample in ShardReader(index_shards(f"{shards}/{files}")):
            asked, said = (encoder.render(sample, for_generation)[0] for for_generation in (True, False))
            text = said.removeprefix(asked).removesuffix(encoder.tokenizer.eos_token)
            records.append(record_of(sample, text, encoder.codec, name, rule=rule))
    return records


def in_words(world: World, shards: Path) -> dict[str, Any]:
    """What the untouched base says of the boxes of the suites of one box, asked for ranges in words."""
    base = PlainVLM(TinyBackbone(), train=["*"])
    boxes = {name: one[0] for name, one in world.suites.items() if one[1] == "rec"}
    found = {name: score_in_words(base, f"{shards}/{files}") for name, files in boxes.items()}
    return {"figures": {f"{name}/{key}": round(value, 4) for name, one in found.items() for key, value in one.items()}}


def by_name(rows: Sequence[Row], name: str) -> Row:
    """The row of this name; ValueError for none."""
    if found := [row for row in rows if row.name == name]:
        return found[0]
    raise ValueError(f"--row: seen {name!r}, expected one of {', '.join(row.name for row in rows)}")


def over(below: Any, above: Any) -> Any:
    """Two overlays as one: mappings are merged, anything else is replaced."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    return {**below, **{key: over(below.get(key), value) for key, value in above.items()}}


def _resolved(configuration: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a row without what changes no weight: folders, validation, logging, and what is null."""
    made = json.loads(json.dumps(over(configuration, changes)))
    for name in ("default_root_dir", "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps"):
        made["trainer"].pop(name, None)
    data = made["data"]["init_args"]
    for name in ("val", "eval_batch_size", "num_workers", "micro_batch_size", "join_rows"):
        data.pop(name, None)
    made["data"]["init_args"] = {key: value for key, value in data.items() if value is not None}
    watching = ("ModelCheckpoint", "LearningRateMonitor")
    callbacks = made["trainer"].get("callbacks", [])
    made["trainer"]["callbacks"] = [one for one in callbacks if not one["class_path"].endswith(watching)]
    return made
