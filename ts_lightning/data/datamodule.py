"""The LightningDataModule over indexed shards."""

from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import torch

from ts_lightning.data.loader import BadRecords, EvalLoader, TrainLoader, log
from ts_lightning.data.manifest import Manifest
from ts_lightning.data.mixture import MixedStream, of_rows
from ts_lightning.data.noise import NoisyBoxes
from ts_lightning.data.order import STATE_VERSION, EvalBatches, Shares, StreamState, TrainStream
from ts_lightning.data.reader import Draws, ShardDataset, ShardReader
from ts_lightning.data.remote import Ahead, is_remote
from ts_lightning.data.sample import Sample
from ts_lightning.data.source import TRAIN_SHARDS, ShardSource, mixture_sha256, source_of

# Lightning's stages, and what they read: first what they can't do without
READS = {
    None: ("train", "val", "test", "predict"),
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class ShardDataModule(L.LightningDataModule):
    """Training, named validation and test suites, and prediction over WebDataset shards.

    One training batch is this rank's share of one global batch of `global_batch_size` rows, as micro-batches of
    `micro_batch_size`, dealt by length. A row is a question, or, with `questions_per_row`, up to so many questions of
    one record behind its pictures; the loss is the mean over the questions of the global batch. It depends on (`seed`,
    epoch, position) alone. Call `advance()` after every optimizer step and before a checkpoint is written. Evaluation
    batches hold `eval_batch_size` prompts, of which those that follow each other about one record's pictures are read
    at once.

    Args:
        train: Training records.
        mix: Several training sources by name in place of `train`; questions come in the shares of their `weight`.
        val: Validation suites by name.
        test: Test suites by name; `val` when None.
        predict: Records to answer; the validation suites when None.
        suites: Which of the suites to run (None: all).
        global_batch_size: Rows of one optimizer step over all devices; a multiple of
            `micro_batch_size` times the number of devices.
        micro_batch_size: Rows of one forward pass on one device in training.
        questions_per_row: Most questions of one record that are read at once in training: those of one task share a row
            and their pictures, with the loss and gradients of rows of their own. 1: every question has a row.
        join_rows: The rows of a micro-batch and one task are one row without padding, in which each sees itself alone;
            loss and gradients stay. Micro-batches get about as many tokens each.
        eval_batch_size: Questions of one forward pass in evaluation.
        num_workers: Loader processes of each rank.
        seed: Names the order of the training records.
        shuffle_window: Records are shuffled within windows of so many positions of the shuffled shards.
        max_bad_fraction: Share of unreadable records (of each source, seen by one rank) that is skipped, not fatal.
        encode: `encode(sample, for_generation)` -> row; `vlm.encode` of the trainer's module when None.
        pad_id: The padding token; `vlm.pad_id` when None.

    Raises:
        ValueError: In one line, for shards, sizes or names that can't be used.
    """

    def __init__(
        self,
        train: ShardSource | None = None,
        mix: dict[str, ShardSource] | None = None,
        val: dict[str, ShardSource] | None = None,
        test: dict[str, ShardSource] | None = None,
        predict: ShardSource | None = None,
        suites: list[str] | None = None,
        global_batch_size: int = 64,
        micro_batch_size: int = 8,
        questions_per_row: int = 1,
        join_rows: bool = False,
        eval_batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        shuffle_window: int = 16384,
        max_bad_fraction: float = 0.0,
        encode: Callable[..., dict[str, Any]] | None = None,
        pad_id: int | None = None,
    ) -> None:
        super().__init__()
        sizes = {"global_batch_size": global_batch_size, "micro_batch_size": micro_batch_size}
        sizes["questions_per_row"] = questions_per_row
        for name, size in {**sizes, "eval_batch_size": eval_batch_size, "shuffle_window": shuffle_window}.items():
            if size < 1:
                raise ValueError(f"data.{name}: seen {size}, expected at least 1")
        train, predict = (source_of(one) if one is not None else None for one in (train, predict))
        mix, val, test = ({k: source_of(one) for k, one in (named or {}).items()} for named in (mix, val, test))
        known = list(val | test)
        if unknown := [name for name in suites or [] if name not in known]:
            raise ValueError(f"data.suites: seen {unknown[0]!r}, expected some of {known}")
        chosen = known if suites is None else suites
        if train is not None and mix:
            raise ValueError("data.mix: seen it beside data.train, expected one of them")
        self._train = train
        self._training = {"train": train} if train is not None else {f"train.{k}": v for k, v in mix.items()}
        self.suites: dict[str, dict[str, ShardSource]] = {  # by kind and name, in the order of `dataloader_idx`
            kind: {name: self._named(source) for name, source in named.items() if name in chosen}
            for kind, named in (("val", val), ("test", test or val))
        }
        self.suites["predict"] = self.suites["val"] if predict is None else {"predict": predict}
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.questions_per_row = questions_per_row
        self.join_rows = join_rows
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.shuffle_window = shuffle_window
        self.max_bad_fraction = max_bad_fraction
        self._encode, self._pad_id = encode, pad_id
        self._loaded: dict[str, tuple[Manifest, BadRecords]] = {}
        self._state: StreamState | None = None
        self._served = 0
        self._stream: TrainStream | None = None
        self._loaders: list[TrainLoader | EvalLoader] = []
        self._ahead: Ahead | None = None

    def _named(self, source: ShardSource) -> ShardSource:
        if source.shards != TRAIN_SHARDS:
            return source
        if self._train is None:
            raise ValueError(f"data.val: seen {TRAIN_SHARDS} without data.train, expected data.train.shards")
        own = {name: getattr(source, name) for name in ("max_samples", "include_tags", "exclude_tags")}
        chosen = {name: getattr(self._train, name) if value is None else value for name, value in own.items()}
        return replace(source, shards=self._train.shards, **chosen)

    def suite_questions(self, kind: str, suite: str, number: int) -> list[Sample]:
        """The first questions of a suite of `kind` (val, test or predict), after setup."""
        return [*islice(ShardReader(self._loaded[f"{kind}.{suite}"][0]), number)]

    def prepare_data(self) -> None:
        """Write the index files once, before all ranks read them."""
        stage = None if self.trainer is None or self.trainer.state.fn is None else self.trainer.state.fn.value
        for source in self._sources(stage).values():
            source.load()

    def setup(self, stage: str | None = None) -> None:
        """Index what `stage` needs; everything that can be wrong with it is found here."""
        rank, world_size = self._rank()
        for name, source in self._sources(stage).items():
            if name not in self._loaded:
                manifest = source.load().in_rows(self.questions_per_row if name in self._training else 1)
                bad_records = BadRecords(manifest.num_samples, self.max_bad_fraction)
                bad_records.add(manifest.bad, log.warning if rank == 0 else log.debug)
                self._loaded[name] = manifest, bad_records
        if self._training and stage in (None, "fit"):
            self._stream = self._new_stream(world_size)
            module = getattr(self.trainer, "lightning_module", None)
            self._stream.repeats = getattr(module, "updates_per_batch", 1)
            self._resume()

    def _new_stream(self, world_size: int) -> TrainStream:
        step = self.micro_batch_size * world_size
        if self.global_batch_size % step:
            raise ValueError(
                f"data.global_batch_size: seen {self.global_batch_size}, expected a multiple of micro_batch_size * "
                f"devices = {self.micro_batch_size} * {world_size} = {step}"
            )
        manifests = [self._loaded[name][0] for name in self._training]
        total = sum(manifest.num_rows for manifest in manifests)
        if total < self.global_batch_size:
            raise ValueError(
                f"data.train: seen {total} rows, expected at least one global batch of "
                f"{self.global_batch_size} (global_batch_size)"
            )
        size, window = self.global_batch_size, self.shuffle_window
        if self._train is not None:
            fresh = StreamState(manifests[0].sha256, self.seed, shuffle_window=window)
            return TrainStream(manifests[0].shard_sizes, size, fresh, window)
        weights = [source.weight for source in self._training.values()]
        parts = list(zip(self._training, weights, [manifest.sha256 for manifest in manifests], strict=True))
        fresh = StreamState(mixture_sha256(parts), self.seed, shuffle_window=window)
        drawn = of_rows(weights, *zip(*((m.num_samples, m.num_rows) for m in manifests), strict=True))
        return MixedStream([manifest.shard_sizes for manifest in manifests], drawn, size, fresh, window)

    def advance(self) -> None:
        """Count one optimizer step as done: the state moves on by one global batch, the same on all ranks.

        Call it after the step and before anything saves a checkpoint: at the end of `training_step` or in a callback
        (a LightningModule's own `on_train_batch_end` comes after ModelCheckpoint's).
        """
        assert self._stream is not None
        if not getattr(self.trainer, "overfit_batches", 0):  # overfitting repeats the first batches
            self._stream.advance()

    def state_dict(self) -> dict[str, Any]:
        """{version, manifest_sha, seed, epoch, samples_consumed, shuffle_window}; empty where nothing is trained.

        In the middle of several updates on one batch also `served`: how many of them are done.
        """
        state = self._stream.state if self._stream is not None else self._state
        served = self._stream.served if self._stream is not None else self._served
        return {} if state is None else asdict(state) | ({"served": served} if served else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly behind the last counted batch; ValueError when the shards or the seed are other ones."""
        if state_dict.get("version") not in (1, STATE_VERSION):
            raise ValueError(f"data state: seen version {state_dict.get('version')}, expected {STATE_VERSION}")
        state_dict = {"served": 0, **state_dict}
        for name in ("epoch", "samples_consumed", "served"):
            if type(number := state_dict.get(name)) is not int or number < 0:
                raise ValueError(f"data state: seen {name} {str(number)[:40]!r}, expected a whole number from 0 on")
        self._served = state_dict.pop("served")
        self._state = StreamState(**state_dict | {"version": STATE_VERSION})
        self._resume()

    def train_dataloader(self) -> TrainLoader:
        """This rank's loader, from the state on.

        Under a trainer it goes on into the next epoch (the trainer stops after `len` batches), else it ends there.
        """
        if self._stream is None:
            raise ValueError("data.train: seen nothing to train on, expected train.shards (and setup('fit') called)")
        module = getattr(self.trainer, "lightning_module", None)
        prompts, ahead = (bool(getattr(module, name, False)) for name in ("trains_on_prompts", "draws_ahead"))
        accounts = [self._loaded[name][1] for name in self._training]
        encode, pad_id = self._encoder()
        encode = getattr(module, "prompt_encoder", lambda encode: encode)(encode)
        pack = None if self.questions_per_row == 1 else self._pack(encode, prompts)
        sources = [
            ShardDataset(self._loaded[name][0], encode, prompts, self._noise(source), pack, source.after_question)
            for name, source in self._training.items()
        ]
        draws, endless = Draws(sources), self.trainer is not None
        batches = Shares(self._stream, self.micro_batch_size, *self._rank(), endless, self._fetching(draws))
        if self.join_rows and (prompts or not getattr(encode, "joins", False)):
            why = (
                "training on prompts"
                if prompts
                else "a model with windows, pictures seen both ways or recurrent layers"
            )
            raise ValueError(f"data.join_rows: seen true for {why}, expected false")
        dealing = {"by_length": not prompts, "joined": self.join_rows, "look_ahead": ahead}
        loader = TrainLoader(draws, batches, self.num_workers, pad_id, accounts, **dealing)
        self._loaders.append(loader)
        return loader

    def val_dataloader(self) -> list[EvalLoader]:
        return self._eval_loaders("val")

    def test_dataloader(self) -> list[EvalLoader]:
        return self._eval_loaders("test")

    def predict_dataloader(self) -> list[EvalLoader]:
        return self._eval_loaders("predict")

    def teardown(self, stage: str | None = None) -> None:
        """End the workers of all loaders."""
        while self._loaders:
            self._loaders.pop().close()
        if self._ahead is not None:
            self._ahead.close()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move tensors; samples stay as they are (Lightning would copy every dataclass field by field)."""
        if isinstance(batch, torch.Tensor):
            return batch.to(device, non_blocking=True)
        if isinstance(batch, dict):
            return {k: self.transfer_batch_to_device(v, device, dataloader_idx) for k, v in batch.items()}
        if isinstance(batch, list):
            return [self.transfer_batch_to_device(v, device, dataloader_idx) for v in batch]
        return batch

    def _sources(self, stage: str | None) -> dict[str, ShardSource]:
        """What `stage` reads, by "KIND.SUITE"; ValueError where there is nothing for it."""
        named = {kind: {f"{kind}.{name}": one for name, one in suites.items()} for kind, suites in self.suites.items()}
        named["train"] = self._training
        needed, *more = READS[stage]
        if stage is not None and not named[needed]:
            raise ValueError(f"data.{needed}: seen none, expected shards for {stage}")
        return {name: source for kind in (needed, *more) for name, source in named[kind].items()}

    def _eval_loaders(self, kind: str) -> list[EvalLoader]:
        return [self._eval_loader(f"{kind}.{name}", source) for name, source in self.suites[kind].items()]

    def _eval_loader(self, name: str, source: ShardSource) -> EvalLoader:
        manifest, bad_records = self._loaded[name]
        encode, pad_id = self._encoder()
        batches = EvalBatches(manifest.num_samples, self.eval_batch_size, *self._rank())
        pack = getattr(encode, "pack", None) if getattr(encode, "packs", False) else None
        dataset = ShardDataset(manifest, encode, True, self._noise(source), pack, source.after_question)
        loader = EvalLoader(dataset, batches, self.num_workers, pad_id, bad_records)
        self._loaders.append(loader)
        return loader

    def _encoder(self) -> tuple[Callable[..., dict[str, Any]], int]:
        module = None if self.trainer is None else self.trainer.lightning_module
        vlm = getattr(module, "vlm", None)
        # Where workers are not forked the row maker is pickled: the module's encoder is small, its vlm is not.
        encode = self._encode or getattr(module, "encoder", None) or getattr(vlm, "encode", None)
        pad_id = getattr(vlm, "pad_id", None) if self._pad_id is None else self._pad_id
        if encode is None or pad_id is None:
            raise ValueError("data.encode: seen no encode or pad_id, expected arguments or a trainer with a vlm")
        return encode, pad_id

    def _fetching(self, draws: Draws) -> Callable[[np.ndarray], None] | None:
        """What fetches the shards of rows before they are read; None where all are on this machine."""
        if not any(is_remote(shard.path) for one in draws.sources for shard in one.reader.manifest.shards):
            return None
        self._ahead = ahead = Ahead()
        return lambda rows: ahead.want(draws.shards(rows))

    def _pack(self, encode: Any, prompts: bool) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
        """What puts several questions into a row; ValueError where they can't be."""
        seen = f"data.questions_per_row: seen {self.questions_per_row}"
        if prompts:
            raise ValueError(f"{seen} for training on prompts, expected 1 (their completions share the prompt already)")
        if not getattr(encode, "packs", False):
            raise ValueError(f"{seen} for a model whose questions can't share a row, expected 1")
        return encode.pack

    def _noise(self, source: ShardSource) -> NoisyBoxes | None:
        return NoisyBoxes(source.box_noise, self.seed) if source.box_noise else None

    def _rank(self) -> tuple[int, int]:
        """(rank, number of ranks) that share the data; tensor-parallel ranks count once."""
        sharing = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return (0, 1) if sharing is None else (sharing["rank"], sharing["num_replicas"])

    def _resume(self) -> None:
        if self._stream is None or self._state is None:
            return
        fresh = self._stream.state
        if self._state.manifest_sha != fresh.manifest_sha:
            raise ValueError(
                f"data.train: seen shards {fresh.manifest_sha[:12]}, expected {self._state.manifest_sha[:12]} as in "
                "the checkpoint (to train on other data start from its weights with init_from)"
            )
        if self._state.seed != self.seed:
            raise ValueError(f"data.seed: seen {self.seed}, expected {self._state.seed} as in the checkpoint")
        window = self._state.shuffle_window
        if window not in (None, self.shuffle_window):
            raise ValueError(f"data.shuffle_window: seen {self.shuffle_window}, expected {window} as in the checkpoint")
        if self._served and self._served >= self._stream.repeats:
            raise ValueError(
                f"data state: seen {self._served} updates on one batch, expected fewer than {self._stream.repeats} "
                "(num_iterations or num_mini_batches is lower than in the checkpoint)"
            )
        self._state.shuffle_window = self.shuffle_window
        self._stream.state, self._stream.served = self._state, self._served
