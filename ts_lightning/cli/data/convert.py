"""`ts-lightning data convert NAME`: a converter is found by its name, and its `read` says what else it takes."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from inspect import getdoc
from typing import Any, get_type_hints

from ts_lightning.cli.nearest import nearest
from ts_lightning.cli.parsing import add_fields, new_parser, parse
from ts_lightning.pipelines import converters
from ts_lightning.pipelines.convert import Conversion, list_images, reader, subset_line
from ts_lightning.pipelines.convert import convert as convert_data_set

PROG = "ts-lightning data convert"
HELP = f"""usage: {PROG} NAME [PATH] --out DIR [--images DIR] [options of that data set]

    {PROG} coco COCO --split val2017 --out data_shards/coco
    {PROG} refcoco REFCOCO --split-by unc --split testA --prefix testA --out data_shards/refcoco

`{PROG} NAME --help` says what PATH is, and lists the options. What is left out is counted, and named in
OUT/PREFIX.left_out.txt. Data sets:
"""


def convert(words: Sequence[str]) -> int:
    """Turn a data set's own files into shards."""
    if not words or words[0] in ("-h", "--help"):
        print(HELP)
        for name in converters.NAMES:
            print(f"  {name:<20}{(getdoc(sys.modules[reader(name).__module__]) or '').splitlines()[0]}")
        return 0 if words else 2
    name = words[0]
    told, options = arguments(name, words[1:])
    if told.list_images is not None:
        print(f"{told.list_images}  {list_images(name, told, options)} pictures")
        return 0
    made = convert_data_set(name, told, options)
    for shard in made.manifest.shards:
        print(f"{shard.path}  {shard.num_questions} questions  {shard.num_records} records  {shard.size} bytes")
    counts = ", ".join(f"{n} {task}" for task, n in sorted(made.tasks.items()))
    print(f"{made.manifest.num_samples} records: {counts}")
    if options.get("max_objects") is not None:
        print(subset_line(name, options, made.dropped.in_subset, made.photos))
    if made.excluded:
        print(made.excluded.line())
    print("\n".join(made.dropped.lines()))
    if made.listing.is_file():
        print(f"{made.listing}  all that was left out or changed")
    return 0


def listed(words: Sequence[str], read: Callable[..., Any]) -> list[str]:
    """The words with `--tasks localization,all` as the list that an option of several values takes."""
    several = {f"--{option}" for option, hint in get_type_hints(read).items() if "tuple" in str(hint)}
    pairs = zip(words, ["", *words], strict=False)
    return [json.dumps(word.split(",")) if before in several and word[:1] != "[" else word for word, before in pairs]


def arguments(name: str, words: Sequence[str]) -> tuple[Conversion, dict[str, Any]]:
    """What the words after a data set's name tell every converter, and its own options; ValueError for wrong ones."""
    if name not in converters.NAMES:
        raise ValueError(f"data convert: seen the data set {name!r}, expected {nearest(name, converters.NAMES)}")
    read = reader(name)
    about = f"{getdoc(sys.modules[read.__module__])}\n\n{getdoc(read)}"
    parser = new_parser(f"{PROG} {name}", about)
    parser.add_argument("path", nargs="?", help="the data set's folder or file")
    known = add_fields(parser, Conversion, skip={"path", *([] if name == "coco-regions" else ["subset"])})
    skip: set[str | int] = {"path", "pictures", "image_ids"}
    known += [f"--{option}" for option in parser.add_function_arguments(read, skip=skip, sub_configs=False)]
    values = vars(parse(parser, listed(words, read), f"{PROG} {name}", known))
    told = {field.name: values.pop(field.name) for field in fields(Conversion) if field.name in values}
    return Conversion(**told), values
