"""What GRPO adds on the toy world's multi-image tasks: SFT, then GRPO against SFT continued for the same wall time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.experiments.fit_once import fit_once
from ts_lightning.cli.configurations import read_configuration
from ts_lightning.data import ShardDataModule, ShardSource
from ts_lightning.metrics.intervals import interval, paired
from ts_lightning.metrics.protocols import make_protocol
from ts_lightning.metrics.record import Record
from ts_lightning.reports.certificate import certify_checkpoint
from ts_lightning.runs.load import load
from ts_lightning.runs.run import quiet_trainer

AROUND = 20  # seconds of a run beside its training: building, the last step, the last checkpoint
START = (0.2, 0.7)  # outside there is nothing to reward, or little left to gain
IMAGE = "ts_lightning.rl.image_reward"
RUNS = {"more_sft": "SFT continued", "grpo": "GRPO", "grpo_without_image": "GRPO without the image reward"}


def learning_table(
    configs: Path,
    shards: Path,
    out: Path,
    seeds: Sequence[int],
    minutes: float,
    sft_steps: int,
    questions: int,
    **options: Any,
) -> str:
    """Every run of every seed, the table, `out/grpo.json` and `out/grpo.md`; returns the table.

    `options` are those of GRPO's runs: `algorithm`, `iterations`, `thought`. Restartable: finished runs are not
    repeated, so other options want another folder. ValueError where SFT's
    Acc@0.5 is outside of 0.2 to 0.7: GRPO would have nothing to start from, or to gain.
    """
    base = fit(configs / "toy_mirg_base.yaml", shards, out / "base", 0, {})  # every seed's pre-trained model
    rows, right = [], {name: list[float]() for name in ("sft", *RUNS)}
    for seed in seeds:
        root = out / f"seed{seed}"
        given = {"max_steps": sft_steps, "init_from": base["checkpoint"]}
        sft = fit(configs / "toy_mirg_sft.yaml", shards, root / "sft", seed, given)
        start = answers(sft["checkpoint"], shards, root / "sft", questions)
        share = sum(start) / len(start)
        if not START[0] <= share <= START[1]:
            raise ValueError(
                f"seed {seed}: seen SFT's Acc@0.5 {share:.3f}, expected {START[0]} to {START[1]} (--sft-steps)"
            )
        row: dict[str, Any] = {"seed": seed, "sft": {"acc50": share, "seconds": sft["seconds"]}}
        right["sft"] += start
        scored = {}
        for name in ("grpo", "grpo_without_image", "more_sft"):
            config = configs / ("toy_mirg_sft.yaml" if name == "more_sft" else "toy_mirg_grpo.yaml")
            given = {"init_from": sft["checkpoint"], "minutes": minutes, "no_image": name == "grpo_without_image"}
            given |= {} if name == "more_sft" else options
            if name == "more_sft":  # a whole schedule of as many steps as fit into GRPO's time
                given["max_steps"] = round(row["grpo"]["seconds"] * sft["steps"] / sft["seconds"])
            run = fit(config, shards, root / name, seed, given)
            scored[name] = answers(run["checkpoint"], shards, root / name, questions)
            right[name] += scored[name]
            proof = certify_checkpoint(run["checkpoint"], f"{shards}/val_understanding-*.tar", max_samples=64)
            row[name] = {"acc50": sum(scored[name]) / questions, "seconds": run["seconds"], "steps": run["steps"]}
            row[name]["understanding_bitwise_equal"] = proof["logits"]["bitwise_equal"]
        for name in ("grpo", "grpo_without_image"):
            row[name]["against_more_sft"] = paired(scored["more_sft"], scored[name])._asdict()
        rows.append(row)
    gains = {name: paired(right["more_sft"], right[name])._asdict() for name in ("grpo", "grpo_without_image")}
    over = {name: paired(right["sft"], right[name])._asdict() for name in RUNS}
    result = {"questions": questions, "minutes": minutes, "rows": rows, "all_seeds": gains, "over_sft": over}
    table = as_table(result, {name: interval(values) for name, values in right.items()})
    (out / "grpo.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "grpo.md").write_text(table + "\n")
    return table


def fit(config: Path, shards: Path, root: Path, seed: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """One run of a configuration, or what an earlier call has of it; its checkpoint, steps and seconds.

    A run that was stopped begins anew: its time is compared with others'.

    given: `init_from`; `max_steps` in place of the configuration's; `minutes` at most, for a run behind SFT; `no_image`
    (reward); for GRPO `algorithm` (a class of ts_lightning.losses), `iterations`, and `thought` (reward).
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "given.yaml").write_text(json.dumps(settings(config, shards, root, seed, given)))
    return fit_once(root / "given.yaml", root, anew=True)


