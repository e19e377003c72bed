"""What a hub reads on top of a card, and what a certificate says on it."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ts_lightning.grounding.foreign_text import markdown_code
from ts_lightning.models.vlm import VLM
from ts_lightning.reports.certificate import trained_sha256, weights_sha256
from ts_lightning.reports.json_file import write_json
from ts_lightning.runs.whole_folder import CERTIFICATE

HEAD = """---
library_name: ts-lightning
pipeline_tag: image-text-to-text
tags: [visual-grounding, {kind}]
---

"""


def complete_card(folder: Path, kind: str, found: Mapping[str, Any] | None) -> None:
    """Put a hub's header on the card of an exported folder, and the certificate's verdict and file into the folder."""
    card = folder / "README.md"
    text = card.read_text()
    if found is not None:
        write_json(folder / CERTIFICATE, found)
        logits = found["logits"]
        equal = "bitwise equal" if logits["bitwise_equal"] else f"different by up to {logits['max_abs_diff']}"
        verdict = "Passed" if found["passed"] else "Failed"
        text += (
            f"\n## Retention\n\n{verdict}: understanding logits {equal} to the base's at "
            f"{logits['positions']} positions, {found['tensors_compared']} frozen tensors compared, "
            f"{len(found['differing'])} differ (`{CERTIFICATE}`, checkpoint sha256 "
            f"{markdown_code(str(found['checkpoint']['sha256'])[:12])}).\n"
        )
    card.write_text(HEAD.format(kind=kind) + text)


def read_certificate(path: Path, checkpoint: Path, vlm: VLM) -> dict[str, Any]:
    """The JSON that `ts-lightning certify` writes; ValueError for another file, or one about other weights.

    `vlm` is what `checkpoint` loads: one made of the checkpoint that a package came from is the package's, too. Those
    of before name the file alone.
    """
    try:
        found = json.loads(path.read_text())
        if not {"passed", "logits", "tensors_compared", "differing", "checkpoint"} <= found.keys():
            raise ValueError("other fields")
        seen, trained = str(found["checkpoint"]["sha256"]), found["checkpoint"].get("trained_sha256")
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"--certificate {path}: seen none ({error}), expected what `certify` writes") from None
    seen, own = (seen, weights_sha256(checkpoint)) if trained is None else (str(trained), trained_sha256(vlm))
    if seen != own:
        expected = f"expected {own[:12]} as of {checkpoint}"
        raise ValueError(f"--certificate {path}: seen one of weights with sha256 {seen[:12]}, {expected}")
    return dict(found)


def own_certificate(folder: Path, vlm: VLM) -> dict[str, Any] | None:
    """The certificate in a folder, where it is of the weights there, which `vlm` has."""
    with suppress(ValueError):
        return read_certificate(folder / CERTIFICATE, folder, vlm)
    return None
