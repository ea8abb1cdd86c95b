"""The server against raw requests: whatever is sent, it answers with one clear message and serves the next visitor."""

import contextlib
import http.client
import io
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import serving
from PIL import Image
from processes import TIME_LIMIT, is_running

pytest.importorskip("gradio")

from functools import partial

from openworldsam import cli
from openworldsam.app.command import serve
from openworldsam.app.guard import MAX_REQUEST
from openworldsam.app.session import MAX_CLICKS
from openworldsam.app.uploads import MAX_BYTES, MAX_WAITING, Uploads, server_folder
from openworldsam.utils.files import MACHINE

parse_args = partial(cli.parse, "app")

ROOT = Path(__file__).parents[2]
USUAL = [0.7, 0.5, 0.5]
MAX_WORK = 2_000_000


class Visitor:
    """A program that speaks with the server as the page does, and as it does not."""

    def __init__(self, port):
        self.port, self.session = port, secrets.token_hex(8)

    def request(self, method, path, body=None, **headers):
        """Status and content of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def post(self, path, content, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.request("POST", path, body, content_type="application/json", **headers)

    def upload(self, content, name="mine.png"):
        """Status and answer: the paths of the uploads, or a text."""
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        body = head + content + b"\r\n--b--\r\n"
        status, text = self.request("POST", "/gradio_api/upload", body, content_type="multipart/form-data; boundary=b")
        return status, json.loads(text) if status == 200 else text

    def call(self, index, *data, event=None):
        """Values that an action answers with, or its error message."""
        request = {"fn_index": index, "data": list(data), "event_data": event, "session_hash": self.session}
        status, text = self.post("/gradio_api/queue/join", request)
        assert status == 200, text
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
            for line in connection.getresponse():
                content = json.loads(line[5:]) if line.startswith(b"data:") else {}
                if content.get("msg") == "process_completed":
                    output = content["output"]
                    return output["data"] if content["success"] else output["error"]
        return None


def file_of(path):
    """The value of an upload control."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def page(shapes, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")  # restored afterwards
        page = serve(
            shapes, "127.0.0.1", None, folder, allowed_hosts=["segment.example.org"], queue=20, max_work=MAX_WORK
        )
        yield page
        page.close(verbose=False)


@pytest.fixture
def visitor(page):
    return Visitor(page.server_port)


@pytest.fixture(scope="module")
def actions(page):
    """Number of each action."""
    found = {}
    for function in page.config["dependencies"]:
        found.setdefault(function["api_name"], function["id"])
    return found


@pytest.fixture(scope="module")
def png(scenes):
    file = io.BytesIO()
    Image.fromarray(scenes["instance"].image).save(file, format="PNG")
    return file.getvalue()


@pytest.fixture
def opened(visitor, actions, png):
    """A visitor with an image and an answer."""
    path = visitor.upload(png)[1][0]
    assert visitor.call(actions["open"], file_of(path), None)[4].startswith("now type what to look for")
    assert len(visitor.call(actions["ask"], None, ["circle", "square"], "instance", *USUAL)[2]["data"])
    return visitor


def is_well(visitor, actions, png):
    """Whether the server still serves others."""
    path = visitor.upload(png)[1][0]
    return visitor.call(actions["open"], file_of(path), None)[4].startswith("now type what to look for")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.1.2.3", "localhost@evil.example", "", "a b"]
)
def test_names_that_are_not_the_servers_are_refused(visitor, host):
    """A web site whose name was made to mean this machine."""
    status, text = visitor.request("GET", "/config", host=host)
    assert status in (400, 403)
    if status == 403:
        assert "--allowed-hosts NAME adds a name" in text


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:7860"},
        {"host": "LocalHost."},
        {"host": "[::1]:7860"},
        {"host": "127.8.8.8"},
        {"host": "segment.example.org"},
        {"host": "127.0.0.1:1", "origin": "https://segment.example.org"},
        {"host": "127.0.0.1:1", "origin": "http://127.0.0.1:1"},
    ],
)
def test_names_of_the_server_are_known(visitor, headers):
    assert visitor.request("GET", "/config", **headers)[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://[", "segment.example.org"]
)
def test_requests_of_other_web_sites_are_refused(visitor, actions, origin):
    host = f"127.0.0.1:{visitor.port}"
    request = {"fn_index": actions["undo"], "data": [None], "session_hash": "a"}
    status, text = visitor.post("/gradio_api/queue/join", request, host=host, origin=origin)
    assert status in (400, 403) and "request" in json.loads(text)["detail"]
    assert visitor.post("/gradio_api/queue/join", request, host=host, origin=f"http://{host}")[0] == 200


