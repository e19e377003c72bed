"""Benchmarks beside their peers, in one process. The last line of standard output is one JSON object.

    python -m tools.bench [--threads 2] [--rounds 5] CASE

CASE: twin, sft, packing, grouped, grpo, rollout_vllm, loader, convert, score, serve, memory, full_size,
grpo_full_size.

A failed correctness check, which runs before any timing, exits with status 1.
"""

import argparse
import sys

import torch

from tools.bench import (
    convert,
    full_size,
    grouped,
    grpo,
    grpo_full_size,
    loader,
    memory,
    packing,
    rollout_vllm,
    score,
    serve,
    sft,
    twin,
)
from tools.bench.geometry import MODELS
from ts_lightning.models.quantization import KINDS


def main() -> int:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    cases = parser.add_subparsers(dest="case", required=True)
    case = cases.add_parser("twin", help="the twin layer, forward and backward")
    case.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    case.add_argument("--device", default="cpu")
    case.add_argument("--shapes", nargs="+", choices=tuple(twin.SHAPES))
    case.set_defaults(run=twin.main)
    case = cases.add_parser("sft", help="one training step against training everything")
    _full_geometry(case)
    case.set_defaults(run=sft.main)
    case = cases.add_parser("packing", help="a step on the questions of a picture in one row, or in a row each")
    case.add_argument("--pictures", type=int, default=4)
    _full_geometry(case)
    case.set_defaults(run=packing.main)
    case = cases.add_parser("grouped", help="attention of decoding steps of grouped-query models")
    case.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    case.set_defaults(run=grouped.main)
    case = cases.add_parser("grpo", help="a GRPO step with the prompt read once a group")
    case.add_argument("--parts", nargs="+", default=list(grpo.PARTS), choices=tuple(grpo.PARTS))
    case.set_defaults(run=grpo.main)
    cases.add_parser("rollout_vllm", help="rollouts by our loop and by vLLM").set_defaults(run=rollout_vllm.main)
    cases.add_parser("loader", help="pictures to pixels").set_defaults(run=loader.main)
    case = cases.add_parser("convert", help="a data set's files to shards")
    case.add_argument("--records", type=int, default=10_000)
    case.set_defaults(run=convert.main)
    cases.add_parser("score", help="scoring, and COCO AP against pycocotools").set_defaults(run=score.main)
    case = cases.add_parser("memory", help="what `ts-lightning plan` counts, against measured peaks")
    case.add_argument("--models", nargs="+", choices=tuple(memory.CONFIGS))
    case.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    case.set_defaults(run=memory.main)
    cases.add_parser("serve", help="answers written together against one by one").set_defaults(run=serve.main)
    on_cuda = {
        "full_size": (full_size.main, "a paper's model at full size on a CUDA device: memory and speed"),
        "grpo_full_size": (grpo_full_size.main, "a GRPO step at full size on a CUDA device, against its floors"),
    }
    for name, (run, text) in on_cuda.items():
        case = cases.add_parser(name, help=text)
        case.add_argument("--model", default=MODELS[0], choices=MODELS)
        if name == "full_size":
            case.add_argument("--rank", type=int, help="experts of low rank")
            case.add_argument("--quantization", choices=KINDS, help="of the frozen part")
        case.set_defaults(run=run)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    run, _ = arguments.pop("run"), arguments.pop("case")
    return run(**arguments)


def _full_geometry(case: argparse.ArgumentParser) -> None:
    case.add_argument("--model", choices=MODELS, help="a paper's, at full geometry; without it a small one on the CPU")
    case.add_argument("--device", default="cuda", choices=("cpu", "cuda"), help="of --model")


if __name__ == "__main__":
    sys.exit(main())
