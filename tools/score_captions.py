#!/usr/bin/env python
r"""Score grounded captions: (name, box) pairs, names to COCO's classes, COCO AP.

    python tools/score_captions.py --predictions outputs/gic/predictions.jsonl \
        --annotations annotations/instances_val2017.json --out outputs/gic

Needs the extra `gic` for the sentence transformer and COCO AP. Names come from a grammar, or with
`--extract openai:MODEL@URL` from a language model; its answers are kept in OUT/names.jsonl and never asked for twice.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from ts_lightning.grounding import CoordinateSpace, get_codec
from ts_lightning.metrics.class_mapping import ClassMapper, sentence_embedder
from ts_lightning.metrics.gic import SYNONYMS, caption_pairs, score_captions
from ts_lightning.metrics.gic_names import PROMPT, AskedPairs
from ts_lightning.metrics.predictions import read_own
from ts_lightning.pipelines.llm_client import OpenAIChat, RequestFailed
from ts_lightning.pipelines.response_cache import CachedChat


def asked_pairs(name: str, out: Path) -> AskedPairs:
    """The backend that `--extract` names."""
    kind, _, rest = name.partition(":")
    model, _, url = rest.partition("@")
    if kind != "openai" or not model:
        raise ValueError(f"--extract: seen {name!r}, expected openai:MODEL[@URL]")
    backend = OpenAIChat(model, url or None, os.environ.get("OPENAI_API_KEY"), max_tokens=256)
    cached = CachedChat(backend, out / "names.jsonl")
    return AskedPairs(lambda messages, attempt: cached.chat(messages, attempt=attempt))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True, help="instances_*.json")
    parser.add_argument("--codec", default="scout", help="notation of the captions' boxes")
    parser.add_argument("--grid", help="another grid than the notation's own")
    parser.add_argument("--embedder", help="folder of a sentence transformer (the packaged MiniLM when missing)")
    parser.add_argument("--names-alone", action="store_true", help="without the synonyms, as in the paper")
    parser.add_argument("--threshold", type=float, default=0.65, help="cosine below which a name has no class")
    parser.add_argument("--box-score", choices=("similarity", "one"), default="similarity")
    parser.add_argument("--extract", help="openai:MODEL[@URL]: who names the boxes; a grammar when missing")
    parser.add_argument("--out", type=Path, required=True, help="folder for captions.json")
    args = parser.parse_args()
    try:
        codec = get_codec(args.codec, CoordinateSpace(args.grid) if args.grid else None)
        annotations = json.loads(args.annotations.read_bytes())
        records = [r for r in read_own(args.predictions) if (r.get("meta") or {}).get("image_id") is not None]
        if not records:
            raise ValueError(f"{args.predictions}: seen no record with meta.image_id, expected captions of COCO images")
        names = [one["name"] for one in annotations["categories"]]
        synonyms = {} if args.names_alone else {k: v for k, v in SYNONYMS.items() if k in names}
        mapper = ClassMapper(names, sentence_embedder(args.embedder), synonyms, args.threshold)
        extract = asked_pairs(args.extract, args.out) if args.extract else caption_pairs
        result = score_captions(records, annotations, codec, mapper, extract, args.box_score)
    except (OSError, ValueError, KeyError, ModuleNotFoundError, RequestFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    given = ("names_alone", "threshold", "box_score", "codec", "grid", "embedder", "extract")
    options = {name: getattr(args, name) for name in given}
    if isinstance(extract, AskedPairs):
        options["prompt"] = PROMPT
        result["boxes_without_name"] = extract.unnamed
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "captions.json").write_text(json.dumps({"options": options, **result}, indent=1) + "\n")
    print(
        "  ".join(
            f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in result.items()
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
