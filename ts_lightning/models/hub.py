"""Packages, adapters and standalone folders on a hub of models: `hub:NAME` in place of a folder, and the way there."""

from pathlib import Path
from typing import Any

PREFIX = "hub:"


def on_disk(path: str | Path) -> str | Path:
    """The folder of a `hub:NAME` (`hub:NAME@REVISION`), fetched into the hub's cache; any other path as it is.

    $HF_ENDPOINT says where the hub is, $HF_HUB_OFFLINE=1 that only the cache is asked. ValueError in one line for what
    can't be had.
    """
    if not str(path).startswith(PREFIX):
        return path
    from huggingface_hub import snapshot_download

    name, _, revision = str(path).removeprefix(PREFIX).partition("@")
    with_reason = f"{path}: can't be had"
    try:
        return Path(snapshot_download(name, revision=revision or None))
    except Exception as error:  # of the hub, of its transport, of a wrong name
        raise ValueError(_line(with_reason, error)) from None


def push(folder: Path, name: str) -> str:
    """Write a folder to the repository `name`, made if it is not there; its address. ValueError in one line."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        repository = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="ts-lightning export")
    except Exception as error:
        raise ValueError(_line(f"--push {name}: can't be written", error)) from None
    return str(repository)


def _line(what: str, error: Any) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{what} ({type(error).__name__}: {reason}), expected a network, OWNER/NAME and, to write, a token (hf auth)"
