"""The command `ts-lightning {fit,validate,test,predict}`."""

import json
import logging
import os
import re
import signal
import sys
import warnings
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentError, DefaultHelpFormatter, Namespace
from lightning.fabric.plugins import CheckpointIO as LightningCheckpointIO
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ts_lightning.cli import DEBUG_VARIABLE, user_errors
from ts_lightning.cli.configurations import named_configurations, verb_description
from ts_lightning.cli.nearest import nearest
from ts_lightning.data.loader import lost_worker
from ts_lightning.runs import CheckpointIO
from ts_lightning.runs.allowed_classes import refuse_code
from ts_lightning.runs.class_paths import FLAG, allowing, not_from_a_file, one_line, take_flag
from ts_lightning.runs.load import AnswersIO, answering, folder_model, run_checkpoint, stored_data, stored_model
from ts_lightning.runs.metrics_log import MetricsLog
from ts_lightning.runs.resume import Finished, begin_run, first_process, set_aside
from ts_lightning.runs.run_folder import check_folder, check_writers
from ts_lightning.runs.run_keeper import RunKeeper
from ts_lightning.runs.run_lock import RunLock
from ts_lightning.runs.signals import StopOnSignal
from ts_lightning.runs.watchdog import Watchdog
from ts_lightning.runs.yaml_loader import restrict_yaml
from ts_lightning.training import BaseModule, PredictionWriter, Progress

DATA = {"class_path": "ts_lightning.data.ShardDataModule"}  # where nothing names another: --data.init_args.val alone


