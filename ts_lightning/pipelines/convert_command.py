"""The command line of a converter, from the signature and docstring of its `read`."""

import sys
from inspect import getdoc
from typing import Any

from jsonargparse import ArgumentParser, Namespace

PAPER_SUBSETS = {"coco": 3582, "voc": 2062, "lvis": 6016}  # photos with at most 3 objects, TWIST & SCOUT 5.1


def arguments(name: str, read: Any, argv: list[str]) -> Namespace:
    """What `convert_dataset.py NAME ...` is told; dashes and underscores in options are one."""
    about = f"{getdoc(sys.modules[read.__module__])}\n\n{getdoc(read)}"
    parser = ArgumentParser(prog=f"convert_dataset.py {name}", description=about)
    parser.add_argument("path", nargs="?", help="the dataset's folder or file")
    parser.add_argument("--out", required=True, help="folder for the shards")
    parser.add_argument("--prefix", default=name.replace("-", "_"), help="shards are named PREFIX-000000.tar")
    parser.add_argument("--maxcount", type=int, default=10_000, help="records of one shard at most")
    parser.add_argument("--images", help="folder of the pictures, where they are not below PATH")
    parser.add_argument("--exclude_images", help="text file of pictures to leave out: file names or COCO ids")
    parser.add_argument("--strict", action="store_true", help="stop at the first thing that would be left out")
    skip: set[str | int] = {"path", "pictures", "images", "dropped", "image_ids"}
    parser.add_function_arguments(read, skip=skip, sub_configs=False)
    if name == "coco-regions":
        parser.add_argument(
            "--subset", type=int, default=1000, help="images, drawn by --seed; ids: OUT/PREFIX.ids.json"
        )
    return parser.parse_args([option(word) for word in argv])


def subset_line(name: str, args: Namespace, number: int, asked: int) -> str:
    """What the subset of few objects is, and its size beside the paper's."""
    options = [(key, args[key]) for key in ("split", "count_by", "crowd", "difficult") if key in args]
    chosen = ", ".join(f"{key.replace('_', '-')} {'all' if value is None else value}" for key, value in options)
    found = f"{number} photos with at most {args.max_objects} objects ({chosen}), {asked} with a question"
    return f"{found}; the paper's subset: {PAPER_SUBSETS[name]} photos"


def option(word: str) -> str:
    """An option under its parameter's name: --max-objects and --max_objects are one."""
    name, mark, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{mark}{value}" if word.startswith("--") else word
