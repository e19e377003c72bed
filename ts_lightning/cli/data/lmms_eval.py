"""`ts-lightning data lmms-eval`."""

from pathlib import Path


def lmms_eval(
    *shards: str,
    protocol: str,
    out: Path,
    reading: str | None = None,
    ckpt: Path | None = None,
    name: str | None = None,
    codec: str = "scout",
    grid: str | None = None,
    max_new_tokens: int = 128,
    limit: int | None = None,
    annotations: Path | None = None,
) -> None:
    """A task folder of lmms-eval from shards, scored by one of our protocols with its strict and official columns.

        ts-lightning data lmms-eval 'data_shards/toy/val_grounding-*.tar' --protocol rec --out outputs/lmms/rec
        python -m lmms_eval --include_path outputs/lmms/rec --tasks rec --model ts_lightning --model_args ckpt=FILE

    Args:
        shards: tars or glob patterns
        protocol: what scores the answers: rec, mig, localization, gic ... (docs/evaluation.md)
        out: the folder
        reading: the protocol's that decides its main figure: strict, an official one ...
        ckpt: the model whose notation the answers are in, in place of --codec and --grid
        name: of the task; the folder's when missing
        codec: notation in which the model writes boxes
        grid: of the notation, where it is not its own
        max_new_tokens: longest answer
        limit: so many of the first questions
        annotations: COCO's file of a protocol that needs it (gic: captions with boxes)
    """
    from ts_lightning.grounding.codecs import get_codec
    from ts_lightning.grounding.coordinates import CoordinateSpace
    from ts_lightning.reports.lmms_eval_task import write_task

    if ckpt is not None:
        from ts_lightning.runs.load import load

        notation = load(ckpt).vlm.codec
    else:
        notation = get_codec(codec, None if grid is None else CoordinateSpace(grid))
    name = name or out.name
    written, figures = write_task(shards, protocol, reading, notation, out, name, max_new_tokens, limit, annotations)
    print(f"{written} questions, {', '.join(figures)}: {out}")
