"""What a hub reads on top of a card, and what a certificate says on it."""

import json
from pathlib import Path
from typing import Any

from ts_lightning.grounding.foreign_text import markdown_code
from ts_lightning.reports.json_file import write_json

HEAD = """---
library_name: ts-lightning
pipeline_tag: image-text-to-text
tags: [visual-grounding, {kind}]
---

"""


def complete_card(folder: Path, kind: str, certificate: Path | None) -> None:
    """Put a hub's header on the card of an exported folder, and the certificate's verdict and file into the folder.

    ValueError for a file that is no certificate.
    """
    card = folder / "README.md"
    text = card.read_text() if card.is_file() else f"# {kind} of ts_lightning\n"
    if certificate is not None:
        found = read_certificate(certificate)
        write_json(folder / "certificate.json", found)
        logits = found["logits"]
        equal = "bitwise equal" if logits["bitwise_equal"] else f"different by up to {logits['max_abs_diff']}"
        verdict = "Passed" if found["passed"] else "Failed"
        text += (
            f"\n## Retention\n\n{verdict}: understanding logits {equal} to the base's at "
            f"{logits['positions']} positions, {found['tensors_compared']} frozen tensors compared, "
            f"{len(found['differing'])} differ (`certificate.json`, checkpoint sha256 "
            f"{markdown_code(str(found['checkpoint']['sha256'])[:12])}).\n"
        )
    card.write_text((HEAD.format(kind=kind) if not text.startswith("---") else "") + text)


def read_certificate(path: Path) -> dict[str, Any]:
    """The JSON that `ts-lightning certify` writes."""
    try:
        found = json.loads(path.read_text())
        if not {"passed", "logits", "tensors_compared", "differing", "checkpoint"} <= found.keys():
            raise ValueError("other fields")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"--certificate {path}: seen none ({error}), expected what `certify` writes") from None
    return dict(found)
