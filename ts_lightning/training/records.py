"""From samples and generated texts to records: here data and metrics meet."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ts_lightning.data import index_shards
from ts_lightning.data.record import split_key
from ts_lightning.data.sample import Sample
from ts_lightning.grounding.codecs import Codec
from ts_lightning.grounding.tasks import UNDERSTANDING
from ts_lightning.metrics.record import Record, Truth, space_fields
from ts_lightning.metrics.steps import target_steps

STEP_TAGS = {"cot", "negative"}
_NAMED = 5  # so many keys stand in a message


def truth_of(sample: Sample) -> Truth:
    """What a sample's question has as its right answer."""
    regions = sample.answer_regions
    box = sample.true_box
    meta = sample.meta or {}
    image = None
    if len(sample.images) > 1 and regions:  # `meta.image` may say that it is not known
        image = meta["image"] if "image" in meta else regions[0].image
    steps = None
    if sample.task != UNDERSTANDING and STEP_TAGS & set(sample.tags):
        steps = target_steps(sample.turns[-1].text, [region.all_boxes for region in sample.regions])
    return Truth(
        sample.turns[-1].text,
        tuple(sample.accepted_answers),
        image,
        box,
        tuple(b for region in regions for b in region.all_boxes),
        regions[0].area_px if box is not None else None,
        steps,
    )


def record_of(
    sample: Sample, text: str, codec: Codec, suite: str, cut_off: bool = False, rule: Mapping[str, Any] | None = None
) -> Record:
    """The record of one answer; `rule` is what the suite's YAML says: `protocol`, `reading`, `annotations`."""
    sizes = tuple(sample.sizes) or ((1, 1),)
    return Record(
        suite=suite,
        key=sample.key,
        text=text,
        truth=truth_of(sample),
        sizes=sizes,
        id=sample.id,
        shard=sample.shard,
        source=sample.source,
        task=sample.task,
        subtask=sample.subtask,
        tags=tuple(sample.tags),
        meta=dict(sample.meta or {}),
        choices=None if sample.choices is None else tuple(sample.choices),
        question=sample.question,
        cut_off=cut_off,
        pictures=split_key(sample.key)[0],  # a record of a shard is a set of pictures with the questions about them
        **space_fields(codec, sizes),
        **(rule or {}),
    )


def batch_records(
    batch: Mapping[str, Any],
    texts: Sequence[str],
    codec: Codec,
    suite: str,
    cut_off: Sequence[bool] | None = None,
    rule: Mapping[str, Any] | None = None,
) -> list[Record]:
    """`record_of` every row of a batch that is no padding."""
    rows = zip(batch["samples"], texts, cut_off or [False] * len(texts), batch["row_valid"].tolist(), strict=True)
    return [record_of(sample, text, codec, suite, cut, rule) for sample, text, cut, is_valid in rows if is_valid]


def answer_lengths(encoder: Any, samples: Sequence[Sample]) -> list[int]:
    """Tokens of each sample's true answer, its end mark included, as `encoder` writes it."""

    def tokens(sample: Sample, for_generation: bool) -> int:
        own = encoder.of_task(encoder.task_index(sample.task, sample.key))
        return len(own.tokenizer(own.render(sample, for_generation)[0], add_special_tokens=False)["input_ids"])

    return [tokens(sample, False) - tokens(sample, True) for sample in samples]


def completeness(records: Sequence[Record]) -> dict[str, str]:
    """For each suite, whether the shards that its records name ask more than is answered, where they are at hand.

    A suite may ask only some of its shards' questions, so that a partial file is told, not refused; a shard without any
    answer can't be noticed. ValueError for a record that its shard does not have.
    """
    asked: dict[str, dict[str, set[str]]] = {}
    for record in records:
        asked.setdefault(record.suite, {}).setdefault(record.shard, set()).add(record.key)
    answered = Counter(record.suite for record in records if not record.missing)
    known: dict[str, set[str]] = {}
    said = {}
    for suite, shards in asked.items():
        if not all(Path(shard).is_file() for shard in shards):
            said[suite] = "not checked: the shards of its answers are not here (--shards checks)"
            continue
        total = 0
        for shard, keys in shards.items():
            if shard not in known:
                known[shard] = {key for one in index_shards(shard).shards for key in one.question_keys()}
            if foreign := sorted(keys - known[shard]):
                raise ValueError(f"suite {suite}: seen {listed(foreign)}, expected questions of their shard {shard}")
            total += len(known[shard])
        said[suite] = f"{answered[suite]} of the {total} questions of the shards that its answers name"
    return said


def listed(keys: Iterable[str]) -> str:
    """The first keys, and how many more there are."""
    names = list(keys)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