def test_an_address_is_fetched_by_no_route(visitor, actions):
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(1)
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/a.png"
        for path in (f"/gradio_api/file={address}", f"/gradio_api/proxy={address}", f"/file={address}"):
            assert visitor.request("GET", path)[0] in (403, 404)
        for value in (
            file_of(address),
            {**file_of("a.png"), "url": address},
            {"path": "a.png", "url": address, "meta": {"_type": "gradio.FileData"}, "is_stream": True},
        ):
            assert visitor.call(actions["open"], value, None)[4] == "this is no upload: drop a file"
            answer = visitor.call(actions["ask"], None, [value], value, value, value, value)
            assert answer[3].startswith("there is no image")
        with pytest.raises(TimeoutError):
            elsewhere.accept()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/run/open"),
        ("POST", "/gradio_api/api/open"),
        ("POST", "/gradio_api/call/open"),
        ("POST", "/gradio_api/call/v2/open"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/vibe-edit"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("PUT", "/config"),
        ("GET", "/../../etc/passwd"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/static/../../../../etc/passwd"),
        ("TRACE", "/"),
    ],
)
def test_routes_that_the_page_does_not_need(visitor, method, path):
    status, text = visitor.request(method, path, b"{}" if method == "POST" else None)
    assert status in (403, 404) and "root:" not in text


def test_every_action_is_tried(actions):
    """Another action needs a line in the tests below."""
    tried = {"open", "open_example", "ask", "ask_again", "list_click", "image_click", "undo", "show_all", "save"}
    assert {name.removesuffix("_1") for name in actions} - {"js_fn"} == tried | {"_slider_visibility"}


WRONG = [
    None,
    True,
    -1,
    10**9,
    1e308,
    float("nan"),
    "",
    "a\x1b[2J<b>",
    "9" * 100_000,
    [],
    [[]],
    [None],
    {},
    {"path": 1},
]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: f"{value!r:.20}")
def test_a_wrong_value_in_every_place_of_every_action_is_a_message(opened, actions, value):
    def message(index, *data, event=None):
        answer = opened.call(index, *data, event=event)
        assert isinstance(answer, list), answer
        text = answer[4] if index == actions["open"] else answer[3]
        assert text and "went wrong" not in text and "\x1b" not in text and len(text) < 400
        return text

    if value is not None:
        assert message(actions["open"], value, None) == "this is no upload: drop a file"
    for ask in ("ask", "ask_again"):
        good = [None, ["circle"], "instance", *USUAL]
        for place in range(1, 5):
            message(actions[ask], *good[:place], value, *good[place + 1 :])
    if value not in ("", "a\x1b[2J<b>"):  # a text may be a prompt
        message(actions["ask"], None, [value], "instance", *USUAL)
    for event in (value, {"index": value}, {"index": [value, 1], "row_value": [value], "value": value}):
        if not (isinstance(event, dict) and isinstance(event.get("index"), list)):
            assert "example" in message(actions["open_example"], None, event=event) or "lacks" in message(
                actions["open_example"], None, event=event
            )
        assert message(actions["list_click"], None, event=event)
        assert message(actions["image_click"], None, "Select", event=event)
    message(actions["image_click"], None, value, event={"index": [5, 5]})
    assert isinstance(opened.call(actions["_slider_visibility"], value), list)
    for name in ("undo", "show_all"):
        assert isinstance(opened.call(actions[name], value), list)


def test_row_numbers_out_of_range(opened, actions):
    for row in (0, -1, 99, "0", "99"):
        text = opened.call(actions["list_click"], None, event={"index": [0, 0], "row_value": [row]})[3]
        assert text.startswith(f"there is no mask {row!r}; there are ")
    assert opened.call(actions["list_click"], None, event={"row_value": ["1"]})[3].startswith("mask 1: ")
    text = opened.call(actions["image_click"], None, "Select", event={"index": [-1, 5]})[3]
    assert text == "a click is a place x, y in 448 x 448 pixels, got [-1, 5]"


def test_thresholds_as_text(opened, actions):
    text = opened.call(actions["ask"], None, ["circle"], "instance", "high", 0.5, 0.5)[3]
    assert "from 0 to 1" in text and "high" in text


