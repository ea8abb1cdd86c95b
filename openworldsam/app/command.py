"""The command `openworldsam app`: serve the web page."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from openworldsam.app.uploads import MAX_BYTES, Uploads, server_folder
from openworldsam.predictor import OpenWorldSAMPredictor
from openworldsam.utils.launch import say, user_errors

if TYPE_CHECKING:
    import gradio

STALE_SECONDS = 300
"""Age at which an upload is deleted that no request took."""
SESSIONS = 16
"""Browser tabs whose state is kept; the least recently used one is dropped. Each holds an encoded image and its
decoded prompts, which are large for the full-size model."""


def check_address(host: str, port: int) -> None:
    """Raise ValueError if a server cannot listen on an address, before the model is loaded."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as place:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"cannot listen on {host!r}, port {port}: {reason}; choose another --host or --port"
        ) from error


def serve(
    predictor: OpenWorldSAMPredictor,
    host: str,
    port: int | None,
    folder: Path,
    *,
    allowed_hosts: Sequence[str] = (),
    root_path: str = "",
    queue: int = 32,
    max_work: int = 800_000_000,
) -> gradio.Blocks:
    """Start serving the page in the background, on a free port if `port` is None; its `close` stops the server.

    The folder is private and holds uploads until they are read. Other arguments: see `openworldsam app --help` and
    `Session`.

    Raises:
        ImportError: Gradio is not installed.
        OSError: the port is taken.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # Gradio reads it at import and later
    import gradio
    from starlette.middleware import Middleware

    from openworldsam.app.guard import Guard
    from openworldsam.app.page import build_page
    from openworldsam.app.scripts import CSS, SETUP_SCRIPT

    uploads = Uploads(folder)
    page = build_page(predictor, uploads, queue=queue, max_work=max_work)
    page.launch(
        server_name=host,
        server_port=port,
        root_path=root_path,
        app_kwargs={"middleware": [Middleware(Guard, uploads, host, allowed_hosts)]},
        share=False,
        max_file_size=MAX_BYTES,
        state_session_capacity=SESSIONS,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # from no other server
        css=CSS,
        js=SETUP_SCRIPT,
        footer_links=[],
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    page.app.uploaded_file_dir = uploads  # type: ignore[assignment]  # it is used as a path

    def sweep_until_closed() -> None:
        while uploads.folder.is_dir():
            uploads.sweep(STALE_SECONDS)
            time.sleep(STALE_SECONDS / 4)

    Thread(target=sweep_until_closed, daemon=True).start()
    return page


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C or SIGTERM; exit with 2 after a user error."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    with user_errors():
        if find_spec("gradio") is None:
            raise ValueError("the page needs Gradio: pip install -e '.[app]' -c requirements.txt")
        check_address(args.host, args.port)
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # unwinds, so the folder goes
        with server_folder() as folder:
            predictor = OpenWorldSAMPredictor(args.config, device=args.device, opts=args.opts)
            options = {"allowed_hosts": args.allowed_hosts, "root_path": args.root_path, "queue": args.queue}
            page = serve(predictor, args.host, args.port, folder, **options, max_work=args.max_work * 1_000_000)
            try:
                say(f"{page.local_url}  (Ctrl-C to stop)")
                page.block_thread()
            finally:
                page.close(verbose=False)