def settings(config: Path, shards: Path, root: Path, seed: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with this run's folder, data, seed and length."""
    made = read_configuration(str(config))
    trainer, model, data = made["trainer"], made["model"]["init_args"], made["data"]["init_args"]
    made["seed_everything"] = data["seed"] = seed
    trainer |= {"default_root_dir": str(root), "limit_val_batches": 0, "enable_progress_bar": False}
    data["train"]["shards"] = f"{shards}/{Path(data['train']['shards']).name}"
    for source in data["val"].values():
        source["shards"] = f"{shards}/{Path(source['shards']).name}"
    model["vlm"]["init_args"]["init_from"] = given.get("init_from")
    if "max_steps" in given:
        trainer["max_steps"] = given["max_steps"]
    if "minutes" in given:
        trainer["max_time"] = {"seconds": int(60 * given["minutes"]) - AROUND}
        model["lr_scheduler"]["init_args"]["warmup_steps"] = 10
        if made["model"]["class_path"].endswith("StepwiseSFT"):
            model["optimizer"]["init_args"]["lr"] *= 0.25  # it has been through a whole schedule
    if "algorithm" in given:
        model["algorithm"]["class_path"] = f"ts_lightning.losses.{given['algorithm']}"
    if "iterations" in given:
        model["num_iterations"] = given["iterations"]
    for callback in trainer["callbacks"]:
        if callback["class_path"].endswith("ModelCheckpoint"):
            callback["init_args"]["every_n_train_steps"] = 5
        elif callback["class_path"].endswith("RolloutCallback"):
            callback["init_args"]["seed"] = seed
            names = ["format", *([] if given.get("no_image") else ["image"]), "object"]
            names += ["thought"] if given.get("thought") else []
            if given.get("no_image") or given.get("thought"):
                callback["init_args"]["rewards"] = {name: IMAGE.replace("image", name) for name in names}
    return made


def answers(checkpoint: str, shards: Path, root: Path, questions: int, suite: str = "val_mirg") -> list[float]:
    """1 for each held-out question whose box has an IoU of at least 0.5 with the truth, else 0; kept in a file."""
    path = root / f"right-{suite}-{questions}.json"
    if path.is_file():
        return json.loads(path.read_text())
    source = ShardSource(f"{shards}/{suite}*.tar", max_samples=questions)
    records = quiet_trainer().predict(load(checkpoint), ShardDataModule(predict=source, eval_batch_size=64))
    found = [r for part in records or [] for r in part]  # type: ignore[union-attr]
    if len(found) < questions:
        raise ValueError(f"{shards}: seen {len(found)} held-out questions, expected {questions} (--questions)")
    protocol = make_protocol("rec")
    protocol.update([Record.from_json(values) for values in found])
    right = protocol.values(protocol.rows())[1]
    path.write_text(json.dumps(right) + "\n")
    return right


def as_table(result: Mapping[str, Any], intervals: Mapping[str, tuple[float, float]]) -> str:
    """Acc@0.5 of every run and its gain over SFT continued for the same time, with 95% paired intervals."""
    lines = [
        f"{result['questions']} held-out questions, at most {result['minutes']:g} minutes a run.",
        "",
        "| seed | SFT | SFT continued | GRPO | gain | without image reward | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [f"{row[name]['acc50']:.3f}" for name in ("sft", "more_sft", "grpo", "grpo_without_image")]
        gains = [_gain(row[name]["against_more_sft"]) for name in ("grpo", "grpo_without_image")]
        lines.append(f"| {row['seed']} | {cells[0]} | {cells[1]} | {cells[2]} | {gains[0]} | {cells[3]} | {gains[1]} |")
    gains = [_gain(result["all_seeds"][name]) for name in ("grpo", "grpo_without_image")]
    spans = {name: f"{low:.3f} to {high:.3f}" for name, (low, high) in intervals.items()}
    lines.append(
        f"| all | {spans['sft']} | {spans['more_sft']} | {spans['grpo']} | {gains[0]} | "
        f"{spans['grpo_without_image']} | {gains[1]} |"
    )
    seconds = {name: [row[name]["seconds"] for row in result["rows"]] for name in RUNS}
    lines.append("")
    for name, title in RUNS.items():
        span = f"{min(seconds[name]):.0f} to {max(seconds[name]):.0f} s"
        lines.append(f"{title}: {span} a run, {_gain(result['over_sft'][name])} over SFT where it started.")
    equal = all(row[name]["understanding_bitwise_equal"] for row in result["rows"] for name in RUNS)
    return "\n".join([*lines, "", f"Understanding logits bitwise equal to the base's in every run: {equal}"])


def _gain(difference: Mapping[str, float]) -> str:
    return f"{100 * difference['mean']:+.1f} ({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})"
