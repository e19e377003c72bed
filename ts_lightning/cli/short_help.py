"""The help of `fit`, `validate`, `test` and `predict`: what most runs are told; `--help=all` has Lightning's own."""

from ts_lightning.cli.configurations import verb_description

ALL = "--help=all"
_RUN = {
    "-c NAME_OR_FILE": "a configuration, shipped or yours; several lie one over the other, options over all",
    "--trainer.default_root_dir DIR": "where the run writes",
    "--trainer.accelerator NAME": "cpu, gpu or auto",
    "--trainer.devices N": "how many of them",
    "--trainer.precision NAME": "bf16-mixed on GPUs that have it, 32-true",
}
_ASK = {
    "--ckpt_path FILE_OR_FOLDER": "whose model and data: a checkpoint, a run, a package, an adapter, a plain model",
    "--model.max_new_tokens N": "longest answer",
    "--data.eval_batch_size N": "questions at once",
    "--task TASK": "whose path answers: given (the record's), auto (the router's), or one for all",
    "--alpha X": "the mixing weight, 0 to 1, in place of the learned one",
}
_LAST = {
    "--seed_everything N": "of everything that is drawn",
    "--watchdog SECONDS": "end the run after so long without a step; 0: never",
    "--allow_classes PACKAGE": "configurations may name classes of your package",
    "--print_config": "the whole run as YAML, and nothing else is done",
    "--model.help CLASS": "the arguments of a class: ts_lightning.training.StepwiseSFT; --data.help as well",
    ALL: "every option",
}
OPTIONS = {
    "fit": {
        **_RUN,
        "--trainer.max_steps N": "steps of the optimizer",
        "--trainer.val_check_interval N": "steps from one validation to the next",
        "--model.vlm.backbone.pretrained FOLDER": "your model, in the configuration's class and dtype",
        "--model.vlm.every N": "a twin expert in every Nth decoder layer",
        "--model.optimizer.lr X": "the rate",
        "--model.max_new_tokens N": "longest answer in validation",
        "--data.train.shards PATTERN": "what is trained on",
        "--data.val '{NAME: {shards: PATTERN}}'": "validation suites",
        "--data.global_batch_size N": "rows of a step over all devices",
        "--data.micro_batch_size N": "rows of one forward pass on one device",
        "--ckpt_path FILE": "go on from this checkpoint",
        "--resume false": "start anew where the folder has a run; otherwise it goes on",
        "--pictures [N]": "draw the first N questions of each suite at every validation",
        **_LAST,
    },
    "validate": {**_RUN, **_ASK, "--data.val '{NAME: {shards: PATTERN}}'": "the suites", **_LAST},
    "test": {**_RUN, **_ASK, "--data.test '{NAME: {shards: PATTERN}}'": "the suites", **_LAST},
    "predict": {
        **_RUN,
        **_ASK,
        "--data.predict.shards PATTERN": "the questions",
        "--pictures [N]": "draw the first N answers of each suite",
        **_LAST,
    },
}


def short_help(verb: str) -> str:
    """An example, the shipped configurations, and a line for each option that most runs need."""
    wide = max(map(len, OPTIONS[verb])) + 2
    lines = [f"  {option:<{wide}}{text}" for option, text in OPTIONS[verb].items()]
    usage = f"usage: ts-lightning {verb} [-c NAME_OR_FILE ...] [options]"
    return "\n".join([usage, "", verb_description(verb), "", "options:", *lines])
