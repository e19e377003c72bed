"""`ts-lightning plan`: what tuning a model takes of a card, before anything is downloaded or loaded."""

from pathlib import Path


def plan(
    *,
    vlm: Path,
    gpu: float = 24,
    rank: int = 64,
    num_experts: int = 2,
    every: int = 2,
    micro_batch: int = 1,
    eval_batch: int = 16,
    text: int = 512,
    answer: int = 128,
    pictures: int = 1,
    side: int = 1024,
    optimizer_bits: int = 32,
) -> int:
    """Print what every way of tuning takes of a card, and the largest that fits. Only config.json is read.

        ts-lightning plan --vlm checkpoints/Qwen2.5-VL-7B-Instruct --gpu 24

    In GiB, for bf16 with layers recomputed in backward; trained weights and AdamW's states are fp32. Evaluation: keys
    and values of its rows, and what a layer makes of their prompts. Package: what is saved, adapters in fp32. Exit
    status 1: nothing of TWIST fits.

    Args:
        vlm: folder with the config.json of any vlm of docs/backbones.md
        gpu: GiB of the card; one is left to CUDA
        rank: of low-rank experts, and of LoRA
        num_experts: grounding experts of a twin layer
        every: every so many decoder layers are twin layers
        micro_batch: rows at once
        eval_batch: rows at once in evaluation; the default is that of data.eval_batch_size
        text: tokens of a row beside its pictures
        answer: those of them that have a loss, and new tokens of an answer in evaluation
        pictures: of a row
        side: of a square picture in pixels, where the model takes any size or cuts tiles
        optimizer_bits: of AdamW's states: 32, or 8 (docs/one_card.md)
    """
    from ts_lightning.reports.memory_plan import Geometry, GiB, Load, forms, largest_micro_batch, largest_twist, room_of
    from ts_lightning.reports.memory_plan import plan as planned

    if optimizer_bits not in (8, 32):
        raise ValueError(f"optimizer_bits: seen {optimizer_bits}, expected 8 or 32")
    geometry, room = Geometry.of(vlm), room_of(gpu)
    load = Load(
        micro_batch=micro_batch,
        eval_batch=eval_batch,
        text=text,
        answer=answer,
        pictures=pictures,
        picture_tokens=geometry.picture_tokens(side),
        num_experts=num_experts,
        every=every,
        optimizer_bytes=optimizer_bits // 4,
    )
    parameters = sum(p.numel() for p in geometry.model.parameters())
    print(
        f"{vlm}: {parameters / 1e9:.2f} B parameters, {len(geometry.layers)} decoder layers; {micro_batch} x", end=" "
    )
    tiles = geometry.tiles(side)
    picture = f"a picture of {side} x {side}" if geometry.any_size or tiles > 1 else "a picture"
    picture += f" in {tiles} tiles" if tiles > 1 else ""
    print(f"{load.row} tokens, {load.picture_tokens} of {picture}; evaluation: {eval_batch} rows; GiB of {gpu:g}\n")
    heads = ("weights", "gradients", "optimizer", "activations", "evaluation", "peak")
    print(f"{'':22}{'base':>6}{''.join(f'{head:>13}' for head in heads)}  micro-batch  package, MB")
    for form in forms(geometry, rank, rank, every):
        made = planned(geometry, form, load)
        cells = "".join(f"{getattr(made, head) / GiB:>13.2f}" for head in heads)
        most = largest_micro_batch(geometry, form, load, room) or "-"
        print(f"{form.name:22}{form.quantization or 'bf16':>6}{cells}{most:>13}{made.package / 1e6:>13.0f}")
    best = largest_twist(geometry, load, room)
    if best is None:
        print(f"\nno form of TWIST fits into {gpu:g} GiB")
        return 1
    low = "" if best.form.rank is None else f"expert_rank: {best.form.rank}, "
    print(
        f"\nlargest TWIST that fits: {low}quantization: {best.form.quantization or 'null'} ({best.peak / GiB:.1f} GiB)"
    )
    return 0
