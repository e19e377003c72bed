"""From backends by name to finished shards: what the generation commands share."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from ts_lightning.data.paths import expand
from ts_lightning.data.remote import without_secrets
from ts_lightning.data.sample import Sample
from ts_lightning.grounding.foreign_text import markdown_code, markdown_text
from ts_lightning.pipelines.converters.source import Dropped
from ts_lightning.pipelines.llm_client import Chat, LocalChat, OpenAIChat, RequestFailed, Usage
from ts_lightning.pipelines.offline import OfflineChat
from ts_lightning.pipelines.response_cache import CachedChat
from ts_lightning.pipelines.scenes import Scene, picture_key, scenes
from ts_lightning.pipelines.shard_work import my_shards, only_one, read_note, replace_text, shard_samples, work

Maker = Callable[[dict[str, Chat], Dropped], Any]
Items = Callable[[Iterator[Sample]], Iterable[Any]]


@dataclass(frozen=True)
class Generation:
    """What every generation is told beside its own options.

    Args:
        out: folder for shards, notes, cache, report and card
        seed: of every choice
        most: questions of a picture at most
        vocabulary: text file of names for negatives; the categories of the shards when missing
        workers: pictures at once (0: 1 offline, else --concurrency)
        concurrency: requests at once
        per_minute: requests in a minute at most (0: no limit)
        max_tokens: of an answer; a longer one is cut off and dropped
        tries: requests of one answer at most
        timeout: seconds of a request
        first_wait: seconds before the second try; they double
        price_in: price of a million input tokens
        price_out: price of a million output tokens
        share: i/n: every n-th shard from the i-th; the SLURM array's share, or all, when missing
    """

    out: Path
    seed: int = 0
    most: int = 16
    vocabulary: Path | None = None
    workers: int = 0
    concurrency: int = 8
    per_minute: float = 0
    max_tokens: int = 512
    tries: int = 6
    timeout: float = 120
    first_wait: float = 1.0
    price_in: float = 0.0
    price_out: float = 0.0
    share: str | None = None


class Role(NamedTuple):
    """Who answers: offline, openai:MODEL, openai:MODEL@URL (key: OPENAI_API_KEY) or local:FOLDER; its notation."""

    backend: str
    codec: str = "cogvlm"


def backend(role: Role, told: Generation, usage: Usage, vocabulary: list[str]) -> Chat:
    """The backend that a command line names; ValueError for another form."""
    name, codec = role
    kind, _, rest = name.partition(":")
    if kind == "offline":
        return OfflineChat(codec, told.most, vocabulary, told.seed)
    if kind == "openai" and rest:
        model, _, url = rest.partition("@")
        pace: dict[str, Any] = {"concurrency": told.concurrency, "per_minute": told.per_minute, "tries": told.tries}
        waits: dict[str, Any] = {"timeout": told.timeout, "first_wait": told.first_wait}
        return OpenAIChat(model, url or None, None, codec, max_tokens=told.max_tokens, usage=usage, **pace, **waits)
    if kind == "local" and rest:
        return LocalChat(rest, codec, told.max_tokens)
    raise ValueError(f"backend: seen {name!r}, expected offline, openai:MODEL[@URL] or local:FOLDER")


def names_in(paths: list[Path]) -> list[str]:
    """Every category of the shards' scenes."""
    return sorted({thing.name for path in paths for scene in scenes(shard_samples(path)) for thing in scene.things})


def input_shards(patterns: Sequence[str]) -> list[Path]:
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


def run(
    shards: Sequence[str],
    told: Generation,
    prefix: str,
    roles: Mapping[str, Role],
    make: Maker,
    items: Items = scenes,
    **own: Any,
) -> int:
    """Work through the shards; 0, or 1 where requests failed (run again to go on). ValueError for bad input.

    `own` are the generator's own options that change what is written: a shard made with others is made anew.
    """
    paths = input_shards(shards)
    mine = my_shards(paths, *(share(told.share) if told.share else (None, None)))
    told.out.mkdir(parents=True, exist_ok=True)
    if told.vocabulary:
        data = told.vocabulary.read_bytes()
        vocabulary = [line.strip() for line in data.decode().splitlines() if line.strip()]
        own["vocabulary"] = sha256(data).hexdigest()
    else:
        vocabulary = names_in(paths)
    failed = 0
    for path in mine:
        with only_one(told.out, f"{prefix}-{path.stem}") as free:
            if free:
                failed += not _one(path, told, prefix, roles, make, vocabulary, items, own)
            else:
                print(f"{path.name}: another process is at it; run again to see it done", file=sys.stderr)
                failed += 1
    with only_one(told.out, f"{prefix} card", wait=True):  # else an older card could replace a newer one
        write_card(told.out, prefix)
    return 1 if failed else 0


def _one(
    path: Path,
    told: Generation,
    prefix: str,
    roles: Mapping[str, Role],
    make: Maker,
    vocabulary: list[str],
    items: Items,
    own: Mapping[str, Any],
) -> bool:
    usage, dropped, out = Usage(told.price_in, told.price_out), Dropped(), told.out
    made: dict[Role, Chat] = {}  # one backend for two roles is one object
    for role in roles.values():
        if role not in made and role.backend != "caption":
            made[role] = backend(role, told, usage, vocabulary)
    caches = []
    for number, (role, chat) in enumerate(made.items()):
        if not isinstance(chat, OfflineChat):
            made[role] = CachedChat(chat, out / "cache" / f"{prefix}-{path.stem}-{number}.jsonl", usage)
            caches.append(made[role])
    chats = {name: made[role] for name, role in roles.items() if role in made}
    maker = make(chats, dropped)
    offline = all(isinstance(chat, OfflineChat) for chat in made.values())
    workers = told.workers or (1 if offline else told.concurrency)
    settings = {
        "generator": {name: without_secrets(role.backend) for name, role in roles.items()},  # the card is public
        "codecs": {name: role.codec for name, role in roles.items()},
        "templates": getattr(maker, "template_hash", ""),
        "seed": told.seed,
        "most": told.most,
        "max_tokens": told.max_tokens,
        **own,
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
    return [note for file in sorted(out.glob(f"{prefix}-*.json")) if (note := read_note(file))]


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
        *(
            [
                "- written by grammar from the annotations, without a model: right for trying the pipeline and for "
                "learning the notation of boxes; its language is too plain to train a model on that shall talk"
            ]
            if any(name.startswith("offline") for name in settings["generator"].values())
            else []
        ),
        "- records tagged `unchecked` say something that no annotation confirms or denies",
        "- licence and terms: those of the pictures and annotations of the input",
        "",
        "| left out because | number |",
        "|---|---|",
        *(f"| {markdown_text(reason)} | {number} |" for reason, number in sorted(reasons.items())),
    ]
    replace_text(out / "README.md", "\n".join(lines) + "\n")


def annotated(paths: Sequence[str]) -> dict[str, Scene]:
    """Scenes by `picture_key`, without the pictures' bytes; records of one picture are joined."""
    known: dict[str, Scene] = {}
    for one in paths:
        for path in expand(one):
            for scene in scenes(shard_samples(Path(path))):
                key, scene.data = picture_key(scene.image.name, scene.data), b""
                if key in known:
                    known[key].things += [thing for thing in scene.things if thing not in known[key].things]
                else:
                    known[key] = scene
    return known


def records(paths: Sequence[str]) -> Iterable[Sample]:
    """The records of shards, one after the other."""
    return (sample for one in paths for path in expand(one) for sample in shard_samples(Path(path)))
