"""The command `openworldsam-app`: serve the web page."""

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
from openworldsam.predictor import OpenWorldSAMPredictor
from openworldsam.utils.launch import user_errors

if TYPE_CHECKING:
    import gradio

STALE_SECONDS = 60
"""Age at which an upload is deleted that no request took."""
SESSIONS = 16
"""Browser tabs whose state is kept; the least recently used one is dropped. Each holds an encoded image and its
decoded prompts, which are large for the full-size model."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="openworldsam-app", description="Try the model in the browser.")
    parser.add_argument("--config-file", default="configs/shapes/openworldsam.yaml", help="default: the Shapes model")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in, without a password")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", help="cpu, cuda or mps (default: MODEL.DEVICE)")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="override config keys")
    return parser.parse_args(argv)


def serve(predictor: OpenWorldSAMPredictor, host: str, port: int | None, folder: Path) -> gradio.Blocks:
    """Start serving the page in the background, on a free port if `port` is None; its `close` stops the server.

    The folder is private and holds uploads until they are read.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is taken.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # Gradio reads it at import and later
    import gradio

    from openworldsam.app.page import build_page

    page = build_page(predictor)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=MAX_BYTES,
        state_session_capacity=SESSIONS,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # from no other server
        footer_links=[],
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    examples = frozenset(folder.rglob("*"))

    def sweep_until_closed() -> None:
        while folder.is_dir():
            sweep(folder, examples, STALE_SECONDS)
            time.sleep(STALE_SECONDS / 4)

    Thread(target=sweep_until_closed, daemon=True).start()
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page until Ctrl-C; exit with 2 after a user error."""
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with user_errors():
        if find_spec("gradio") is None:
            raise ValueError("the page needs Gradio: pip install -e '.[app]' -c requirements.txt")
        predictor = OpenWorldSAMPredictor(args.config_file, device=args.device, opts=args.opts)
        with tempfile.TemporaryDirectory(prefix="openworldsam-app-") as folder:
            page = serve(predictor, args.host, args.port, Path(folder))
            print(f"{page.local_url}  (Ctrl-C to stop)", flush=True)
            page.block_thread()