@pytest.mark.parametrize(
    "request_",
    [
        {"fn_index": 99, "data": [None], "session_hash": "a"},
        {"fn_index": -1, "data": [], "session_hash": "a"},
        {"fn_index": "undo", "data": [None], "session_hash": "a"},
        {"fn_index": None, "data": [None], "session_hash": "a"},
        {"data": [None]},
        {"fn_index": 0, "data": "text", "session_hash": "a"},
        {"fn_index": 0, "data": [None, None]},
        {"fn_index": 0, "data": [None, None], "session_hash": 5},
        [],
        None,
        b"",
        b"{",
        b"[" * 500_000,
        b"\xff\xfe",
    ],
    ids=lambda value: f"{value!r:.60}",
)
def test_requests_of_wrong_form_are_refused(visitor, actions, png, request_):
    status, text = visitor.post("/gradio_api/queue/join", request_)
    assert 400 <= status < 500 and "Traceback" not in text
    assert is_well(visitor, actions, png)


def test_a_wrong_number_of_values_is_a_message(visitor, actions):
    for data in ([], [None] * 3, [None] * 1000):
        assert "no request of this page: it has" in visitor.call(actions["undo"], *data)


def test_huge_requests_are_refused(visitor, actions, png):
    status, text = visitor.post("/gradio_api/queue/join", b" " * (MAX_REQUEST + 1))
    assert status == 413 and "more than 1 MB" in text
    status, text = visitor.upload(bytes(MAX_BYTES + 2))
    assert status == 413 and "size" in text
    assert visitor.upload(bytes(MAX_BYTES + MAX_REQUEST))[0] == 413
    assert is_well(visitor, actions, png)


def test_the_masks_of_a_question_are_bounded(visitor, actions, png, shapes):
    visitor.call(actions["open"], file_of(visitor.upload(png)[1][0]), None)
    each = 192 * 192 * shapes.model.adapter.num_queries
    most = MAX_WORK // each
    prompts = [f"prompt {n}" for n in range(most + 1)]
    text = visitor.call(actions["ask"], None, prompts, "semantic", *USUAL)[3]
    assert f"{most + 1} prompts on 192 x 192 pixels take masks of {(most + 1) * each / 1e6:.0f} million pixels" in text
    assert f"the limit is 2 (openworldsam app --max-work): ask for at most {most} at once" in text
    for few, task in ((prompts[:-1], "semantic"), (prompts, "referring")):
        assert "limit" not in visitor.call(actions["ask"], None, few, task, *USUAL)[3]


def test_clicks_are_bounded(visitor, actions, png, monkeypatch):
    monkeypatch.setattr("openworldsam.app.session.MAX_CLICKS", 2)
    visitor.call(actions["open"], file_of(visitor.upload(png)[1][0]), None)
    visitor.call(actions["ask"], None, ["circle"], "instance", *USUAL)
    messages = []
    for n in range(3):
        visitor.call(actions["show_all"], None)
        messages.append(visitor.call(actions["image_click"], None, "Add", event={"index": [50 + 90 * n, 50]})[3])
    assert "at most 2 clicks" in messages[2] and "at most" not in messages[1]
    assert MAX_CLICKS == 100


def test_an_example_is_not_deleted_and_another_visitors_upload_not_taken(page, visitor, actions, folder, png):
    other = Visitor(page.server_port)
    theirs = other.upload(png)[1][0]
    examples = list(folder.rglob("*.webp"))
    assert len(examples) == 4 and theirs not in set(map(str, examples))
    mine = visitor.upload(png)[1][0]
    assert mine != theirs and Path(mine).name == Path(theirs).name == "mine.png"
    for path in (
        *map(str, examples),
        str(Path(theirs).parent),
        str(folder),
        f"{mine}/../../../../..",
        mine + "\0",
        "x" * 5000,
    ):
        assert visitor.call(actions["open"], file_of(path), None)[4] == "this is no upload: drop a file"
    assert all(path.exists() for path in examples) and Path(theirs).exists()
    guessed = str(Path(theirs).parents[1].with_name("0" * 32) / Path(theirs).parent.name / "mine.png")
    assert "is gone" in visitor.call(actions["open"], file_of(guessed), None)[4]
    assert other.call(actions["open"], file_of(theirs), None)[4].startswith("now type what to look for")
    assert not Path(theirs).parents[1].exists()


def test_sixteen_visitors_drop_the_same_file_at_once(page, actions, png):
    visitors = [Visitor(page.server_port) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(lambda visitor: visitor.upload(png)[1][0], visitors))
        opened = pool.map(lambda v, path: v.call(actions["open"], file_of(path), None)[4], visitors, paths)
        assert [message.partition("\n")[0] for message in opened] == ["now type what to look for"] * 16


def test_waiting_uploads_are_bounded(visitor, folder, png):
    left = [folder / "uploads" / f"waiting{n}" for n in range(MAX_WAITING)]
    for path in left:
        path.mkdir()
    status, text = visitor.upload(png)
    assert status == 503 and "too many uploads wait" in text
    for path in left:
        path.rmdir()
    assert visitor.upload(png)[0] == 200


