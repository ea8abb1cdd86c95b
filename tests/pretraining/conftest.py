"""Config overrides of tiny encoders, and a small world."""

import pytest

from openworldsam.data.shapes import World


@pytest.fixture(scope="session")
def world():
    return World(size=128, num_things=(2, 3), thing_size=(30, 60))


@pytest.fixture
def opts(tmp_path):
    """Config overrides (KEY VALUE ...) of tiny encoders whose weights do not exist yet."""
    weights = tmp_path / "weights"
    return [
        *("MODEL.SAM2.WEIGHTS", str(weights / "sam2.safetensors"), "MODEL.SAM2.EMBED_DIM", "16"),
        *("MODEL.SAM2.IMAGE_SIZE", "128", "MODEL.SAM2.WIDTH", "32", "MODEL.SAM2.WINDOW_SPEC", "(8, 4, 4, 4)"),
        *("MODEL.PROMPT_ENCODER.WEIGHTS", str(weights / "beit3.safetensors"), "MODEL.PROMPT_ENCODER.IMAGE_SIZE", "64"),
        *("MODEL.PROMPT_ENCODER.TOKENIZER", str(weights / "beit3.spm"), "MODEL.PROMPT_ENCODER.EMBED_DIM", "20"),
        *("DATASETS.SHAPES.SIZE", "128", "DATASETS.SHAPES.THING_SIZE", "(30, 60)", "DATALOADER.NUM_WORKERS", "0"),
    ]
