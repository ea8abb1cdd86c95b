import struct

import numpy as np
import pytest
from PIL import Image

from openworldsam.video import open_clip


def shades(count, size=(48, 64)):
    return [np.full((*size, 3), (20 * number % 256, 0, 200), np.uint8) for number in range(count)]  # BGR


def test_a_video_comes_frame_by_frame_in_rgb(tmp_path, write_video):
    write_video(tmp_path / "clip.mp4", shades(8))
    clip = open_clip(tmp_path / "clip.mp4")
    frames = list(clip.frames)
    assert clip.fps == 12.5 and clip.length == len(frames) == 8
    assert frames[0].shape == (48, 64, 3) and frames[0].dtype == np.uint8
    np.testing.assert_allclose(frames[5].mean(axis=(0, 1)), (200, 0, 100), atol=6)


def test_a_video_that_was_taken_upright_comes_upright(tmp_path, write_video):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32] = 255
    write_video(tmp_path / "clip.mp4", [image] * 3)
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    matrix = content.find(b"tkhd") + 44  # of the track header, 16.16 and 2.30 fixed point
    one = 1 << 16
    assert content[matrix : matrix + 36] == struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 48 * one, 0, 1 << 30)
    (tmp_path / "clip.mp4").write_bytes(content)
    frame = next(open_clip(tmp_path / "clip.mp4").frames)
    assert frame.shape == (64, 48, 3)  # turned clockwise: left is up
    assert frame[:30].min() > 200 and frame[34:].max() < 50


def test_a_folder_is_read_on_demand_in_the_order_of_its_numbers(tmp_path):
    for number in (10, 9, 1):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "frame11.png").write_text("not an image")
    (tmp_path / "notes.txt").write_text("not a frame")
    clip = open_clip(tmp_path)
    assert clip.length == 4
    assert [next(clip.frames)[0, 0, 0] for _ in range(3)] == [1, 9, 10]
    with pytest.raises(ValueError, match=r"frame11\.png is not a readable image"):
        next(clip.frames)


def test_other_inputs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.mp4 not found"):
        open_clip(tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="has no image"):
        open_clip(tmp_path)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match=r"text\.mp4 is not a readable video"):
        open_clip(tmp_path / "text.mp4")


def test_a_video_that_ends_early_is_reported(tmp_path, write_video, caplog):
    write_video(tmp_path / "whole.avi", shades(40, (240, 320)))
    content = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "part.avi").write_bytes(content[: len(content) // 2])
    clip = open_clip(tmp_path / "part.avi")
    assert 0 < len(list(clip.frames)) < 40
    assert "part.avi ends after" in caplog.text
