"""`ts-lightning serve`."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal


def serve(
    *,
    ckpt: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    name: list[str] = (),  # type: ignore[assignment]
    batch: int = 16,
    engine: Literal["own", "vllm"] = "own",
    device: str = "auto",
) -> None:
    """A local page to look at a model, and a server that speaks OpenAI's protocol (/v1/chat/completions).

        ts-lightning serve --ckpt outputs/quickstart/fit/checkpoints/last.ckpt

    Without --ckpt it serves the tiny base. It needs the extra `demo`: pip install 'ts-lightning[demo]'

    Args:
        ckpt: a checkpoint of `fit`, a package, an adapter or a standalone folder
        host: another address makes the page public
        port: of the page
        name: names by which visitors call a public page's host
        engine: vllm: a vLLM server beside this one writes the answers (TS_LIGHTNING_VLLM_PYTHON, docs/vllm.md)
        batch: answers that are written together; 1: one question after the other
        device: auto (the GPU where there is one, left to vLLM with --engine vllm), cpu, cuda or cuda:N
    """
    try:
        from ts_lightning.serve.guard import run
        from ts_lightning.serve.server import make_app
    except ImportError as error:
        raise ValueError(f"{error}; expected the extra: pip install 'ts-lightning[demo]'") from None
    import torch

    from ts_lightning.rl.vllm_engine import started_vllm
    from ts_lightning.runs.load import load_or_tiny

    device = "cpu" if (engine, device) == ("vllm", "auto") else device
    gpu = torch.cuda.is_available() if engine == "vllm" else None  # the server takes the one that is there
    vlm = load_or_tiny(ckpt, device, gpu)
    title = str(ckpt) if ckpt else "tiny base"
    with ExitStack() as stack:
        server = None
        if engine == "vllm":
            server = started_vllm(vlm, Path(stack.enter_context(TemporaryDirectory())))
            stack.callback(server.close)
        print(f"http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        run(make_app(vlm, title, vlm.router, [host, *name], batch, server), host, port)
