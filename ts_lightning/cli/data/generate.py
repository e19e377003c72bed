"""`ts-lightning data generate`: scout, gic, region-chat, mirg.

A model is named as offline (a grammar over the annotations), openai:MODEL, openai:MODEL@URL (the key comes from
OPENAI_API_KEY) or local:FOLDER. A run that was killed or that failed goes on where it was: run the same command again.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from ts_lightning.data.sample import Sample
from ts_lightning.pipelines.converters.source import Dropped
from ts_lightning.pipelines.generate import Generation, Role, run
from ts_lightning.pipelines.gic import Captions
from ts_lightning.pipelines.llm_client import Chat
from ts_lightning.pipelines.mirg import Trajectories
from ts_lightning.pipelines.region_chat import RegionChat
from ts_lightning.pipelines.scout import Scout


def scout(
    *shards: str,
    told: Generation,
    questions: str = "offline",
    answers: str = "offline",
    answers_codec: str = "cogvlm",
    answerer: Literal["vlm", "caption"] = "vlm",
    templates: str | None = None,
    negatives: float = 0.075,
    second: bool = False,
) -> int:
    """SCOUT-like questions with stepwise grounded answers, from shards of annotated or captioned pictures.

        ts-lightning data generate scout 'shards/*.tar' --out DIR
        ts-lightning data generate scout 'shards/*.tar' --out DIR --questions openai:MODEL@URL --answers openai:VLM@URL

    The first needs no model: a grammar over the annotations. A killed or failed run goes on where it was: run the same
    command again. Then: ts-lightning data report --help

    Args:
        told: what every generation is told
        shards: input shards (tars or patterns): detection or boxed caption records
        questions: who asks: offline, openai:MODEL, openai:MODEL@URL (key: OPENAI_API_KEY) or local:FOLDER
        answers: who answers, named likewise
        answers_codec: the notation of this model's boxes
        answerer: caption never shows the picture (the caption-only baseline)
        templates: folder with an edited copy of ts_lightning/pipelines/templates
        negatives: share of questions about absent things (the paper: 40,000 of 3.11 million, 1.3%)
        second: ask again where a box fits no annotation
    """

    def make(chats: dict[str, Chat], dropped: Dropped) -> Scout:
        sees = None if answerer == "caption" else chats["answers"]
        return Scout(chats["questions"], sees, negatives, told.most, told.seed, second, dropped, templates)

    # Who asks writes no boxes; a backend of both roles is one object only where the roles are equal.
    roles = {"questions": Role(questions, answers_codec), "answers": Role(answers, answers_codec)}
    prefix = "scout" if answerer == "vlm" else "scout_caption"
    return run(shards, told, prefix, roles, make, negatives=negatives, second=second)


def gic(
    *shards: str,
    told: Generation,
    captions: str = "offline",
    captions_codec: str = "cogvlm",
    templates: str | None = None,
    least: float = 1.0,
) -> int:
    """Grounded captions by a model that sees the picture, checked against the annotated boxes.

        ts-lightning data generate gic 'shards/*.tar' --out DIR --captions openai:MODEL@URL

    Args:
        told: what every generation is told
        shards: input shards (tars or patterns): detection or boxed caption records
        captions: who writes: offline, openai:MODEL, openai:MODEL@URL (key: OPENAI_API_KEY) or local:FOLDER
        captions_codec: the notation of this model's boxes
        templates: folder with an edited copy of ts_lightning/pipelines/templates
        least: share of boxes that must agree
    """

    def make(chats: dict[str, Chat], dropped: Dropped) -> Captions:
        return Captions(chats["captions"], told.seed, least, dropped, templates)

    return run(shards, told, "gic", {"captions": Role(captions, captions_codec)}, make, least=least)


def region_chat(
    *shards: str,
    told: Generation,
    dialogues: str = "offline",
    templates: str | None = None,
    turns: int = 2,
) -> int:
    """Region-level dialogues (ChatSpot's RegionChat) from annotated pictures.

        ts-lightning data generate region-chat 'shards/*.tar' --out DIR --dialogues openai:MODEL@URL

    Args:
        told: what every generation is told
        shards: input shards (tars or patterns): detection or boxed caption records
        dialogues: who writes: offline, openai:MODEL, openai:MODEL@URL (key: OPENAI_API_KEY) or local:FOLDER
        templates: folder with an edited copy of ts_lightning/pipelines/templates
        turns: pairs of turns of a dialogue
    """

    def make(chats: dict[str, Chat], dropped: Dropped) -> RegionChat:
        return RegionChat(chats["dialogues"], told.most, turns, told.seed, dropped=dropped, templates=templates)

    return run(shards, told, "region_chat", {"dialogues": Role(dialogues)}, make, turns=turns)


def mirg(
    *shards: str,
    told: Generation,
    reason: str = "offline",
    locate: str = "offline",
    locate_codec: str = "qwen2_vl",
    rewrite: str = "offline",
    style: Literal["trajectory", "reasoning", "answer"] = "trajectory",
    limit: int | None = None,
) -> int:
    """MIRG-RL's trajectories (cold start) or answer-only rows (GRPO) of multi-image shards.

        ts-lightning data generate mirg 'shards/*.tar' --out DIR --reason openai:MODEL@URL --locate openai:VLM@URL
        ts-lightning data generate mirg 'DIR/mirg_trajectory-*.tar' --out OTHER --style reasoning

    Args:
        told: what every generation is told
        shards: input shards (tars or patterns)
        reason: who reasons: offline, openai:MODEL, openai:MODEL@URL (key: OPENAI_API_KEY) or local:FOLDER
        locate: who finds the objects, named likewise
        locate_codec: the notation of this model's boxes
        rewrite: who puts the parts together, named likewise
        style: trajectory (SFT), reasoning (the same without boxes) or answer (GRPO)
        limit: records of one shard at most (the paper: 10k and 7k in all)
    """

    def make(chats: dict[str, Chat], dropped: Dropped) -> Trajectories:
        return Trajectories(chats["reason"], chats["locate"], chats["rewrite"], style, told.seed, dropped)

    def items(samples: Iterator[Sample]) -> Iterator[Sample]:
        return islice(samples, limit)

    roles = {"reason": reason, "locate": locate, "rewrite": rewrite}
    named = {role: Role(name, locate_codec) for role, name in roles.items()}  # the others write no boxes
    return run(shards, told, f"mirg_{style}", named, make, items, limit=limit)