class _AsWritten(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """jsonargparse's help, with the lines of descriptions as they are."""


class TSLightningCLI(LightningCLI):
    """LightningCLI with checkpoints that are whole, runs that go on by themselves, evaluation by checkpoint.

    `default_root_dir` gets `config.yaml` (resolved), `metrics.jsonl` with its `metrics.csv`, and `checkpoints/` of
    `fit`; the other commands write into a folder of their name there, `predict` its predictions.jsonl beside it.
    """

    keeper: RunKeeper | None = None
    lock: RunLock | None = None
    metrics: MetricsLog | None = None
    verbose = True

    def __init__(self, args: Sequence[str]) -> None:
        args = _with_run_checkpoint(list(args))
        self.ckpt_path = _option(args, "--ckpt_path")
        super().__init__(
            BaseModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=_WriteConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "prog": "ts-lightning",
                "formatter_class": _AsWritten,
                "exit_on_error": False,
                **{name: {"exit_on_error": False} for name in self.subcommands()},
            },
            trainer_defaults={
                "default_root_dir": "outputs",
                "use_distributed_sampler": False,
                "enable_model_summary": False,  # of a row; `Progress` says it in a line
            },
            args=with_stored_config(args),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, without the argument that lets a configuration unpickle a checkpoint."""
        return {name: skipped | {"weights_only"} for name, skipped in LightningCLI.subcommands().items()}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        text = "Let configurations and checkpoints name classes of this package too; may be repeated; never in a file."
        parser.add_argument(FLAG, type=not_from_a_file, default=SUPPRESS, metavar="PACKAGE", help=text)
        if subcommand == "fit":
            text = (
                "Go on from the newest whole checkpoint in <default_root_dir>/checkpoints; false: start anew beside it."
            )
            parser.add_argument("--resume", type=bool, default=True, help=text)
        else:
            text = "Whose task answers: given (the record's), auto (the task router's), or one for every question."
            parser.add_argument("--task", type=str, default="given", help=text)
            text = "Answer with this mixing weight, 0 to 1, in place of the learned one."
            parser.add_argument("--alpha", type=float | None, default=None, help=text)
        text = "End all ranks after so many seconds without a step, a batch of an evaluation or a save; 0: never."
        parser.add_argument("--watchdog", type=float, default=1800.0, help=text)
        if subcommand in ("fit", "predict"):
            when = " at every validation" if subcommand == "fit" else ""
            text = f"Draw answers with their boxes into <default_root_dir>/pictures{when}: so many of each suite."
            parser.add_argument("--pictures", nargs="?", type=int, const=16, default=0, help=f"{text} 16 if bare.")
        parser.usage = f"ts-lightning {subcommand} [-c NAME_OR_FILE ...] [options]"
        parser.description = verb_description(subcommand)
        self.options = [f"--{name}" for name in parser.get_defaults(skip_validation=True).keys()]  # noqa: SIM118
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning's, an unknown option answered with the nearest; then nothing in the configuration is code."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            if base := re.match(
                r"[^']*'?(model|data)'?.*(BaseModule|LightningDataModule)' is not allowed", str(error), re.S
            ):
                expected = "a whole configuration: -c fit/NAME.yaml before yours, or `over: fit/NAME.yaml` in it"
                raise ValueError(f"{base[1]}: seen no class_path, expected {expected}") from None
            if (unknown := re.search(r"unrecognized arguments: (--[^\s=]+)", str(error))) is None:
                raise
            raise ValueError(
                f"{unknown[1]}: seen an unknown option, expected {nearest(unknown[1], self.options)}"
            ) from None
        refuse_code(self.config[self.config["subcommand"]])

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would put the checkpoint's settings over the given ones; see with_stored_config."""

    def before_instantiate_classes(self) -> None:
        """Refuse a checkpoint that a configuration names (it is the command line's to say), and places of others."""
        seen = self._given("ckpt_path")
        if seen is not None and str(seen) != self.ckpt_path:
            expected = "expected --ckpt_path on the command line"
            raise ValueError(f"ckpt_path: seen {str(seen)!r} in a configuration, {expected}")
        trainer = self._given("trainer")
        root = Path(trainer["default_root_dir"])
        for logger in _as_list(trainer.get("logger")):
            place = str(logger.get("init_args.save_dir")) if isinstance(logger, Namespace) else ""
            if place == "." or place.startswith("./"):  # W&B's default, and the overlays'
                logger["init_args.save_dir"] = str(root / place)
        check_writers(trainer, root)
        if first_process() and not trainer.get("fast_dev_run"):
            check_folder(root)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init[str(self.subcommand)]["trainer"]
        trainer = super().instantiate_trainer(
            plugins=_with_our_io(_as_list(config.get("plugins")), self.subcommand == "fit"),
            logger=self._loggers(config["default_root_dir"], config.get("logger"), config.get("fast_dev_run")),
            callbacks=_as_list(config.get("callbacks")) + self._callbacks(),
            **kwargs,
        )
        reader = type(trainer.strategy).load_checkpoint
        if reader is not Strategy.load_checkpoint and reader.__module__.startswith("lightning."):
            expected = "expected ts_lightning.training's FSDP2Strategy or ZeRO2Strategy, or one such as ddp"
            name = type(trainer.strategy).__name__
            raise ValueError(f"trainer.strategy: seen {name}, which may unpickle a checkpoint, {expected}")
        return trainer

    def _loggers(self, root: str, given: Any, fast_dev_run: Any) -> Any:
        """The metrics' log always, other loggers beside it; only `logger: false` switches it off."""
        if given is False:
            return False
        others = [] if given in (None, True) else _as_list(given)
        if any(isinstance(logger, CSVLogger) for logger in others):
            return others
        if self.subcommand == "fit" and not fast_dev_run:
            self.lock = RunLock(root)
            self.metrics = MetricsLog(root, self.lock)
            return [self.metrics, *others]
        logger = CSVLogger(root, name="", version="" if self.subcommand == "fit" else self.subcommand)
        if not fast_dev_run and first_process():
            set_aside(Path(logger.log_dir) / "metrics.csv")
        return [logger, *others]

    def _callbacks(self) -> list[L.Callback]:
        trainer = self.config_init[str(self.subcommand)]["trainer"]
        root, seconds = Path(trainer["default_root_dir"]), self._given("watchdog")
        if self.subcommand != "fit":
            root = root / str(self.subcommand)
        common: list[L.Callback] = []
        if seconds and not trainer.get("fast_dev_run"):
            common.append(Watchdog(root, seconds))
        own = any(isinstance(one, ProgressBar) for one in _as_list(trainer.get("callbacks")))
        if trainer.get("enable_progress_bar") is not False and not own:
            common.append(Progress())
        if self.subcommand in ("fit", "predict") and (number := self._given("pictures")):
            from ts_lightning.reports.pictures import PredictionPictures  # Pillow's drawing, asked for by few

            common.append(PredictionPictures(number))
        if self.subcommand == "fit" and not trainer.get("fast_dev_run"):
            stop, self.keeper = StopOnSignal(root / "checkpoints"), RunKeeper(self.lock or RunLock(root), self.metrics)
            stop.install()
            return [self.keeper, stop, *common]
        return [PredictionWriter(), *common] if self.subcommand == "predict" else common

    def _given(self, name: str) -> Any:
        """The value of an option of the subcommand."""
        return self.config[str(self.subcommand)].get(name)

    def before_fit(self) -> None:
        """Find what the run goes on from."""
        if self.keeper is None:
            return
        text = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, format="yaml")
        self.keeper.config = yaml.safe_load(text)["fit"]
        given, root = self.config_init["fit"], Path(self.config_init["fit"]["trainer"]["default_root_dir"])
        start = begin_run(root, self.keeper.lock, self.keeper.config, given.get("ckpt_path"), self._given("resume"))
        self.keeper.start, given["ckpt_path"] = start, start.ckpt_path

    def before_validate(self) -> None:
        """The figures are printed by `after_validate`: Lightning's table cuts their names."""
        self.verbose = bool(self.config_init[str(self.subcommand)].get("verbose", True))
        self.config_init[str(self.subcommand)]["verbose"] = False

    before_test = before_validate

    def after_validate(self) -> None:
        """The figures by whole names, and the rule behind them."""
        if self.trainer.is_global_zero:
            if self.verbose:
                print("\n".join(figures(self.trainer.callback_metrics)))
            print("acc50: a box is right at IoU >= 0.5; a missing or unparsable one is wrong, and counts 0 in miou")

    after_test = after_validate

    def before_predict(self) -> None:
        """The answers are in a file; Lightning would hold all of them in memory, too."""
        self.config_init["predict"]["return_predictions"] = False

    def after_predict(self) -> None:
        """Say where the answers are."""
        if self.trainer.is_global_zero:
            print(f"predictions: {self.config_init['predict']['trainer']['default_root_dir']}/predictions.jsonl")

    def after_instantiate_classes(self) -> None:
        if self.subcommand != "fit":
            self.model.answer_as(self._given("task"), self._given("alpha"))


