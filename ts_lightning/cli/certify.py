"""`ts-lightning certify`."""

import json
import sys
from pathlib import Path


def certify(
    *,
    ckpt: Path,
    shards: list[str],
    out: Path = Path("certificate.json"),
    max_samples: int = 512,
    batch_size: int = 32,
    max_new_tokens: int = 32,
) -> int:
    """Prove that a tuned model still answers understanding questions exactly as its base does.

        ts-lightning certify --ckpt outputs/toy_twist/checkpoints/last.ckpt --shards 'data/val-*.tar'

    Exit status 0: certified; 1: something differs; 2: the checkpoint or the shards can't be used.

    Args:
        ckpt: a run's folder, a checkpoint of `fit`, a package, an adapter or a standalone folder
        shards: tars or patterns with understanding questions
        out: where the certificate goes
        max_samples: how many of the first understanding questions
        batch_size: questions at once
        max_new_tokens: length of an answer at most
    """
    from ts_lightning.reports.certificate import certify_checkpoint

    result = certify_checkpoint(ckpt, shards, max_samples, batch_size, max_new_tokens)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    for name in result["differing"][:10]:
        print(f"differs: {name}", file=sys.stderr)
    logits, accuracy = result["logits"], result["accuracy"]
    print(f"frozen tensors   {result['tensors_compared']} compared, {len(result['differing'])} differ")
    equal = "bitwise equal" if logits["bitwise_equal"] else f"differ by up to {logits['max_abs_diff']}"
    print(f"logits           {equal} at {logits['positions']} positions of {logits['batches']} batches")
    before, after = ("-" if accuracy[k] is None else f"{accuracy[k]:.4f}" for k in ("before", "after"))
    print(f"accuracy         {before} before, {after} after, {accuracy['questions']} questions")
    if codes := result.get("quantization"):
        full, seen = (codes["accuracy"][k] for k in ("full", "quantised"))
        print(
            f"{codes['kind']} itself      changed {codes['answers_changed']} answers, accuracy {full} to {seen}, ",
            end="",
        )
        print(f"logits by up to {codes['max_abs_diff']:.3g}; what is certified is the base in {codes['kind']}")
    print(f"{'PASSED' if result['passed'] else 'FAILED'}           {out}")
    return 0 if result["passed"] else 1