def test_a_session_is_only_its_visitors(page, opened, actions):
    stranger = Visitor(page.server_port)
    for name in ("undo", "show_all"):
        assert stranger.call(actions[name], None)[3].startswith("there is no image")
    assert stranger.call(actions["save"], None)[1].startswith("there is no image")
    assert opened.call(actions["show_all"], None)[3].startswith("circle ")


def test_a_full_queue_says_so(page, visitor, actions, monkeypatch):
    monkeypatch.setattr(page._queue, "max_size", 0)
    request = {"fn_index": actions["undo"], "data": [None], "session_hash": "a"}
    status, text = visitor.post("/gradio_api/queue/join", request)
    assert status == 503 and "Queue is full" in text


def test_behind_a_proxy_the_page_names_its_path(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    page = serve(shapes, "127.0.0.1", None, tmp_path, root_path="/segment", allowed_hosts=["example.org"])
    try:
        status, text = Visitor(page.server_port).request("GET", "/config", host="example.org")
        assert status == 200 and json.loads(text)["root"].endswith("/segment")
    finally:
        page.close(verbose=False)


@pytest.mark.parametrize("words", [("--queue", "0"), ("--max-work", "0"), ("--root-path", "segment")])
def test_options_out_of_range(words, capsys):
    with pytest.raises(SystemExit):
        parse_args(words)
    assert words[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def start(tmp_path, tiny_opts):
    """Start a server by a function of its command line that returns its pid and the file of its stdout; returns its pid
    and the folder of its temporary files."""
    started = []

    def start(run):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        words = ["--config-file", str(ROOT / "configs/tiny.yaml"), "--port", str(port), "--opts", *tiny_opts]
        pid, printed = run(words)
        started.append(pid)
        while "Ctrl-C" not in printed.read_text():
            assert is_running(pid)
            time.sleep(0.05)
        Visitor(port).upload(b"waits")
        (folder,) = tmp_path.glob(f"openworldsam-app-{MACHINE}-{pid}-*")
        assert len(list((folder / "uploads").iterdir())) == 1
        return pid, folder

    yield start
    for pid in filter(is_running, started):
        os.kill(pid, signal.SIGKILL)


def test_a_stopped_server_leaves_no_upload(start, tmp_path):
    """The whole command: Python ends although the server had threads."""
    started = []

    def run(words):
        program = "from openworldsam.cli import app; app()"
        environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        with (tmp_path / "printed").open("w") as file:
            started.append(subprocess.Popen([sys.executable, "-c", program, *words], env=environment, stdout=file))
        return started[0].pid, tmp_path / "printed"

    _, folder = start(run)
    started[0].send_signal(signal.SIGTERM)
    assert started[0].wait(TIME_LIMIT) == 143 and not folder.exists()


def test_a_killed_servers_uploads_go_at_the_next_start(start, processes, tmp_path):
    started = []

    def run(words):
        started.append(processes.start(serving.serve, tmp_path, words))
        return started[-1].pids[0], started[-1].folder / "0.out"

    _, folder = start(run)
    started[0].send(signal.SIGKILL)
    started[0].ended()
    assert folder.exists()
    _, theirs = start(run)
    assert not folder.exists() and theirs.exists()


def test_only_folders_of_dead_servers_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    target = tmp_path / "precious"
    names = [
        f"openworldsam-app-{MACHINE}-{os.getpid()}-abcdefgh",
        "openworldsam-app-mine",
        f"xopenworldsam-app-{MACHINE}-{dead.pid}-abcdefgh",
    ]
    kept = [target, *(tmp_path / name for name in names)]
    for path in kept:
        path.mkdir()
    link = tmp_path / f"openworldsam-app-{MACHINE}-{dead.pid}-linklink"
    link.symlink_to(target)
    left = tmp_path / f"openworldsam-app-{MACHINE}-{dead.pid}-abcdefgh"
    (left / "uploads").mkdir(parents=True)
    with server_folder() as folder:
        assert folder.exists() and not left.exists() and all(path.exists() for path in kept) and link.is_symlink()
    assert not folder.exists()


def test_only_old_uploads_are_swept(tmp_path, png):
    uploads = Uploads(tmp_path)
    for name, age in (("old", 100), ("new", 0)):
        path = uploads.folder / name / "hash/a.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png)
        for place in (path, path.parent, path.parents[1]):
            os.utime(place, (time.time() - age,) * 2)
    uploads.sweep(60)
    assert [path.name for path in uploads.folder.iterdir()] == ["new"]
