"""Files are written whole or not at all, with the permissions of the umask."""

import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from openworldsam.utils.files import (
    by_stem,
    checksum,
    find_files,
    read_any_json,
    read_json,
    regular_file,
    save_atomically,
    save_safetensors,
    save_text,
)
from openworldsam.utils.text import brief, shortened


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing_behind(error, tmp_path):
    seen = []

    def write(partial):
        partial.write_text("half")
        seen.append(partial)
        raise error

    with pytest.raises(error):
        save_atomically(tmp_path / "folder" / "file", write)
    assert seen[0] != tmp_path / "folder" / "file"
    assert list((tmp_path / "folder").iterdir()) == []


def test_others_may_read_what_safetensors_writes_for_its_owner(tmp_path):
    for umask, mode in ((0o022, 0o644), (0o027, 0o640), (0o002, 0o664)):
        path = tmp_path / f"{mode}.safetensors"
        before = os.umask(umask)
        try:
            save_atomically(path, lambda partial: save_file({"a": torch.zeros(1)}, partial))
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == mode


def test_a_reader_never_sees_a_half_written_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    during = []

    def write(partial):
        partial.write_text("new, ")
        during.append(path.read_text())
        partial.write_text("new, complete")

    save_atomically(path, write)
    assert during == ["old"]
    assert path.read_text() == "new, complete"


def test_the_checksum_of_files_is_that_of_their_bytes_in_a_row(tmp_path):
    for name, content in (("a", b"12" * 2**20), ("b", b"3")):
        (tmp_path / name).write_bytes(content)
    assert checksum(tmp_path / "a", tmp_path / "b") == zlib.crc32(b"12" * 2**20 + b"3")


def test_files_are_found_through_links_in_any_case_and_without_hidden_ones(tmp_path):
    root, store = tmp_path / "root", tmp_path / "store"
    names = ["root/a.PNG", "root/day/b.png", "root/.c.png", "root/.d/e.png", "root/g.jpg", "store/f.Png"]
    for path in (tmp_path / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "linked").symlink_to(store)
    (root / "lost.png").symlink_to("nowhere.png")
    (root / "day/up").symlink_to(root)  # which would never end
    (store / "back").symlink_to(root)
    (store / "self").symlink_to("self")  # which stops no other
    assert list(by_stem(root, (".png",))) == ["a", "day/b", "linked/f", "lost"]
    assert by_stem(root, (".png",))["linked/f"] == root / "linked/f.Png"
    assert find_files(tmp_path / "nowhere", (".png",)) == []
    (store / "e\u0301.png").touch()  # as macOS writes é
    assert by_stem(store, (".png",)).keys() >= {"\xe9"}
    (root / "a.png").touch()
    with pytest.raises(ValueError, match=r"several files named a: a\.PNG and a\.png"):
        by_stem(root, (".png",))


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    (tmp_path / "to_link").symlink_to("link")
    for text in ("first", "second"):
        save_text(tmp_path / "to_link", text)
        assert (tmp_path / "there/file").read_text() == text
    assert (tmp_path / "to_link").is_symlink() and (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]


def odd_file(kind, path):
    """Make a file that is no regular one."""
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    else:
        path.symlink_to("/dev/null")


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a socket", "a device"])
def test_only_regular_files_are_written_and_read(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd_file(kind, path := tmp_path / "out.json")
    before = path.lstat().st_ino
    with pytest.raises(FileExistsError, match=f"out.json is {kind}, not a regular file; give the name of a file"):
        save_text(path, "text")
    assert path.lstat().st_ino == before and os.listdir(tmp_path) == ["out.json"]
    for read in (regular_file, read_json, read_any_json):
        with pytest.raises(ValueError, match=f"out.json is {kind}, where a file is needed"):
            read(path)


def test_the_device_itself_stays():
    with pytest.raises(FileExistsError, match="/dev/null is a device"):
        save_text(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["\u56fe" * 83 + ".json", "x" * 255, os.fsdecode(b"\xff" * 250)])
def test_a_name_may_be_as_long_as_the_file_system_allows(name, tmp_path):
    save_text(tmp_path / name, "text")
    assert os.listdir(tmp_path) == [name]


def test_only_parts_of_the_same_file_and_of_processes_that_ended_are_removed(tmp_path, leave_part):
    left, others = leave_part(tmp_path / "a" / "file"), leave_part(tmp_path / "a" / "other")
    start, _, rest = left.name.partition("-")
    mine = left.with_name(f"{start}-{os.getpid()}-9.part")  # of a process that runs
    elsewhere = [left.with_name(f"{start[:-8]}00000000-{rest}"), left.with_name(f"{start[:-8]}00000001-{rest}")]
    for path in (mine, *elsewhere):  # on other machines, one of them ages ago
        path.touch()
    os.utime(elsewhere[1], (time.time() - 100_000,) * 2)
    save_text(tmp_path / "a" / "file", "text")
    assert [path.exists() for path in (left, elsewhere[1])] == [False, False]
    assert all(path.exists() for path in (others, mine, elsewhere[0]))


def test_an_error_names_the_file_and_not_its_part(tmp_path):
    (tmp_path / "closed").mkdir()

    def write(partial):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*file'") as raised:
        save_atomically(tmp_path / "file", write)
    assert raised.value.errno == 28


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b'{"a": "\xff"}', b"9" * 5000, b""])
def test_what_is_not_json_is_an_error_in_a_short_line(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is not json") as raised:
        read_any_json(tmp_path / "a.json")
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


def test_values_in_messages_are_short():
    nested = "x"
    for _ in range(60):
        nested = [nested] * 9  # 9 ** 60 values
    for value in (nested, "x" * 10**6, dict.fromkeys(range(10**5)), 10**5000, b"x" * 10**5):
        assert len(brief(value)) <= 100
    assert (brief("a"), brief([1, "b"]), brief({"a": None})) == ("'a'", "[1, 'b']", "{'a': None}")
    assert shortened("abc" * 1000, 20).startswith("abcabc") and len(shortened("abc" * 1000, 20)) == 20


def test_what_a_killed_writer_of_safetensors_leaves_is_removed(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from openworldsam.utils.files import save_safetensors\n"
        "def write(part): (part.parent / '.tmpAbCdEf').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_safetensors(Path(sys.argv[1]), write)"
    )
    path = tmp_path / "a" / "b-c.safetensors"
    assert subprocess.run([sys.executable, "-c", program, path]).returncode == -signal.SIGKILL
    assert len(list(path.parent.iterdir())) == 2  # the part, and the folder of the writer's own file
    save_safetensors(path, lambda part: part.write_text("whole"))
    assert [file.read_text() for file in path.parent.iterdir()] == ["whole"]
