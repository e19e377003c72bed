"""Prove that a tuned model still answers understanding questions exactly as its base does.

python tools/certify_retention.py --ckpt last.ckpt --shards 'data/val-*.tar' [--out certificate.json]

Exit status 0: certified; 1: something differs; 2: the checkpoint or the shards can't be used.
"""

import argparse
import json
import sys
from pathlib import Path

from ts_lightning.reports.certificate import certify_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description="Certify that understanding is untouched.")
    parser.add_argument("--ckpt", required=True, help="a checkpoint of ts-lightning fit")
    parser.add_argument("--shards", required=True, nargs="+", help="tars or globs with understanding questions")
    parser.add_argument("--out", default="certificate.json", help="where the certificate goes")
    parser.add_argument("--max-samples", type=int, default=512, help="how many of the first understanding questions")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    args = parser.parse_args()
    try:
        result = certify_checkpoint(args.ckpt, args.shards, args.max_samples, args.batch_size, args.max_new_tokens)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in result["differing"][:10]:
        print(f"differs: {name}", file=sys.stderr)
    logits, accuracy = result["logits"], result["accuracy"]
    print(f"frozen tensors   {result['tensors_compared']} compared, {len(result['differing'])} differ")
    equal = "bitwise equal" if logits["bitwise_equal"] else f"differ by up to {logits['max_abs_diff']}"
    print(f"logits           {equal} at {logits['positions']} positions of {logits['batches']} batches")
    before, after = ("-" if accuracy[k] is None else f"{accuracy[k]:.4f}" for k in ("before", "after"))
    print(f"accuracy         {before} before, {after} after, {accuracy['questions']} questions")
    print(f"{'PASSED' if result['passed'] else 'FAILED'}           {args.out}")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
