#!/usr/bin/env python
r"""Score MM-Vet and LLaVA-Bench answers with a judge behind an OpenAI-compatible server.

    python tools/judge.py --predictions outputs/open_ended/predictions.jsonl --suite mmvet \
        --model NAME --base-url http://HOST/v1 --out outputs/open_ended

The key comes from OPENAI_API_KEY. Verdicts are kept in OUT/verdicts.jsonl and never asked for twice. The judge's name
and its instruction are in the report: scores of two judges can't be compared. tools/score.py --judge puts the same
score into the report of all suites.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ts_lightning.metrics.judge import judge
from ts_lightning.metrics.predictions import read_own
from ts_lightning.pipelines.llm_client import OpenAIChat, RequestFailed
from ts_lightning.pipelines.response_cache import CachedChat

SUITES = ("mmvet", "llava_bench")


def judged(
    records: Sequence[Mapping[str, Any]], suite: str, model: str, base_url: str | None, out: Path
) -> dict[str, Any]:
    """The verdicts of `model` on the answers of a suite, which are also written to OUT/SUITE.json."""
    backend = OpenAIChat(model, base_url, os.environ.get("OPENAI_API_KEY"), max_tokens=16)
    cached = CachedChat(backend, out / "verdicts.jsonl")
    result = judge(records, suite, lambda messages, attempt: cached.chat(messages, attempt=attempt))
    report = {"judge": model, "suite": suite, **result}
    (out / f"{suite}.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--model", required=True, help="the judge")
    parser.add_argument("--base-url", help="an OpenAI-compatible server")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        records = [r for r in read_own(args.predictions) if r["suite"] == args.suite]
        if not records:
            raise ValueError(f"{args.predictions}: seen no record of the suite {args.suite}, expected some")
        result = judged(records, args.suite, args.model, args.base_url, args.out)
    except (OSError, ValueError, ModuleNotFoundError, RequestFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    groups = ", ".join(f"{name} {value:.1f}" for name, value in result["by_group"].items())
    print(
        f"{args.suite}: {result['score']:.1f} by {args.model} ({groups}); {result['unread_verdicts']} verdicts unread"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
