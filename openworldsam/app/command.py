"""The command `openworldsam-app`."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from openworldsam.app.uploads import MAX_BYTES, sweep
from openworldsam.predictor.predictor import OpenWorldSAMPredictor
from openworldsam.utils.launch import user_errors

if TYPE_CHECKING:
    import gradio

STALE_SECONDS = 60
"""After which an upload goes that no request took away."""
SESSIONS = 16
"""Browser tabs whose pictures are kept; the one that was quiet longest is forgotten. Each may take what
`AskedImage` keeps, which is much for the full-size model."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="openworldsam-app", description="A page in the browser to try the model on.")
    parser.add_argument("--config-file", default="configs/shapes/openworldsam.yaml", help="by default the Shapes model")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in, without any password")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", help="cpu, cuda or mps; MODEL.DEVICE by default")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="override config keys")
    return parser.parse_args(argv)


def serve(predictor: OpenWorldSAMPredictor, host: str, port: int | None, folder: Path) -> gradio.Blocks:
    """Begin to serve the page.

    Args:
        predictor: the model.
        host, port: to listen on; None takes a free port.
        folder: for uploads, until they are read; nobody else's.

    Returns:
        the page; `close` ends it.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is taken.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # Gradio reads it when it is imported, and later
    import gradio

    from openworldsam.app.page import build

    page = build(predictor)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=MAX_BYTES,
        state_session_capacity=SESSIONS,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none from elsewhere
        footer_links=[],
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    Thread(target=_sweep_forever, args=(folder, frozenset(folder.rglob("*"))), daemon=True).start()
    return page


def _sweep_forever(folder: Path, examples: frozenset[Path]) -> None:
    while folder.is_dir():
        sweep(folder, examples, STALE_SECONDS)
        time.sleep(STALE_SECONDS / 4)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until interrupted; exits with 2 if it could not begin."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with user_errors("stopped"):
        if find_spec("gradio") is None:
            raise ValueError("the page needs Gradio: pip install -e '.[app]' -c requirements.txt")
        predictor = OpenWorldSAMPredictor(args.config_file, device=args.device, opts=args.opts)
        with tempfile.TemporaryDirectory(prefix="openworldsam-app-") as folder:
            page = serve(predictor, args.host, args.port, Path(folder))
            print(f"{page.local_url}  (Ctrl-C ends it)", flush=True)
            page.block_thread()