def figures(metrics: Mapping[str, Any]) -> list[str]:
    """A line a figure; those of a suite's only subtask are the suite's own, and left out."""
    subtasks: dict[str, set[str]] = {}
    for kind, suite, *rest in (name.split("/") for name in metrics):
        subtasks.setdefault(f"{kind}/{suite}", set()).update(rest[:-1])
    shown = [name for name in metrics if name.count("/") < 3 or len(subtasks["/".join(name.split("/")[:2])]) > 1]
    wide = max(map(len, shown), default=0) + 2
    return [f"{name:<{wide}}{float(metrics[name]):.4f}" for name in shown]


class _WriteConfig(SaveConfigCallback):
    """Lightning's, but a fit that is refused leaves the config.yaml of the run that is there."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")


def with_stored_config(args: Sequence[str]) -> list[str]:
    """`args` with the module and the data of their `--ckpt_path` put in front, as the weakest configuration.

    So `validate --ckpt_path X` needs nothing else, and whatever is given (-c, dotted overrides) goes over it.
    """
    args = list(args)
    path = _option(args, "--ckpt_path")
    if path == "best" or (path in ("last", "hpc") and args[:1] != ["fit"]):
        expected = "expected a file or a folder (which one was best is not known outside of the run that made it)"
        raise ValueError(f"--ckpt_path: seen {path!r}, {expected}")
    if path is not None and "://" in path:
        raise ValueError(f"--ckpt_path: seen the URL {path}, expected a file or a folder: fetch it first")
    if path is None or not args or args[0] not in TSLightningCLI.subcommands() or path in ("last", "hpc", "null"):
        return args
    if Path(path).is_dir():
        return _with_folder(args, path)
    checkpoint = CheckpointIO().load_checkpoint(path)
    model = stored_model(checkpoint, path)
    stored = {"model": model if args[0] == "fit" else answering(model), "data": DATA}
    if data := stored_data(checkpoint, path):
        stored["data"] = data
    return [args[0], "--config", json.dumps(stored), *args[1:]]


def _with_run_checkpoint(args: list[str]) -> list[str]:
    """`args`, with a run's folder as `--ckpt_path` replaced by its last checkpoint."""
    path = _option(args, "--ckpt_path")
    last = None if path is None else str(run_checkpoint(path))
    return args if last == path else [*_without(args, "--ckpt_path"), f"--ckpt_path={last}"]


