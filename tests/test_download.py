"""openworldsam/download.py against a server on this machine that can misbehave in every way we have thought of."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib.util
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from openworldsam import cli, download

ROOT = Path(__file__).parents[1]
HUB = re.escape("https://huggingface.co")
BODY = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Remote:
    """What the server serves, how it misbehaves, and what it was asked for."""

    url: str = ""
    body: bytes = BODY
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"first"'})
    statuses: list[int] = field(default_factory=list)  # one per request, then normal answers
    cuts: list[int] = field(default_factory=list)  # bytes after which to hang up, one per request
    promised: int = 0  # bytes announced but never sent
    length: bool = True
    chunked: bool = False
    moved: str = ""  # address to redirect to
    ranges: bool = True
    if_range: bool = True
    hold: threading.Event | None = None  # waited for in the middle of the body
    asked: list[dict[str, str]] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(dict(request.headers))
        if self.statuses:
            return request.send_error(self.statuses.pop(0))
        if self.moved:
            request.send_response(302)
            request.send_header("Location", self.moved)
            return request.end_headers()
        total, start = len(self.body) + self.promised, 0
        condition = request.headers.get("If-Range")
        fresh = not self.if_range or condition in (
            self.headers.get("ETag"),
            self.headers.get("Last-Modified"),
        )
        if "Range" in request.headers and self.ranges and fresh:
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= total:
                return request.send_error(416)
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            request.send_response(200)
        for name, value in self.headers.items():
            request.send_header(name, value)
        if self.chunked:
            request.send_header("Transfer-Encoding", "chunked")
        elif self.length:
            request.send_header("Content-Length", str(total - start))
        request.end_headers()
        self.send_body(request, start)

    def send_body(self, request: BaseHTTPRequestHandler, start: int) -> None:
        if request.command == "HEAD":
            return
        body = self.body[start:]
        if self.cuts:
            body = body[: self.cuts.pop(0)]
        if self.chunked:
            end = b"" if self.promised else b"\r\n0\r\n\r\n"
            body = b"%x\r\n%s%s" % (len(body) + self.promised, body, end)
        middle = len(body) // 2
        request.wfile.write(body[:middle])
        if self.hold is not None:
            self.hold.wait(10)
        request.wfile.write(body[middle:])


@pytest.fixture
def remote() -> Iterator[Remote]:
    served = Remote()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            with contextlib.suppress(ConnectionError):  # one test kills its client
                served.answer(self)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}/net.pt"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _quick_and_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr(download, "SCHEMES", ("http",))  # the server here has no certificate
    monkeypatch.setenv("no_proxy", "127.0.0.1")


Run = Callable[..., int]


@pytest.fixture
def status(exit_status: Callable[..., int]) -> Run:
    """Run the command with some words; returns its exit status."""
    return functools.partial(exit_status, cli.command("download"))


@pytest.fixture
def run(remote: Remote, tmp_path: Path, status: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*options: str, **known: Any) -> int:
        about = ("net.pt", "tests", "https://example.org/terms", " A note.")
        monkeypatch.setattr(download, "REGISTRY", {"net": download.Weight(remote.url, *about, **known)})
        return status("net", "--output", tmp_path, *options)

    return run


def assert_whole(folder: Path, body: bytes = BODY) -> None:
    assert (folder / "net.pt").read_bytes() == body
    assert (folder / "net.pt.sha256").read_text() == f"{hashlib.sha256(body).hexdigest()}  net.pt\n"
    assert sorted(path.name for path in folder.iterdir()) == ["net.pt", "net.pt.sha256"]


def assert_part(folder: Path, part: bytes) -> None:
    assert not (folder / "net.pt").exists()
    assert (folder / "net.pt.part").read_bytes() == part


def test_fetches_a_file_and_records_its_hash(
    remote: Remote, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert_whole(tmp_path)
    assert "Range" not in remote.asked[0]
    first, last = capsys.readouterr().err.splitlines()  # no bar where stderr is not a terminal
    assert remote.url in first and SHA256 in last


def test_makes_the_output_folder(remote: Remote, run: Run, tmp_path: Path) -> None:
    assert run("--output", str(tmp_path / "a" / "b")) == 0
    assert_whole(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    "validator", [{"ETag": '"first"'}, {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "ETag": 'W/"weak"'}]
)
def test_resumes_after_a_cut_connection(remote: Remote, run: Run, tmp_path: Path, validator: dict[str, str]) -> None:
    remote.headers, remote.cuts = validator, [100_000, 50_000]
    assert run() == 0
    assert_whole(tmp_path)
    assert [asked.get("Range") for asked in remote.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert remote.asked[1]["If-Range"] in validator.values()
    assert not remote.asked[1]["If-Range"].startswith("W/")


def test_progress_renews_the_attempts(remote: Remote, run: Run, tmp_path: Path) -> None:
    remote.cuts = [20_000] * 10
    assert run() == 0
    assert_whole(tmp_path)
    assert len(remote.asked) == 11


@pytest.mark.parametrize(
    ("if_range", "headers", "size"),
    [
        pytest.param(True, {"ETag": '"first"'}, 900_000, id="the whole file is sent"),
        pytest.param(False, {"ETag": '"first"'}, len(BODY), id="the rest is sent, with another ETag"),
        pytest.param(False, {}, 900_000, id="the rest is sent, with another size"),
    ],
)
@pytest.mark.parametrize("kept", [3_000, 600_000], ids=["short part", "part longer than the new file"])
def test_a_changed_remote_file_starts_afresh(
    remote: Remote, run: Run, tmp_path: Path, if_range: bool, headers: dict[str, str], size: int, kept: int
) -> None:
    (tmp_path / "net.pt.part").write_bytes(bytes(kept))
    (tmp_path / "net.pt.part.origin").write_text(f'{size}\n"older"')
    remote.if_range, remote.headers = if_range, headers
    assert run() == 0
    assert_whole(tmp_path)
    assert remote.asked[0]["If-Range"] == '"older"'
    assert len(remote.asked) == (1 if if_range else 2)  # nothing is taken from an answer that does not fit


def test_a_part_of_unknown_origin_starts_afresh(remote: Remote, run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.pt.part").write_bytes(b"old" * 1000)
    assert run() == 0
    assert_whole(tmp_path)
    assert "Range" not in remote.asked[0]


def test_a_server_without_ranges_starts_afresh(remote: Remote, run: Run, tmp_path: Path) -> None:
    remote.ranges, remote.cuts = False, [100_000]
    assert run() == 0
    assert_whole(tmp_path)
    assert len(remote.asked) == 2


def test_a_server_without_validators_starts_afresh(remote: Remote, run: Run, tmp_path: Path) -> None:
    remote.headers, remote.cuts = {}, [100_000]
    assert run() == 0
    assert_whole(tmp_path)
    assert "Range" not in remote.asked[1]


def test_a_whole_part_needs_no_request(remote: Remote, run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.pt.part").write_bytes(BODY)
    (tmp_path / "net.pt.part.origin").write_text(f'{len(BODY)}\n"first"')
    assert run() == 0
    assert_whole(tmp_path)
    assert not remote.asked


def test_chunked_bodies(remote: Remote, run: Run, tmp_path: Path) -> None:
    remote.chunked = True
    assert run() == 0
    assert_whole(tmp_path)


def test_a_cut_chunked_body_is_not_taken_for_whole(remote: Remote, run: Run, tmp_path: Path) -> None:
    remote.chunked, remote.promised = True, 10
    assert run() == 1
    assert_part(tmp_path, BODY)
    assert "Range" not in remote.asked[-1]  # without a size a resume could not be checked


@pytest.mark.parametrize("chunked", [True, False])
def test_an_empty_body_is_not_a_file(remote: Remote, run: Run, tmp_path: Path, chunked: bool) -> None:
    remote.body, remote.chunked = b"", chunked
    assert run() == 1
    assert not (tmp_path / "net.pt").exists()


def test_a_body_without_an_end_is_refused(
    remote: Remote, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote.length = False
    assert run() == 1
    assert "where the file ends" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_body_that_never_gets_whole_is_an_error(
    remote: Remote, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote.promised = 10
    assert run() == 1
    assert_part(tmp_path, BODY)
    assert len(remote.asked) == download.ATTEMPTS
    error = capsys.readouterr().err.splitlines()[-1]
    assert "300000 of 300010" in error and "run the same command again" in error


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        ("text/html; charset=utf-8", b"Quota exceeded"),
        ("application/octet-stream", b"\n<!DOCTYPE html><HTML><title>Please log in</title></html>"),
    ],
)
def test_a_web_page_is_not_saved(
    remote: Remote, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, page: bytes
) -> None:
    remote.body, remote.headers = page, {"Content-Type": kind}
    (tmp_path / "net.pt.part").write_bytes(BODY[:1000])
    (tmp_path / "net.pt.part.origin").write_text(f'{len(BODY)}\n"first"')
    assert run() == 1
    assert_part(tmp_path, BODY[:1000])  # what an earlier run got is still good
    assert "web page" in capsys.readouterr().err


@pytest.mark.parametrize("code", [403, 404])
def test_a_refusal_is_an_error_at_once(
    remote: Remote, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    remote.statuses = [code] * 9
    assert run() == 1
    assert len(remote.asked) == 1 and not list(tmp_path.iterdir())
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"HTTP {code}" in error and error.endswith("A note.")


def test_an_overloaded_server_is_asked_again(remote: Remote, run: Run, tmp_path: Path) -> None:
    remote.statuses = [503, 429]
    assert run() == 0
    assert_whole(tmp_path)


def test_without_a_network_says_what_to_fetch_by_hand(
    remote: Remote, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refuses connections
        remote.url = f"http://127.0.0.1:{unused.getsockname()[1]}/net.pt"
        assert run() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "no connection" in error
    assert remote.url in error and str(tmp_path / "net.pt") in error
    assert not list(tmp_path.iterdir())


def test_one_failure_does_not_stop_the_others(
    remote: Remote, tmp_path: Path, status: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.statuses = [404]
    registry = {name: download.Weight(remote.url, f"{name}.pt", "tests", "") for name in ("gone", "net")}
    monkeypatch.setattr(download, "REGISTRY", registry)
    assert status("gone", "net", "--output", tmp_path) == 1
    assert_whole(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error(remote: Remote, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.pt.part").symlink_to("/dev/full")
    assert run() == 1
    assert not (tmp_path / "net.pt").exists()
    assert os.strerror(errno.ENOSPC) in capsys.readouterr().err.splitlines()[-1]


def test_ctrl_c_keeps_the_part(remote: Remote, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(progress: object, done: int) -> None:
        if done > 1000:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download._Progress, "draw", interrupt)
        assert run() == 130
    kept = (tmp_path / "net.pt.part").stat().st_size
    assert kept > 1000 and not (tmp_path / "net.pt").exists()
    assert run() == 0
    assert_whole(tmp_path)
    assert remote.asked[1].get("Range", f"bytes={kept}-") == f"bytes={kept}-"


def test_kill_9_in_the_middle_then_resume(remote: Remote, run: Run, tmp_path: Path) -> None:
    remote.hold = threading.Event()
    program = (
        "import sys; from openworldsam import cli, download as d\n"
        "d.SCHEMES, d.REGISTRY = ('http',), {'net': d.Weight(sys.argv[1], 'net.pt', '', '')}\n"
        "cli.run('download', ['net', '--output', sys.argv[2]])\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, remote.url, str(tmp_path)])
    part, deadline = tmp_path / "net.pt.part", time.monotonic() + 10
    while not part.exists() or part.stat().st_size < 100_000:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    remote.hold.set()
    kept = part.stat().st_size
    assert part.read_bytes() == BODY[:kept]
    assert run() == 0
    assert_whole(tmp_path)
    assert remote.asked[1]["Range"] == f"bytes={kept}-"


@pytest.mark.parametrize("note", [b"", b"x\ny", b"\xff\n\xff", b"-1\ny", b"9" * 5000 + b"\ny"])
def test_a_damaged_note_of_a_part_begins_again(remote: Remote, run: Run, tmp_path: Path, note: bytes) -> None:
    (tmp_path / "net.pt.part").write_bytes(BODY[:1000])
    (tmp_path / "net.pt.part.origin").write_bytes(note)
    assert run() == 0
    assert_whole(tmp_path)


def test_a_kill_after_the_rename_leaves_no_note(remote: Remote, run: Run, tmp_path: Path) -> None:
    assert run() == 0
    (tmp_path / "net.pt.part.origin").write_text('300000\n"first"')
    assert run() == 0
    assert_whole(tmp_path)


def test_a_file_other_than_the_recorded_one_is_not_kept(
    remote: Remote, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.pt.sha256").write_text(f"{'0' * 64}  net.pt\n")
    assert run() == 1
    assert not (tmp_path / "net.pt").exists() and not (tmp_path / "net.pt.part").exists()
    error = capsys.readouterr().err.splitlines()[-1]
    assert SHA256 in error and "0" * 64 in error
    (tmp_path / "net.pt.sha256").write_text(f"{SHA256.upper()} *net.pt\n")
    assert run() == 0
    assert_whole(tmp_path)


def test_a_file_that_is_there_is_left_alone(remote: Remote, run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(b"mine")
    assert run() == 0
    assert (tmp_path / "net.pt").read_bytes() == b"mine"
    assert not remote.asked


@pytest.mark.parametrize("known", [{"sha256": SHA256}, {"sha256": SHA256, "size": len(BODY)}])
def test_a_published_file_is_fetched_and_verified_without_a_record(
    remote: Remote, run: Run, tmp_path: Path, known: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(**known) == 0
    assert_whole(tmp_path)
    (tmp_path / "net.pt.sha256").unlink()
    assert run("--verify", **known) == 0
    (tmp_path / "net.pt").write_bytes(b"damaged")
    assert run("--verify", **known) == 1
    assert f"the published file {SHA256}" in capsys.readouterr().err


def test_another_file_than_the_published_one_is_not_kept(
    remote: Remote, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sha256="0" * 64) == 1
    assert SHA256 in capsys.readouterr().err.splitlines()[-1]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_of_another_size_than_the_published_one_is_not_fetched(
    remote: Remote, run: Run, tmp_path: Path, chunked: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    remote.chunked = chunked
    assert run(size=1000) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert ("more than 1,000 bytes" if chunked else f"{len(BODY):,} bytes, the published one has 1,000") in error
    assert len(remote.asked) == 1 and not (tmp_path / "net.pt").exists()


def test_a_file_without_an_end_is_left(
    remote: Remote, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "MOST_BYTES", 1000)
    assert run() == 1
    assert "more than 1,000 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("moved", ["ftp://127.0.0.1/net.pt", "https://127.0.0.1:1/net.pt"])
def test_redirects_stay_within_the_scheme(
    remote: Remote, run: Run, tmp_path: Path, moved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    remote.moved = moved
    assert run() == 1
    assert f"{moved!r} is no https address" in capsys.readouterr().err or moved.startswith("https")
    assert len(remote.asked) == 1 and os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1/net.pt", "file:///etc/hostname", "net.pt"])
def test_only_https_is_asked(
    tmp_path: Path, url: str, status: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(download, "REGISTRY", {"net": download.Weight(url, "net.pt", "", "")})
    assert status("net", "--output", tmp_path) == 1
    assert f"{url!r} is no https address" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP"])
def test_an_encoded_body_is_not_a_file(
    remote: Remote, run: Run, tmp_path: Path, encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    remote.headers = {"Content-Encoding": encoding}
    assert run() == 1
    assert f"encoded ({encoding.lower()!r})" in capsys.readouterr().err
    assert remote.asked[0]["Accept-Encoding"] == "identity" and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"\xef\xbb\xbf \n<!DocType html><body>", "application/octet-stream"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "application/octet-stream"),
        (b'{"error": "quota"}', "application/json; charset=utf-8"),
        (b"anything", "application/xhtml+xml"),
    ],
)
def test_other_pages_are_no_files(remote: Remote, run: Run, tmp_path: Path, body: bytes, kind: str) -> None:
    remote.body, remote.headers = body, {"Content-Type": kind}
    assert run() == 1
    assert os.listdir(tmp_path) == []


def test_a_link_is_written_through(remote: Remote, run: Run, tmp_path: Path) -> None:
    (tmp_path / "large_disk").mkdir()
    (tmp_path / "net.pt").symlink_to("large_disk/net.pt")
    assert run() == 0
    assert_whole(tmp_path / "large_disk")
    assert (tmp_path / "net.pt").is_symlink()


def test_a_folder_in_the_place_of_the_file_is_an_error(
    remote: Remote, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.pt").mkdir()
    assert run() == 1
    assert "it is no file" in capsys.readouterr().err


def test_a_link_to_itself_is_no_output(tmp_path: Path, status: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "self").symlink_to("self")
    assert status("beit3_tokenizer", "--output", tmp_path / "self") == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/self/beit3.spm: ")


def test_published_checksums_are_those_of_files_in_the_registry() -> None:
    known = {weight.filename: (weight.sha256, weight.size) for weight in download.REGISTRY.values() if weight.sha256}
    assert known == download.PUBLISHED
    assert all(len(sha256) == 64 and int(sha256, 16) for sha256, _ in known.values())
    assert "evf_sam2_bin" not in download.REGISTRY and "guess" not in download.REGISTRY["evf_sam2"].purpose
    assert "guess" in download.REGISTRY["evf_sam2_multitask"].purpose


def test_verify(remote: Remote, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--verify") == 0
    assert run("--verify") == 0
    assert SHA256 in capsys.readouterr().err
    (tmp_path / "net.pt").write_bytes(b"damaged")
    assert run() == 0
    assert run("--verify") == 1
    assert SHA256 in capsys.readouterr().err
    (tmp_path / "net.pt.sha256").unlink()
    assert run("--verify") == 1
    assert "net.pt.sha256 is missing" in capsys.readouterr().err
    assert (tmp_path / "net.pt").exists() and len(remote.asked) == 1


@pytest.fixture
def hub(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let `run` take its file from the server as from Hugging Face; returns the place of huggingface_hub's cache."""
    cache, endpoint = tmp_path.with_name(f"{tmp_path.name}_hub"), remote.url.removesuffix("/net.pt")
    fetch = functools.partial(huggingface_hub.hf_hub_download, endpoint=endpoint, cache_dir=cache)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(download, "HUB_FILE", re.compile(download.HUB_FILE.pattern.replace(HUB, re.escape(endpoint))))
    remote.url = f"{endpoint}/someone/net/resolve/main/net.pt"
    remote.headers["X-Repo-Commit"] = "0" * 40
    return cache


