import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openworldsam.annotate.images import FolderImages, LoadedImage, find_images
from openworldsam.evaluation.examples import Unreadable


def write_image(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 7, dtype=np.uint8)).save(path)


def test_images_are_found_in_subfolders(tmp_path, monkeypatch):
    for name in ("b.png", "a/c.JPG", "a/b.png", ".hidden.png", ".cache/d.png", "out/e.png", "output/f.png"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "lost.png").symlink_to("nowhere.png")
    (tmp_path / "linked.png").symlink_to("folder.png")
    expected = ["a/b.png", "a/c.JPG", "b.png", "lost.png", "output/f.png"]
    assert find_images(tmp_path, tmp_path / "out") == expected
    monkeypatch.chdir(tmp_path)
    assert find_images(tmp_path, Path("out")) == expected


def test_folders_that_cannot_be_annotated(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_images(tmp_path / "none", tmp_path)
    with pytest.raises(FileNotFoundError, match="has no image"):
        find_images(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="use another --output"):
        find_images(tmp_path, tmp_path / "out/..")
    (tmp_path / "b.heic").write_bytes(b"")
    for name in ("a.png", "b.png", "b.jpg"):
        write_image(tmp_path / name)
    with pytest.raises(ValueError, match="2 images named b;"):
        find_images(tmp_path, tmp_path / "out")


def test_images_of_other_formats_are_listed_unless_they_were_converted(tmp_path):
    for name in ("a.HEIC", "b.heic", "b.avif", "c.heif", "d.jp2", "c.jpg", "e.pdf"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    names = find_images(tmp_path, tmp_path / "out")
    assert [name[0] for name in names] == ["a", "b", "c", "d"] and names[2] == "c.jpg"
    lost = FolderImages(tmp_path, names)[0]
    assert isinstance(lost, Unreadable) and "a.HEIC is not a readable image: it is HEIC; convert it" in lost.reason


def test_what_is_no_file_is_reported_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    write_image(tmp_path / "a.png")
    names = find_images(tmp_path, tmp_path / "out")
    assert names == ["a.png", "pipe.png", "zero.png"]
    _, pipe, device = (FolderImages(tmp_path, names)[index] for index in range(3))
    assert isinstance(pipe, Unreadable) and "pipe.png is a pipe, where a file is needed" in pipe.reason
    assert isinstance(device, Unreadable) and "zero.png is a device, where a file is needed" in device.reason


def test_damaged_images_are_named(tmp_path):
    write_image(tmp_path / "good.png")
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    write_image(tmp_path / "bell\x07.png")
    names = ["good.png", "cut.png", "empty.jpg", "bell\x07.png", "gone.png"]
    good, *bad = (FolderImages(tmp_path, names)[index] for index in range(5))
    assert isinstance(good, LoadedImage) and good.pixels.shape == (8, 6, 3) and good.version[0] == len(content)
    assert [other.file_name for other in bad if isinstance(other, Unreadable)] == names[1:]
    reasons = ["is not a readable image", "is not a readable image", "no annotation file can hold", "gone.png"]
    assert all(reason in other.reason for reason, other in zip(reasons, bad, strict=True))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
def test_no_damage_stops_the_loading(tmp_path, suffix):
    """Random bytes are changed in a file of each format."""
    generator = np.random.default_rng(0)
    write_image(tmp_path / f"a{suffix}", (40, 50))
    content = np.frombuffer((tmp_path / f"a{suffix}").read_bytes(), dtype=np.uint8)
    names = []
    for number in range(40):
        damaged = content.copy()
        damaged[generator.integers(0, len(content), 4)] = generator.integers(0, 256, 4)
        names.append(f"{number}{suffix}")
        (tmp_path / names[-1]).write_bytes(damaged.tobytes())
    read = [FolderImages(tmp_path, names)[index] for index in range(len(names))]
    assert all(isinstance(each, (LoadedImage, Unreadable)) for each in read)
    assert any(isinstance(each, Unreadable) for each in read) or suffix == ".bmp"
