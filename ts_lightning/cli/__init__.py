"""The command `ts-lightning`: a verb is a function of its name, and the signature is what it takes.

Nothing heavy is imported before a verb is known and its options are right.
"""

import gc
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from ts_lightning import __version__
from ts_lightning.cli.nearest import nearest

DEBUG_VARIABLE = "TS_LIGHTNING_DEBUG"
ABOUT = "Teach a pre-trained vision-language model to answer with boxes without forgetting what it knew."
# A verb of one word `a` is the function `a` of cli/a.py; `data a` that of cli/data/a.py; `data a b` is `b` there.
VERBS = {
    "quickstart": "the whole path on the toy world: score the base, tune it, score again, certify, report",
    "init": "look at your model and your data, and write a configuration that trains",
    "plan": "what tuning takes of a card, from config.json alone, and the largest form that fits",
    "fit": "train by a configuration",
    "validate": "the figures of the validation suites",
    "test": "validate on the test suites of a configuration",
    "predict": "answers as JSON lines, pictures of them on demand",
    "evaluate": "answer and score suites, or score stored answers: one report",
    "compare": "two runs with a paired test, or many in a table",
    "certify": "prove that understanding is untouched, bit by bit",
    "conflicts": "what several packages on one base weigh, and whether one changes another's answers",
    "export": "a checkpoint as a package, an adapter, a standalone model, and back",
    "assemble": "a LLaVA out of a language model and a vision tower",
    "ask": "one question about a picture: the answer, its boxes, a drawing",
    "serve": "a local page, and a server for the clients of OpenAI's protocol",
    "submit": "a job for SLURM",
    "data convert": "a data set's own files into shards",
    "data generate scout": "questions with stepwise grounded answers from annotated pictures",
    "data generate gic": "grounded captions",
    "data generate region-chat": "dialogues about regions",
    "data generate mirg": "trajectories over several pictures",
    "data index": "index shards and check every record",
    "data check": "in which frame the boxes of shards were labelled",
    "data export": "shards into the files of other tools",
    "data lmms-eval": "a task folder of lmms-eval, scored by our protocols",
    "data report": "the quality of generated shards, with samples to mark by hand",
    "data toy": "render the toy world",
}
LIGHTNING = ("fit", "validate", "test", "predict")
# The first parts of their options: a wrong one is answered before Lightning is imported, which takes seconds.
COMMON = ("config", "help", "print_config", "seed_everything", "trainer", "model", "data", "optimizer", "lr_scheduler")
OPTIONS = {
    "fit": ("ckpt_path", "resume", "pictures", "watchdog", "allow_classes"),
    "validate": ("ckpt_path", "verbose", "task", "alpha", "watchdog", "allow_classes"),
    "test": ("ckpt_path", "verbose", "task", "alpha", "watchdog", "allow_classes"),
    "predict": ("ckpt_path", "return_predictions", "task", "alpha", "pictures", "watchdog", "allow_classes"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one verb; a user's error is one line on standard error and exit status 2.

    TS_LIGHTNING_DEBUG=1 shows the traceback instead.
    """
    try:
        return run(list(sys.argv[1:] if args is None else args))
    except user_errors() as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        for note in getattr(error, "__notes__", ()):
            print(note)
        print(f"ts-lightning: error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2


def run(words: list[str]) -> int:
    """The verb that `words` begin with, on the rest of them; ValueError for an unknown one."""
    if words[:1] == ["--version"]:
        print(f"ts-lightning {__version__}")
        return 0
    verb, rest = split_verb(words)
    if verb in LIGHTNING:
        if {"-h", "--help"} & set(rest):
            from ts_lightning.cli.short_help import short_help

            print(short_help(verb))
            return 0
        rest = ["--help" if word == "--help=all" else word for word in rest]
        check_options(verb, rest)
        with quick_imports():
            from ts_lightning.cli import lightning
        return lightning.main([verb, *rest])
    if verb not in VERBS:
        return listing(verb, rest)
    name = verb.split()[-1].replace("-", "_")
    with quick_imports():
        from ts_lightning.cli.parsing import call

        module = import_module(".".join([__name__, *verb.replace("-", "_").split()[:2]]))
    with allowed_classes(rest) as options:
        return call(getattr(module, name), options, f"ts-lightning {verb}")


def split_verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """The longest verb, or first words of one, that `words` begin with, and what follows."""
    known = {" ".join(verb.split()[:n]) for verb in VERBS for n in (1, 2, 3)}
    count = 0
    while count < len(words) and " ".join(words[: count + 1]) in known:
        count += 1
    return " ".join(words[:count]), list(words[count:])


def listing(group: str, rest: Sequence[str]) -> int:
    """Print the verbs of a group ("" for all); ValueError where `rest` begins with something else than --help."""
    own = {verb: text for verb, text in VERBS.items() if verb.startswith(f"{group} " if group else "")}
    if rest and rest[0] not in ("-h", "--help"):
        depth = len(group.split())
        names = dict.fromkeys(verb.split()[depth] for verb in own)
        raise ValueError(f"seen {' '.join([*group.split(), rest[0]])!r}, expected {nearest(rest[0], names)}")
    print(f"usage: ts-lightning {group + ' ' if group else ''}VERB [options]\n\n{ABOUT}\n")
    wide = max(map(len, own)) + 2
    print("\n".join(f"  {verb:<{wide}}{text}" for verb, text in own.items()))
    print("\n`ts-lightning VERB --help` has the options of a verb and an example. `ts-lightning --version`")
    return 0 if rest or group == "" else 2


def check_options(verb: str, words: Sequence[str]) -> None:
    """ValueError for an option of `verb` whose first part is none of its options, before anything is imported."""
    for word in words:
        option = re.split(r"[.=+]", word.removeprefix("--"), maxsplit=1)[0]
        if word.startswith("--") and option not in (*COMMON, *OPTIONS[verb]):
            known = [f"--{name}" for name in (*COMMON, *OPTIONS[verb])]
            raise ValueError(f"--{option}: seen an unknown option of {verb}, expected {nearest(f'--{option}', known)}")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Imports inside make a million objects and no garbage: looking for it would take a sixth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def allowed_classes(words: Sequence[str]) -> Iterator[list[str]]:
    """The words without --allow_classes; inside, checkpoints may name classes of its packages."""
    if not any(word.startswith(("--allow_classes", "--allow-classes")) for word in words):
        yield list(words)
        return
    from ts_lightning.runs.class_paths import allowing, take_flag

    rest, names = take_flag([word.replace("--allow-classes", "--allow_classes") for word in words])
    with allowing(names):
        yield rest


def user_errors() -> tuple[type[BaseException], ...]:
    """What counts as the user's error; of libraries that were never imported there is none."""
    kinds: list[type[BaseException]] = [ValueError, OSError, ModuleNotFoundError]
    for module, name in (
        ("jsonargparse", "ArgumentError"),
        ("safetensors", "SafetensorError"),  # a full disk, too
        ("lightning.pytorch.utilities.exceptions", "MisconfigurationException"),
    ):
        if module in sys.modules:
            kinds.append(getattr(sys.modules[module], name))
    return tuple(kinds)


__all__ = ["main"]