def _with_folder(args: list[str], folder: str) -> list[str]:
    """A package, an adapter or a standalone model in place of a checkpoint: Lightning is given the model alone."""
    if args[0] == "fit":
        expected = "expected a checkpoint (the vlm's init_from starts from a folder)"
        raise ValueError(f"--ckpt_path: seen the folder {folder}, {expected}")
    rest = _without(args, "--ckpt_path")[1:]
    return [args[0], "--config", json.dumps({"model": folder_model(folder), "data": DATA}), *rest]


def _with_our_io(plugins: list[Any], trains: bool) -> list[Any]:
    """The plugins with our CheckpointIO: Lightning's unpickle whatever a URL or `weights_only: false` leads to."""
    for plugin in plugins:
        if isinstance(plugin, LightningCheckpointIO) and not isinstance(plugin, CheckpointIO):
            expected = "expected no CheckpointIO: checkpoints are read and written by ts_lightning's alone"
            raise ValueError(f"trainer.plugins: seen {type(plugin).__name__}, {expected}")
    others = [plugin for plugin in plugins if not isinstance(plugin, CheckpointIO)]
    return [*others, CheckpointIO() if trains else AnswersIO()]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _option(args: list[str], name: str) -> str | None:
    """The value of the last `name VALUE` or `name=VALUE`."""
    value = None
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(name + "="):
            value = arg.partition("=")[2]
    return value


def _without(args: list[str], name: str) -> list[str]:
    """`args` without any `name VALUE` and `name=VALUE`."""
    values = {i + 1 for i, arg in enumerate(args) if arg == name}
    return [arg for i, arg in enumerate(args) if i not in values and arg != name and not arg.startswith(name + "=")]


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; a user's error is one line on standard error and exit status 2, a killed loader process is 1.

    TS_LIGHTNING_DEBUG=1 shows the traceback instead.
    """
    _quiet()
    restrict_yaml()
    rest: list[str] = []
    try:
        rest, names = take_flag(named_configurations(sys.argv[1:] if args is None else args))
        with allowing(names):
            _of_one_verb(rest)(rest)
    except Finished as finished:
        if first_process():
            print(finished, flush=True)
    except SIGTERMException:
        when = "the first step, nothing was saved" if rest[:1] == ["fit"] else "the end"
        print(f"SIGTERM: stopped before {when}", flush=True)
        return 128 + signal.SIGTERM
    except Exception as error:
        line = lost_worker(error)  # torch raises it wherever the main process is when the signal comes
        if os.environ.get(DEBUG_VARIABLE) or not (line or isinstance(error, user_errors())):
            raise
        print(f"ts-lightning: error: {line or _with_checkpoint(one_line(error), rest)}", file=sys.stderr)
        return 1 if line else 2
    return 0


def _with_checkpoint(line: str, args: Sequence[str]) -> str:
    """A refusal with the name of the checkpoint that the settings came from."""
    path = _option(list(args), "--ckpt_path")
    return line if path is None or path in line else f"{line} (with --ckpt_path {path})"


def _of_one_verb(words: Sequence[str]) -> type[TSLightningCLI]:
    """The command line of the verb that is asked for: to build the others' parsers takes most of a second."""
    known = TSLightningCLI.subcommands()
    asked = {name: skipped for name, skipped in known.items() if name in words[:1]}

    class OneVerb(TSLightningCLI):
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return asked or known

    return OneVerb


def _quiet() -> None:
    """Drop advice that does not fit: our loaders are sized and sharded on purpose, tiny ones need no workers."""
    advice = (
        ".*LightningCLI's args parameter.*",
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*Total length of .* across ranks is zero.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*recommended to use .self.log.*sync_dist=True.*",  # our metrics are reduced already
        ".*`srun` command is available.*",
        ".*is smaller than the logging interval.*",  # an epoch's batches: steps are counted over epochs
    )
    for text in advice:
        warnings.filterwarnings("ignore", message=text)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
