"""Files are written whole or not at all, with the permissions of the umask."""

import os
import zlib

import pytest
import torch
from safetensors.torch import save_file

from openworldsam.utils.files import by_stem, checksum, find_files, save_atomically


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
    assert list(by_stem(root, (".png",))) == ["a", "day/b", "linked/f", "lost"]
    assert by_stem(root, (".png",))["linked/f"] == root / "linked/f.Png"
    assert find_files(tmp_path / "nowhere", (".png",)) == []
    (root / "a.png").touch()
    with pytest.raises(ValueError, match=r"several files named a: a\.PNG and a\.png"):
        by_stem(root, (".png",))
