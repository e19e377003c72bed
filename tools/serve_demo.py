#!/usr/bin/env python
"""A local page to look at a model: click, drag a box or draw a polygon, and ask.

    python tools/serve_demo.py --ckpt outputs/quickstart/fit/checkpoints/last.ckpt [--port 7860]

Without --ckpt it serves the tiny base. The page needs the extra `demo` (pip install 'ts-lightning[demo]').
"""

import argparse
import sys
from pathlib import Path

from ts_lightning.models import PlainVLM
from ts_lightning.models.backbones.tiny import TinyBackbone
from ts_lightning.runs.load import load


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", type=Path, help="a checkpoint of ts-lightning fit (default: the tiny base)")
    parser.add_argument("--host", default="127.0.0.1", help="another address makes the page public")
    parser.add_argument(
        "--name", action="append", default=[], help="a name by which visitors call a public page's host"
    )
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    try:
        from ts_lightning.serve.guard import run
        from ts_lightning.serve.server import make_app
    except ImportError as error:
        print(f"error: {error}; expected the extra: pip install 'ts-lightning[demo]'", file=sys.stderr)
        return 2
    try:
        vlm = load(args.ckpt).vlm if args.ckpt else PlainVLM(TinyBackbone(), train=[]).eval()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"http://{args.host}:{args.port}", flush=True)
    title = str(args.ckpt) if args.ckpt else "tiny base"
    run(make_app(vlm, title, vlm.router, [args.host, *args.name]), args.host, args.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
