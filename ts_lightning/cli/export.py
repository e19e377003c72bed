"""`ts-lightning export`."""

from pathlib import Path
from typing import Literal


def export(
    *,
    ckpt: Path,
    to: Literal["package", "adapter", "checkpoint", "standalone"],
    out: Path,
    scores: Path | None = None,
    router: Path | None = None,
    rank: int | None = None,
    push: str | None = None,
    certificate: Path | None = None,
) -> None:
    """Write what was trained in another shape: from a checkpoint or a folder of this package to any of the others.

        ts-lightning export --ckpt FILE_OR_FOLDER --to package --out outputs/grounding_package
        ts-lightning export --ckpt FOLDER --to checkpoint --out outputs/again.ckpt

        ts-lightning export --ckpt FOLDER --to package --out FOLDER --push me/mugs --certificate certificate.json

    package: the experts, routers, alpha and token rows of TWIST. adapter: LoRA in peft's layout. checkpoint: for
    --ckpt_path and init_from. standalone: the base as well (LoRA merged into it), in the layout of its own family; the
    others find it where it was.

    Args:
        ckpt: a run's folder, checkpoint, package, adapter or standalone folder
        to: the shape
        out: file or folder to write
        scores: JSON of figures for the card, flat or nested as report.json; when missing those of the run's last
            validation, or of the folder's card (with --rank none)
        router: folder of `python -m tools.experiments.train_task_router` (in a checkout), stored in the package
        push: OWNER/NAME on the hub ($HF_ENDPOINT) to write the folder to; `hub:OWNER/NAME` opens it
        certificate: what `certify` wrote of --ckpt, for the card; when missing the folder's own, if of these weights
        rank: the package's experts as their nearest differences of this rank (prints what is lost); 0: as full copies
    """
    from ts_lightning.models.hub import push as send
    from ts_lightning.reports.card_scores import own_scores, read_scores
    from ts_lightning.reports.model_card import complete_card, own_certificate, read_certificate
    from ts_lightning.runs.export import change_rank, give_router
    from ts_lightning.runs.export import export as write
    from ts_lightning.runs.load import load, run_checkpoint

    for option, given in {"push": push, "scores": scores, "certificate": certificate}.items():
        if given and to == "checkpoint":
            raise ValueError(f"--{option} {given}: seen --to checkpoint, expected package, adapter or standalone")
    if certificate and rank is not None:
        raise ValueError("--certificate: seen with --rank, which makes other weights, expected one of them")
    ckpt = Path(run_checkpoint(ckpt))
    of_folder = own_scores(ckpt) if rank is None else {}  # another rank answers otherwise
    figures = read_scores(scores) if scores else of_folder
    module = load(ckpt)
    of_these = own_certificate(ckpt, module.vlm) if rank is None and to != "checkpoint" else None
    verdict = read_certificate(certificate, ckpt, module.vlm) if certificate else of_these
    if router is not None:
        give_router(module.vlm, to, router)
    if rank is not None and (errors := change_rank(module.vlm, to, rank)):
        worst = max(errors, key=lambda name: errors[name])
        mean = sum(errors.values()) / len(errors)
        print(f"rank {rank}: relative error of the differences {mean:.4f}, at most {errors[worst]:.4f} ({worst})")
    write(module, to, out, figures)
    if push or verdict:
        complete_card(out, to, verdict)
    print(f"{to}: {out}")
    if push:
        print(f"pushed: {send(out, push)}")
