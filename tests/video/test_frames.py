import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from openworldsam.data.preprocessing import limit_pixels
from openworldsam.video import open_clip


def shades(count, size=(48, 64)):
    return [np.full((*size, 3), (20 * number % 256, 0, 200), np.uint8) for number in range(count)]  # BGR


def test_a_video_comes_frame_by_frame_in_rgb(tmp_path, write_video):
    write_video(tmp_path / "clip.mp4", shades(8))
    clip = open_clip(tmp_path / "clip.mp4")
    frames = list(clip.frames)
    assert clip.fps == 12.5 and clip.length == len(frames) == 8 and not clip.lost and clip.sound is None
    assert clip.times == pytest.approx(np.arange(8) / 12.5)
    assert frames[0].shape == (48, 64, 3) and frames[0].dtype == np.uint8
    np.testing.assert_allclose(frames[5].mean(axis=(0, 1)), (200, 0, 100), atol=6)


ONE = 1 << 16
MATRICES = {  # a, b, c, d of a track header, and how NumPy turns an image by them
    "upright": ((ONE, 0, 0, ONE), lambda image: image),
    "left is up": ((0, ONE, -ONE, 0), lambda image: np.rot90(image, -1)),
    "right is up": ((0, -ONE, ONE, 0), np.rot90),
    "upside down": ((-ONE, 0, 0, -ONE), lambda image: np.rot90(image, 2)),
    "mirrored": ((-ONE, 0, 0, ONE), np.fliplr),
    "mirrored upside down": ((ONE, 0, 0, -ONE), np.flipud),
    "mirrored, left is up": ((0, ONE, ONE, 0), lambda image: np.fliplr(np.rot90(image, -1))),
    "mirrored, right is up": ((0, -ONE, -ONE, 0), lambda image: np.flipud(np.rot90(image, -1))),
}


@pytest.mark.parametrize(("matrix", "turn"), MATRICES.values(), ids=MATRICES)
def test_a_video_comes_as_players_show_it(tmp_path, write_video, matrix, turn):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32], image[:24, 32:], image[24:, :32] = 240, 160, 80  # four quarters
    write_video(tmp_path / "clip.mp4", [image] * 3)
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    place = content.find(b"tkhd") + 44  # 16.16 and 2.30 fixed point
    assert content[place : place + 36] == struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    a, b, c, d = matrix
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "clip.mp4").write_bytes(content)
    frame = next(open_clip(tmp_path / "clip.mp4").frames)
    expected = turn(image)
    assert frame.shape == expected.shape and np.abs(frame.astype(int) - expected).mean() < 12


def test_the_times_of_a_changing_rate_are_kept_without_an_alarm(tmp_path):
    times = [0.0, 0.033, 0.066, 0.6, 1.1, 4.0, 6.0]
    with av.open(str(tmp_path / "clip.webm"), "w") as file:
        video = file.add_stream("libvpx-vp9", rate=30, options={"deadline": "realtime"})
        video.width, video.height, video.codec_context.time_base = 64, 48, Fraction(1, 1000)
        for seconds, image in zip(times, shades(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = round(1000 * seconds), Fraction(1, 1000)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
    clip = open_clip(tmp_path / "clip.webm")
    assert len(list(clip.frames)) == len(times) and clip.lost == []
    assert clip.times == pytest.approx(times, abs=1e-3)


def damaged(path, write_video, numbers):
    """Write 20 frames as an AVI of JPEGs, of which some are damaged."""
    write_video(path, shades(20), "MJPG")
    content = bytearray(path.read_bytes())
    starts = [place for place in range(len(content)) if content[place : place + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 20
    for number in numbers:
        content[starts[number] : starts[number] + 200] = bytes(200)
    path.write_bytes(content)


def test_a_damaged_frame_is_passed_over(tmp_path, write_video):
    damaged(tmp_path / "clip.avi", write_video, [4, 19])
    clip = open_clip(tmp_path / "clip.avi")
    frames = list(clip.frames)
    assert [round(frame[..., 2].mean() / 20) for frame in frames[:6]] == [0, 1, 2, 3, 5, 6]
    assert len(frames) == 18
    assert clip.times == pytest.approx(np.delete(np.arange(20), [4, 19]) / 12.5)
    assert [why.split(":")[0] for why in clip.lost] == ["the frame at 0.32 s", "the frame at 1.52 s"]
    damaged(tmp_path / "none.avi", write_video, range(20))
    with pytest.raises(ValueError, match=r"no frame of .*none\.avi can be decoded"):
        list(open_clip(tmp_path / "none.avi").frames)


def test_a_folder_is_read_on_demand_in_the_order_of_its_numbers(tmp_path):
    for number in (10, 9, 1):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "frame2.png").write_text("not an image")
    os.mkfifo(tmp_path / "frame3.png")
    (tmp_path / "frames.png").mkdir()
    for name in ("._frame1.png", "notes.pdf", "notes.txt", "clip.mp4", "frame4.eps"):
        (tmp_path / name).write_text("not a frame")
    clip = open_clip(tmp_path)
    assert clip.length == 5
    assert [frame[0, 0, 0] for frame in clip.frames] == [1, 9, 10]
    assert clip.times == [0, 3 / 25, 4 / 25]  # those passed over keep their places
    assert "frame2.png is not a readable image" in clip.lost[0] and "frame3.png" in clip.lost[1] and len(clip.lost) == 2
    for path in tmp_path.glob("frame?*.png"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no frame can be read: .*frame1\.png is not a readable image"):
        next(open_clip(tmp_path).frames)


def test_other_inputs_are_refused(tmp_path, write_video):
    with pytest.raises(FileNotFoundError, match=r"none\.mp4 not found"):
        open_clip(tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="has no image"):
        open_clip(tmp_path)
    write_video(tmp_path / "clip.avi", shades(2))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{tmp_path}/clip.avi\n#EXT-X-ENDLIST\n"
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    for name, content in {
        "text.mp4": b"not a video",
        "list.mp4": playlist.encode(),  # FFmpeg would open what it names
        "list.ffconcat": b"ffconcat version 1.0\nfile clip.avi\n",
        "a.mp4": (tmp_path / "a.png").read_bytes(),
        "half.mp4": b"\0\0\0\x18ftypisom\0\0\0\0isomavc1",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a readable video"):
            open_clip(tmp_path / name)
    unknown = (tmp_path / "clip.avi").read_bytes().replace(b"mp4v", b"ZZZZ")
    (tmp_path / "unknown.avi").write_bytes(unknown)
    with pytest.raises(ValueError, match=r"unknown\.avi has no video, or one of an unknown codec"):
        open_clip(tmp_path / "unknown.avi")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match=r"pipe\.mp4 is a pipe, where a file is needed"):
        open_clip(tmp_path / "pipe.mp4")
    limit_pixels(48 * 64 - 1)
    try:
        with pytest.raises(ValueError, match=r"clip\.avi has 64 x 48 pixels; the limit is 3,071"):
            open_clip(tmp_path / "clip.avi")
    finally:
        limit_pixels(64_000_000)


def test_a_video_that_ends_early_is_reported(tmp_path, write_video):
    write_video(tmp_path / "whole.avi", shades(40, (240, 320)))
    content = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "part.avi").write_bytes(content[: len(content) // 2])
    clip = open_clip(tmp_path / "part.avi")
    frames = list(clip.frames)
    assert 0 < len(frames) < 40
    assert f"the clip ends after {len(frames)} of 40 frames; it may be damaged" in clip.lost
