"""`ts-lightning certify`."""

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
    against: str | None = None,
    max_difference: float = 0.001,
    min_iou: float = 0.999,
    device: str = "auto",
) -> int:
    """Prove that a tuned model still answers understanding questions exactly as its base does.

        ts-lightning certify --ckpt outputs/toy_twist/checkpoints/last.ckpt --shards 'data/val-*.tar'

    With --against, that a server (vLLM, or any that speaks OpenAI's protocol) or another folder answers all questions
    of the shards as the trainer does: texts, boxes, log-probabilities; and what differs, where it does not.

        ts-lightning certify --ckpt PACKAGE --shards 'data/val-*.tar' --against vllm
        ts-lightning certify --ckpt FOLDER --shards 'data/val-*.tar' --against http://localhost:8000

    Exit status 0: certified; 1: something differs; 2: the checkpoint or the shards can't be used.

    Args:
        ckpt: a run's folder, a checkpoint of `fit`, a package, an adapter or a standalone folder (one that is a whole
            model, tuned or merged, has no base to compare with: --against alone)
        shards: tars or patterns with understanding questions (--against: with any)
        out: where the certificate goes
        max_samples: how many of the first understanding questions (--against: of all)
        batch_size: questions at once
        max_new_tokens: length of an answer at most
        against: "vllm" (started here), a server's http://HOST:PORT, or a folder
        max_difference: with --against, of a token's log-probability, on average
        min_iou: with --against, of the boxes of both, on average
        device: auto (the GPU where there is one, left to vLLM with --against vllm), cpu, cuda or cuda:N
    """
    for name, given in {"max_samples": max_samples, "batch_size": batch_size, "max_new_tokens": max_new_tokens}.items():
        if given < 1:
            raise ValueError(f"--{name}: seen {given}, expected at least 1")
    from ts_lightning.reports.json_file import check_place, write_json

    check_place(out)
    if against is not None:
        return _against(ckpt, shards, out, max_samples, max_new_tokens, against, max_difference, min_iou, device)
    from ts_lightning.reports.certificate import certify_checkpoint

    result = certify_checkpoint(ckpt, shards, max_samples, batch_size, max_new_tokens, device)
    write_json(out, result)
    for name in result["differing"][:10]:
        print(f"differs: {name}", file=sys.stderr)
    for key in result["read_otherwise"][:10]:
        print(f"read as other tokens: {key}", file=sys.stderr)
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


def _against(
    ckpt: Path,
    shards: list[str],
    out: Path,
    max_samples: int,
    max_new_tokens: int,
    against: str,
    max_difference: float,
    min_iou: float,
    device: str,
) -> int:
    from tempfile import TemporaryDirectory

    from ts_lightning.reports.json_file import write_json
    from ts_lightning.reports.parity import certify_against, first_samples
    from ts_lightning.runs.load import load

    device = "cpu" if (against, device) == ("vllm", "auto") else device
    samples, vlm = first_samples(shards, max_samples), load(ckpt, device).vlm
    with TemporaryDirectory(prefix="ts_lightning_") as work:
        result = certify_against(vlm, against, samples, max_new_tokens, max_difference, min_iou, Path(work))
    write_json(out, result)

    def said(name: str) -> str:
        return "-" if result[name] is None else f"{result[name]:.6g}"

    print(f"questions        {result['questions']}, prompts equal {said('equal_prompts')}")
    print(f"answers          {said('equal_answers')} equal")
    for one in result["differing"][:1]:
        place = "one is the other's beginning" if one["token"] is None else f"from token {one['token']} on: "
        place += "" if one["token"] is None else f"{one['own']!r} here, {one['theirs']!r} there"
        print(f"                 the first that differs: {one['question']}, {place}")
    print(f"boxes            {result['boxes']}, mean IoU {said('mean_iou')} (at least {min_iou})")
    difference = f"{said('mean_logp_difference')} on average (at most {max_difference}), {said('max_logp_difference')}"
    print(f"log-probability  differs by {difference} at most, {result['tokens']} tokens")
    if result.get("first_differing_layer"):
        print(f"first difference {result['first_differing_layer']}")
    if result["why"]:
        print(f"what differs     {result['why']}")
    print(f"{'PASSED' if result['passed'] else 'FAILED'}           {out}")
    return 0 if result["passed"] else 1
