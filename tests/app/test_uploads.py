import numpy as np
import pytest
from PIL import Image

from openworldsam.app import uploads
from openworldsam.app.uploads import read_upload


@pytest.fixture
def upload(tmp_path):
    """An image of 30 x 20 pixels."""
    path = tmp_path / "mine.png"
    Image.new("RGB", (30, 20), (1, 2, 3)).save(path)
    return path


def test_pixels_and_bytes_are_limited(upload, monkeypatch):
    size = upload.stat().st_size
    for name, limit, message in (
        ("MAX_PIXELS", 600, r"^mine.png has 30 x 20 pixels; the limit is 0.000599 million"),
        ("MAX_BYTES", size, r"^mine.png has .* MB; the limit"),
    ):
        monkeypatch.setattr(uploads, name, limit)
        assert np.array_equal(read_upload(upload), np.full((20, 30, 3), (1, 2, 3), np.uint8))
        monkeypatch.setattr(uploads, name, limit - 1)
        with pytest.raises(ValueError, match=message):
            read_upload(upload)
        monkeypatch.undo()


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(ValueError, match=r"^bomb.png has too many pixels"):
        read_upload(path)


@pytest.mark.parametrize(
    "content", [b"", b"no image at all", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "notes.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^notes.png is not a readable image: it is .*JPEG, PNG"):
        read_upload(path)


def test_a_truncated_image_is_named_without_its_folder(photograph, tmp_path):
    path = tmp_path / "half.png"
    path.write_bytes(photograph.read_bytes()[:10_000])
    with pytest.raises(ValueError, match=r"^half.png is not a readable image") as caught:
        read_upload(path)
    assert str(tmp_path) not in str(caught.value)
