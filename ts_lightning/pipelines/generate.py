"""From backends by name to finished shards: what the generation commands share."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ts_lightning.data.index import expand
from ts_lightning.data.sample import Sample
from ts_lightning.grounding.foreign_text import markdown_code, markdown_text
from ts_lightning.pipelines.converters.source import Dropped
from ts_lightning.pipelines.llm_client import Chat, LocalChat, OpenAIChat, RequestFailed, Usage
from ts_lightning.pipelines.offline import OfflineChat
from ts_lightning.pipelines.response_cache import CachedChat
from ts_lightning.pipelines.scenes import Scene, scenes
from ts_lightning.pipelines.shard_work import my_shards, shard_samples, work

Maker = Callable[[argparse.Namespace, dict[str, Chat], Dropped], Any]
Items = Callable[[Iterator[Sample]], Iterable[Any]]


def add_arguments(parser: argparse.ArgumentParser, roles: Iterable[str]) -> None:
    """Arguments of every generation command; a backend for each of `roles`."""
    parser.add_argument("shards", nargs="+", help="input shards (tars or patterns): detection or boxed caption records")
    parser.add_argument("--out", required=True, help="folder for shards, notes, cache, report and card")
    for role in roles:
        parser.add_argument(
            f"--{role}",
            default="offline",
            help="offline, openai:MODEL, openai:MODEL@URL (key: OPENAI_API_KEY), local:FOLDER",
        )
        parser.add_argument(f"--{role}-codec", default="cogvlm", help="the notation of this model's boxes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=16, help="questions of a picture at most")
    parser.add_argument("--vocabulary", help="text file of names for negatives; default: the categories of the shards")
    parser.add_argument("--workers", type=int, default=0, help="pictures at once (0: 1 offline, else --concurrency)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests at once")
    parser.add_argument("--per-minute", type=float, default=0, help="requests in a minute at most (0: no limit)")
    parser.add_argument("--max-tokens", type=int, default=512, help="of an answer; a longer one is cut off and dropped")
    parser.add_argument("--tries", type=int, default=6)
    parser.add_argument("--timeout", type=float, default=120)
    parser.add_argument("--first-wait", type=float, default=1.0, help="seconds before the second try; they double")
    parser.add_argument("--price-in", type=float, default=0.0, help="price of a million input tokens")
    parser.add_argument("--price-out", type=float, default=0.0, help="price of a million output tokens")
    parser.add_argument("--share", help="i/n: every n-th shard from the i-th; default: the SLURM array's share, or all")


def backend(name: str, codec: str, args: argparse.Namespace, usage: Usage, vocabulary: list[str]) -> Chat:
    """The backend that a command line names; ValueError for another form."""
    kind, _, rest = name.partition(":")
    if kind == "offline":
        return OfflineChat(codec, args.most, vocabulary, args.seed)
    if kind == "openai" and rest:
        model, _, url = rest.partition("@")
        pace = {"concurrency": args.concurrency, "per_minute": args.per_minute, "tries": args.tries}
        waits = {"timeout": args.timeout, "first_wait": args.first_wait}
        return OpenAIChat(model, url or None, None, codec, max_tokens=args.max_tokens, usage=usage, **pace, **waits)
    if kind == "local" and rest:
        return LocalChat(rest, codec, args.max_tokens)
    raise ValueError(f"backend: seen {name!r}, expected offline, openai:MODEL[@URL] or local:FOLDER")


def names_in(paths: list[Path]) -> list[str]:
    """Every category of the shards' scenes."""
    return sorted({thing.name for path in paths for scene in scenes(shard_samples(path)) for thing in scene.things})


def input_shards(patterns: list[str]) -> list[Path]:
    """The shards of patterns; ValueError for two of one name, since outputs are named by it."""
    known: dict[str, Path] = {}
    for path in dict.fromkeys(Path(path) for one in patterns for path in expand(one)):
        if (other := known.setdefault(path.stem, path)) != path:
            raise ValueError(f"shards: seen {other} and {path}, expected names that differ (outputs are named by them)")
    return [*known.values()]


def share(text: str) -> tuple[int, int]:
    """The two numbers of `--share`."""
    number, mark, count = text.partition("/")
    if not (mark and number.isdecimal() and count.isdecimal()):
        raise ValueError(f"share: seen {text!r}, expected i/n, as 0/4")
    return int(number), int(count)