@pytest.mark.parametrize("other_disk", [False, True])
def test_a_file_of_hugging_face_comes_through_its_cache(
    remote: Remote, hub: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_disk: bool
) -> None:
    if other_disk:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "another disk")))
    assert run(sha256=SHA256) == 0
    assert_whole(tmp_path)
    (blob,) = (path for path in hub.glob("models--someone--net/blobs/*") if path.is_file())
    assert os.path.samefile(blob, tmp_path / "net.pt") != other_disk
    (tmp_path / "net.pt").unlink()
    remote.body = b"asked for only once"
    assert run(sha256=SHA256) == 0
    assert_whole(tmp_path)


def test_a_file_of_hugging_face_needs_no_client(
    remote: Remote, hub: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run(sha256=SHA256) == 0
    assert_whole(tmp_path)
    assert [asked["User-Agent"] for asked in remote.asked] == ["openworldsam-download"] and not hub.exists()


def test_another_file_than_the_published_one_is_not_taken_from_hugging_face(
    hub: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(sha256="0" * 64) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"has SHA-256 {SHA256}" in error and str(hub) in error  # the file to delete
    assert os.listdir(tmp_path) == []


def test_a_refusal_of_hugging_face_is_an_error_in_a_line(
    remote: Remote, hub: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote.statuses = [404] * 20
    assert run() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'net.pt'}: ") and "404" in error and error.endswith("A note.")
    assert os.listdir(tmp_path) == []


def test_fetch_says_what_and_how_much_and_takes_what_is_missing(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {name: download.Weight(remote.url, f"{name}.pt", "tests", "") for name in ("net", "here")}
    weights["net"] = dataclasses.replace(weights["net"], parameters=600)
    monkeypatch.setattr(download, "REGISTRY", weights)
    monkeypatch.setenv("OPENWORLDSAM_WEIGHTS", str(tmp_path))
    (tmp_path / "here.pt").write_bytes(b"mine")
    for asked in (1, 1):  # the second time nothing is missing
        assert download.fetch(["here", "net"]) == [tmp_path / "here.pt", tmp_path / "net.pt"]
        assert len(remote.asked) == asked
    assert (tmp_path / "here.pt").read_bytes() == b"mine" and (tmp_path / "net.pt").read_bytes() == BODY
    assert capsys.readouterr().err.splitlines() == [
        f"fetching net.pt (2.4 GB) into {tmp_path}; `openworldsam download --list` names their terms",
        f"{tmp_path / 'net.pt'}: fetching {remote.url}",
    ]
    with pytest.raises(KeyError, match=r"there is no nett; did you mean net\?"):
        download.fetch(["net", "nett"])
    remote.statuses = [404]
    (tmp_path / "net.pt").unlink()
    with pytest.raises(ValueError, match="HTTP 404"):
        download.fetch(["net"])


def test_names_of_files() -> None:
    files = ["weights/model_final.pth", Path("mine.pth"), "/a/beit3.spm", "model_final.pth"]
    assert download.names_of(files) == ["openworldsam_coco", "beit3_tokenizer"]


def test_the_script_of_a_clone_needs_no_packages(tmp_path: Path) -> None:
    command = [sys.executable, "-S", str(ROOT / "weights" / "download.py"), "--help"]
    shown = subprocess.run(command, cwd=tmp_path, env={"COLUMNS": "500"}, capture_output=True, text=True, check=True)
    assert f"default: {ROOT / 'weights'}\n" in shown.stdout
    failed = subprocess.run([*command[:-1], "--lst"], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr == "error: there is no option --lst; did you mean --list? (openworldsam download --help)\n"
    listed = subprocess.run([*command[:-1], "--list"], cwd=tmp_path, env={}, capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 1 + len(download.REGISTRY)


def test_list_shows_every_name_and_what_is_here(
    tmp_path: Path, status: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sam2_hiera_large.pt").touch()
    (tmp_path / "model_final.pth.part").touch()
    assert status("--list", "--output", tmp_path) == 0
    rows = {row.split()[0]: row.split() for row in capsys.readouterr().out.splitlines()}
    assert list(rows) == ["NAME", *download.REGISTRY]
    assert rows["sam2_hiera_large"][2:4] == ["0.9", "yes"]
    assert rows["openworldsam_coco"][2:4] == ["3.6", "part"]  # calculated: 902 million parameters of 4 bytes
    assert rows["beit3_tokenizer"][1:4] == ["beit3.spm", "0.0014", "no"]
    assert rows["beit3_tokenizer"][-1].startswith("https://")


def test_an_unknown_name_lists_near_ones_before_anything_is_fetched(
    remote: Remote, tmp_path: Path, status: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = {"net": download.Weight(remote.url, "net.pt", "tests", ""), **download.REGISTRY}
    monkeypatch.setattr(download, "REGISTRY", registry)
    assert status("net", "sam2_heira_large", "--output", tmp_path) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: there is no sam2_heira_large; did you mean sam2_hiera_large")
    assert not remote.asked


def test_the_registry_is_sound() -> None:
    weights = download.REGISTRY.values()
    assert len({weight.filename for weight in weights}) == len({weight.url for weight in weights}) == len(weights)
    for weight in weights:
        assert weight.url.startswith("https://") and weight.terms_url.startswith("https://") and weight.purpose
        assert Path(weight.filename).name == weight.filename


@pytest.mark.parametrize("total", [4_000_000, 0], ids=["size known", "size unknown"])
def test_the_bar(monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock, terminal = iter([0.0, 0.1, 1.0]), Terminal()
    monkeypatch.setattr(download.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = download._Progress(1_000_000, total)
    progress.draw(1_500_000)  # too soon after the start
    progress.draw(2_000_000)
    known = "[##########..........] 2.0 of 4.0 MB, 1.0 MB/s, 0:02 left"
    unknown = "[####################] 2.0 of 2.0 MB, 1.0 MB/s, 0:00 left"
    assert terminal.getvalue() == f"\r\033[K{known if total else unknown}"


def test_a_folder_is_complete_with_the_shards_of_its_index(
    remote: Remote, status: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here() -> str:
        assert status("--list", "--output", tmp_path) == 0
        return capsys.readouterr().out.splitlines()[1].split()[3]

    files = ("config.json", "model.safetensors.index.json")
    monkeypatch.setattr(download, "REGISTRY", {"net": download.Weight(remote.url, "net", "tests", "", files=files)})
    remote.headers["Content-Type"] = "application/json"
    remote.body = b'{"weight_map": {"a": "b.safetensors", "c": "d.safetensors", "e": "b.safetensors"}}'
    assert here() == "no"
    assert status("net", "--output", tmp_path) == 1  # JSON in place of a shard
    assert sorted(path.name for path in (tmp_path / "net").iterdir() if path.suffix == ".json") == sorted(files)
    assert "d.safetensors" not in os.listdir(tmp_path / "net") and here() == "part"
    remote.headers["Content-Type"], remote.body = "application/octet-stream", BODY
    assert status("net", "--output", tmp_path) == 0
    assert (tmp_path / "net/d.safetensors").read_bytes() == (tmp_path / "net/b.safetensors").read_bytes() == BODY
    assert here() == "yes"


@pytest.mark.parametrize("index", [b"[]", b'{"weight_map": {"a": "../b.bin"}}', b'{"weight_map": {"a": 1}}', b"{"])
def test_a_damaged_index_is_an_error(
    status: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], index: bytes
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/model.bin.index.json").write_bytes(index)
    weight = download.Weight("https://example.org", "net", "", "", files=("model.bin.index.json",))
    monkeypatch.setattr(download, "REGISTRY", {"net": weight})
    assert status("net", "--output", tmp_path) == 1
    assert "model.bin.index.json is damaged" in capsys.readouterr().err
