"""Middleware before Gradio: lets in requests of the page itself, and nothing else.

A web site in the visitor's browser can send requests to this server. `Origin` gives such a site away, and `Host` one
whose name was made to mean this machine (DNS rebinding). Of Gradio's routes the page needs a few; others fetch
addresses (`file=https:`, `proxy=`), run actions past the queue (`run/`) or serve what is not used here.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openworldsam.app.uploads import MAX_BYTES, Uploads
from openworldsam.utils.text import brief, printable

logger = logging.getLogger(__name__)

MAX_REQUEST = 2**20
"""Bytes of a request's body: no page sends more, but for uploads."""
UPLOAD = "/gradio_api/upload"
_READ = re.compile(
    r"/(|config/?|theme\.css|robots\.txt|favicon\.ico|manifest\.json|(assets|static|svelte)/.+|"
    r"gradio_api/(info/?|app_id/?|startup-events|theme\.css|queue/data|upload_progress|heartbeat/\w+|file=(?!\w\w+:).+))"
)
_WRITE = re.compile(rf"{UPLOAD}|/gradio_api/(queue/join|cancel|reset/?)")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/?#@\[\]]+))(?::\d{1,5})?", re.ASCII)


class Refused(Exception):
    """A request that is not answered, with its HTTP status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Guard:
    """Answers requests from elsewhere, to other routes or of wrong form with a reason, and passes on the others.

    Args:
        listens: the address that the server listens on.
        hosts: further names of the server, such as that of a proxy before it.
    """

    def __init__(self, app: ASGIApp, uploads: Uploads, listens: str, hosts: Collection[str]) -> None:
        self.app, self.uploads = app, uploads
        self.further = {host.lower() for host in hosts}
        self.names = {"localhost", listens.lower(), socket.gethostname().lower(), *self.further}
        self.everywhere = listens == "0.0.0.0"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        begun = False

        async def watched_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            limit = self.check(scope)
            await self.app(scope, limited(receive, limit), watched_send)
        except Exception as error:
            if begun:
                raise
            if not isinstance(error, Refused):  # Gradio expects what the page sends
                logger.warning("%s %s: %s", scope.get("method"), scope["path"], brief(error))
                error = Refused(400, "this is no request of this page")
            await JSONResponse({"detail": printable(error)}, error.status)(scope, receive, send)

    def check(self, scope: Scope) -> int:
        """Return the limit of the body in bytes; raise `Refused` for a request that may not pass."""
        if scope["type"] != "http":
            raise Refused(404, "there is no such page")
        headers = Headers(scope=scope)
        host, origin = headers.getlist("host"), headers.getlist("origin")
        if len(host) != 1 or not self.is_known(host[0]):
            got, hint = brief(", ".join(host)), "openworldsam app --allowed-hosts NAME adds a name"
            raise Refused(403, f"the server is not known as {got}: {hint}")
        for place in origin:
            if (netloc := urlsplit(place).netloc.lower()) != host[0].lower() and host_name(netloc) not in self.further:
                raise Refused(403, f"requests of other web sites are refused, such as {brief(place)}")
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if not (_READ if scope["method"] in ("GET", "HEAD") else _WRITE).fullmatch(path):
            raise Refused(404, "there is no such page")
        limit = MAX_REQUEST + (MAX_BYTES if path == UPLOAD else 0)
        if int(headers.get("content-length", 0)) > limit:
            raise Refused(413, _too_large(limit))
        if path == UPLOAD and not self.uploads.begin():
            raise Refused(503, "too many uploads wait: try again in a minute")
        return limit

    def is_known(self, host: str) -> bool:
        """Whether a Host header is a name of this server, or an address that it listens on."""
        name = host_name(host)
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return name in self.names or address.is_loopback or self.everywhere  # an address cannot be rebound


def host_name(host: str) -> str:
    """Extract the name from a Host header, "" if it is none."""
    found = _HOST.fullmatch(host.lower())
    return (found[1] or found[2]).rstrip(".") if found else ""


def _too_large(limit: int) -> str:
    return f"the request has more than {limit / 2**20:.0f} MB"


def limited(receive: Receive, limit: int) -> Receive:
    """Let a body of at most `limit` bytes through; more raise `Refused`."""
    left = limit

    async def receive_limited() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise Refused(413, _too_large(limit))
        return message

    return receive_limited