def run(args: argparse.Namespace, prefix: str, roles: tuple[str, ...], make: Maker, items: Items = scenes) -> int:
    """Work through the shards; 0, or 1 where requests failed (run again to go on), 2 for bad input."""
    try:
        out, paths = Path(args.out), input_shards(args.shards)
        mine = my_shards(paths, *(share(args.share) if args.share else (None, None)))
        out.mkdir(parents=True, exist_ok=True)
        if args.vocabulary:
            vocabulary = [line.strip() for line in Path(args.vocabulary).read_text().splitlines() if line.strip()]
        else:
            vocabulary = names_in(paths)
        failed = 0
        for path in mine:
            failed += not _one(path, out, prefix, args, roles, make, vocabulary, items)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_card(out, prefix)
    return 1 if failed else 0


def _one(
    path: Path,
    out: Path,
    prefix: str,
    args: argparse.Namespace,
    roles: tuple[str, ...],
    make: Maker,
    vocabulary: list[str],
    items: Items,
) -> bool:
    usage, dropped = Usage(args.price_in, args.price_out), Dropped()
    named = {role: (getattr(args, role), getattr(args, f"{role}_codec")) for role in roles}
    made: dict[tuple[str, str], Chat] = {}  # one backend for two roles is one object
    for name, codec in named.values():
        if (name, codec) not in made and name != "caption":
            made[name, codec] = backend(name, codec, args, usage, vocabulary)
    caches = []
    for number, (known, chat) in enumerate(made.items()):
        if not isinstance(chat, OfflineChat):
            made[known] = CachedChat(chat, out / "cache" / f"{prefix}-{path.stem}-{number}.jsonl", usage)
            caches.append(made[known])
    chats = {role: made[known] for role, known in named.items() if known in made}
    maker = make(args, chats, dropped)
    offline = any(isinstance(chat, OfflineChat) for chat in made.values())
    workers = 1 if offline else args.workers or args.concurrency  # the offline backend is told of one picture at a time
    settings = {
        "generator": {role: name for role, (name, _) in named.items()},
        "templates": getattr(maker, "template_hash", ""),
        "seed": args.seed,
        "most": args.most,
        "max_tokens": args.max_tokens,
        "negatives": getattr(args, "negatives", None),
    }
    try:
        result = work(items, path, out, prefix, maker, settings, dropped, usage, workers)
    except RequestFailed as error:
        print(f"{path.name}: stopped: {error}. What was answered is kept; run again to go on.", file=sys.stderr)
        return False
    finally:
        for cache in caches:
            cache.close()  # type: ignore[attr-defined]
    if result is None:
        print(f"{path.name}: done before")
    else:
        counts = f"{result['scenes']} pictures, {result['samples']} samples, {result['samples_per_second']} samples/s"
        print(f"{path.name}: {counts}, {json.dumps(result['usage'])}")
        print("\n".join(dropped.lines()))
    return True


def notes(out: Path, prefix: str) -> list[dict[str, Any]]:
    """The result notes of a folder's shards, by name."""
    return [json.loads(file.read_text()) for file in sorted(out.glob(f"{prefix}-*.json"))]


def write_card(out: Path, prefix: str) -> None:
    """The dataset card beside the shards."""
    found = notes(out, prefix)
    if not found:
        return
    reasons: dict[str, int] = {}
    for note in found:
        for reason, number in note["dropped"].items():
            reasons[reason] = reasons.get(reason, 0) + number
    settings = found[0]["settings"]
    lines = [
        f"# {prefix}: generated data",
        "",
        f"{sum(n['samples'] for n in found)} samples of {sum(n['scenes'] for n in found)} described pictures, "
        f"{sum(len(n['shards']) for n in found)} shards.",
        "",
        f"- generator: {', '.join(f'{role} {markdown_text(name)}' for role, name in settings['generator'].items())}",
        f"- templates (sha256, first 16): {markdown_code(settings['templates'])}; seed {settings['seed']}",
        f"- input: {', '.join(markdown_text(n['settings']['input']) for n in found)}",
        "- every record's `meta` has its generator, templates and seed; boxes are checked against the annotations",
        "- licence and terms: those of the pictures and annotations of the input",
        "",
        "| left out because | number |",
        "|---|---|",
        *(f"| {markdown_text(reason)} | {number} |" for reason, number in sorted(reasons.items())),
    ]
    (out / "README.md").write_text("\n".join(lines) + "\n")


def annotated(paths: list[str]) -> dict[str, Scene]:
    """Scenes by picture name, without the pictures' bytes; records of one picture are joined."""
    known: dict[str, Scene] = {}
    for one in paths:
        for path in expand(one):
            for scene in scenes(shard_samples(Path(path))):
                scene.data = b""
                if scene.image.name in known:
                    known[scene.image.name].things += scene.things
                else:
                    known[scene.image.name] = scene
    return known


def records(paths: list[str]) -> Iterable[Sample]:
    """The records of shards, one after the other."""
    return (sample for one in paths for path in expand(one) for sample in shard_samples(Path(path)))
