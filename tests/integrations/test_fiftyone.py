"""FiftyOne applies the model to samples; only its database is replaced, which is not on the package index."""

import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

fo = pytest.importorskip("fiftyone")
models = pytest.importorskip("fiftyone.core.models")

import openworldsam  # noqa: E402
from openworldsam.integrations.fiftyone import FiftyOneModel  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs/ecosystem.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)

PROMPTS = ["cat", "grass"]


@pytest.fixture
def paths(photograph, pictures, tmp_path):
    """Image files of different sizes: a photograph, the same lying on its side by EXIF, and a small grey one."""
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photograph).rotate(90, expand=True).save(turned, exif=exif)
    Image.fromarray(pictures[0][0].numpy()).save(tmp_path / "grey.png")
    return [photograph, turned, tmp_path / "grey.png"]


@pytest.fixture
def apply(monkeypatch):
    """Apply a model to image files as `dataset.apply_model` does, without a database."""
    monkeypatch.setattr(models.fov, "validate_image_collection", lambda samples: None)
    monkeypatch.setattr(models, "_select_fields_for_inference", lambda samples, model: samples)
    saved = SimpleNamespace(save=lambda sample: None)
    monkeypatch.setattr(models.foc, "SaveContext", lambda samples: nullcontext(saved))

    class Samples(list):
        media_type = "image"

    def apply_model(paths, model, **arguments):
        samples = Samples(fo.Sample(filepath=str(path)) for path in paths)
        models.apply_model(samples, model, label_field="ours", skip_failures=False, **arguments)
        return [sample["ours"].detections for sample in samples]

    return apply_model


@pytest.mark.parametrize("batch_size", [None, 1, 2])
@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_samples_get_the_predictors_masks(predictor, paths, apply, task, batch_size):
    found = apply(paths, FiftyOneModel(predictor, PROMPTS, task, nms_threshold=0.9), batch_size=batch_size)
    for path, detections in zip(paths, found, strict=True):
        expected = predictor(path, PROMPTS, task, nms_threshold=0.9)
        assert len(detections) == len(expected) > 0
        height, width = expected.label_map.shape
        for detection, (mask, _, score, prompt) in zip(detections, expected, strict=True):
            drawn = detection.to_segmentation(frame_size=(width, height)).mask > 0
            assert (drawn != mask).mean() < (1e-3 if batch_size == 2 else 1e-9)  # rounding of batches
            assert detection.label == prompt and detection.confidence == pytest.approx(score, abs=1e-5)


def test_the_snippet_of_the_page_runs(predictor, paths, apply, monkeypatch):
    monkeypatch.setattr(openworldsam, "OpenWorldSAMPredictor", lambda name: predictor)
    (snippet,) = (block for block in SNIPPETS if "fiftyone" in block)
    labels = []

    class Dataset:
        def apply_model(self, model, label_field, batch_size):
            assert label_field == "openworldsam"
            labels.extend(apply(paths, model, batch_size=batch_size))

    exec(snippet, {"dataset": Dataset()})
    assert len(labels) == len(paths)


def test_fiftyones_threshold_and_classes_apply(predictor, paths, apply):
    model = FiftyOneModel(predictor, PROMPTS)
    every = [d for found in apply(paths, model) for d in found]
    middle = float(np.median([d.confidence for d in every]))
    better = [d for found in apply(paths, model, confidence_thresh=middle) for d in found]
    assert 0 < len(better) < len(every) and min(d.confidence for d in better) >= middle
    cats = [d for found in apply(paths, model, classes=["cat"]) for d in found]
    assert {d.label for d in cats} == {"cat"}


def test_a_bad_question_is_refused_at_once(predictor):
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        FiftyOneModel(predictor, [""])
    with pytest.raises(ValueError, match="unknown option threshold"):
        FiftyOneModel(predictor, "cat", threshold=1)
