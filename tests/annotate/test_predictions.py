"""A batch of images gives the predictor's predictions."""

import numpy as np
import pytest

from openworldsam import OpenWorldSAMPredictor
from openworldsam.annotate.command import predict_batch
from openworldsam.annotate.prompts import Prompts

PROMPTS = Prompts(("cat", "grass", "a red cup", "sky"), (True, False, True, False))


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic", "referring"])
@pytest.mark.parametrize("threshold", [0.4, 1.0])
def test_a_batch_equals_its_images_one_by_one(tiny_cfg, pictures, task, chunk, threshold):
    predictor = OpenWorldSAMPredictor(tiny_cfg, opts=["MODEL.INFERENCE.SCORE_THRESHOLD", str(threshold)])
    images = [np.ascontiguousarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    predictions = list(predict_batch(predictor.model, images, PROMPTS, task, chunk))
    assert len(predictions) == len(images)
    for image, prediction in zip(images, predictions, strict=True):
        predictor.set_image(image)
        alone = predictor.predict(PROMPTS.texts, task, stuff=["grass", "sky"])
        assert len(alone.masks) or threshold == 1.0
        assert prediction.task == task and prediction.prompts == alone.prompts
        for field in ("masks", "boxes", "prompt_index", "is_thing", "label_map"):
            assert np.array_equal(getattr(prediction, field), getattr(alone, field)), field
        np.testing.assert_allclose(prediction.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(prediction.best_scores, alone.best_scores, atol=1e-5)
        assert min(alone.best_scores) > 0
