"""Bad arguments of the Python interface and of the page's session: an exception that says what is wrong, at once."""

import re

import numpy as np
import pytest
import torch

from openworldsam import OpenWorldSAMPredictor
from openworldsam.app.session import Session
from openworldsam.config import load_config
from openworldsam.video import VideoPredictor

PIXELS = np.zeros((30, 40, 3), np.uint8)
NAN = float("nan")
CALLS = {
    # an image
    "bare.predict('cat')": "no image: call set_image first",
    "bare.click([(1, 1)])": "no image: call set_image first",
    "predictor.set_image('nothing.png')": "image nothing.png not found",
    "predictor.set_image('a\\0b.png')": "a.+b.png",
    "predictor.set_image(3)": "an image is a path, a PIL image, an array or a tensor, got int",
    "predictor.set_image(None)": "an image is a path, a PIL image, an array or a tensor, got NoneType",
    "predictor.set_image(b'png')": "an image is a path, a PIL image, an array or a tensor, got bytes",
    "predictor.set_image(torch.zeros(1, 3, 4, 4))": r"an image tensor is .* got \[1, 3, 4, 4\]",
    "predictor.set_image(torch.tensor(PIXELS))": r"an image tensor is .* got \[30, 40, 3\]",
    "predictor.set_image(torch.full((3, 4, 4), 1.5))": "values from 0 to 1",
    "predictor.set_image(torch.full((3, 4, 4), NAN))": "values from 0 to 1",
    "predictor.set_image(torch.zeros(3, 4, 4, dtype=torch.int64))": "uint8 with values 0..255, got int64",
    "predictor.set_image(np.broadcast_to(PIXELS[0, 0], (2**20, 2**20, 3)))": "the array has 1048576 x 1048576 pixels",
    "predictor.set_image(np.broadcast_to(PIXELS[0, 0, 0], (9000, 9000)))": "the array has 9000 x 9000 pixels",
    "predictor.set_image(PIXELS / 255)": "an image array is uint8 with values 0..255, got float64",
    "predictor.set_image(PIXELS.astype(int))": "an image array is uint8 with values 0..255, got int64",
    "predictor.set_image(PIXELS[:0])": r"not empty, got \(0, 40, 3\)",
    "predictor.set_image(PIXELS[..., :2])": r"got \(30, 40, 2\)",
    "predictor.set_image(PIXELS[None])": r"got \(1, 30, 40, 3\)",
    "predictor.set_image(PIXELS.transpose(2, 0, 1))": r"got \(3, 30, 40\)",
    # prompts
    "predictor.predict('')": "prompt 0 is empty",
    "predictor.predict(['cat', '  '])": "prompt 1 is empty",
    "predictor.predict(['cat', None])": "prompt 1",
    "predictor.predict([b'cat'])": "prompt 0",
    "predictor.predict(3)": "prompts are a text or a list of texts, got int",
    "predictor.predict(None)": "prompts are a text or a list of texts, got NoneType",
    "predictor.predict('\\u200b')": "prompt 0 is empty",
    "predictor.predict('cat', stuff=[3])": "3",
    "predictor.predict('cat', stuff=3)": "stuff are a text or a list of texts, got int",
    # options
    "predictor.predict('cat', 'depth')": "task is one of .*; got 'depth'",
    "predictor.predict('cat', [])": r"task is one of .*; got \[\]",
    "predictor.predict('cat', threshold=1)": "unknown option threshold; there are",
    "predictor.predict('cat', score_threshold=2)": "SCORE_THRESHOLD is a number from 0 to 1, got 2",
    "predictor.predict('cat', score_threshold=NAN)": "SCORE_THRESHOLD is a number from 0 to 1, got nan",
    "predictor.predict('cat', score_threshold='high')": "SCORE_THRESHOLD is a number from 0 to 1, got 'high'",
    "predictor.predict('cat', nms_threshold=None)": "NMS_THRESHOLD is a number from 0 to 1, got None",
    "predictor.predict('cat', top_k=-1)": "TOP_K is a whole number from 0, got -1",
    "predictor.predict('cat', two_stage=1)": "TWO_STAGE is True or False, got 1",
    "predictor.predict('cat', instance_nms='soft')": "INSTANCE_NMS is one of .*, got 'soft'",
    # clicks
    "predictor.click()": "nothing to segment by: give points, a box or a mask",
    "predictor.click([(1, 99)])": "outside the image",
    "predictor.click([(-1, 1)])": "outside the image",
    "predictor.click([(NAN, 1)])": "outside the image|number",
    "predictor.click([(1, 2, 3)])": r"points must be a list of pairs x, y; got the shape \(1, 3\)",
    "predictor.click('here')": "points must be a list of pairs x, y; got 'here'",
    "predictor.click([(1, 1)], [1, 0])": "2 labels|labels",
    "predictor.click([(1, 1)], [2])": "label",
    "predictor.click([(1, 1)], ['yes'])": "label",
    "predictor.click(box=(1, 2, 3))": "box",
    "predictor.click(box=(5, 5, 1, 1))": "box",
    "predictor.click(box=(0, 0, NAN, 9))": "box",
    "predictor.click([(1, 1)], mask=np.zeros((3, 3)))": "mask",
    "predictor.click([(1, 1)], mask='all')": "mask",
    "predictor.click([(1, 1)], mask=np.zeros((30, 40), bool), among=predictor.predict('cat'))": "mask or among",
    # one call, boxes and batches
    "predictor('nothing.png', 'cat')": "image nothing.png not found",
    "predictor([PIXELS, 'nothing.png'], 'cat')": "image nothing.png not found",
    "predictor([PIXELS, 3], 'cat')": "image 1: an image is a path, .* got int",
    "predictor(PIXELS, 'cat', boxes=[[0, 0, 41, 9]])": "within the image of 40 x 30 pixels, got 0, 0, 41, 9",
    "predictor(PIXELS, 'cat', boxes=[[0, 0, NAN, 9]])": "got 0, 0, nan, 9",
    "predictor(PIXELS, 'cat', boxes=[[0, 0, 9, 9]], box_labels=[[1]])": r"a box label is .* got \[1\]",
    "predictor(PIXELS, 'cat', box_labels=[1])": r"got \[1\] for 0 boxes",
    "predictor([PIXELS], 'cat', boxes=[[0, 0, 9, 9]])": "unknown option boxes; there are",
    "predictor.predict_batch(PIXELS, 'cat')": "images are several, got one ndarray",
    # construction
    "OpenWorldSAMPredictor('nothing.yaml')": "nothing.yaml not found",
    "OpenWorldSAMPredictor(cfg, device='abacus')": "abacus",
    "OpenWorldSAMPredictor(cfg, opts=['MODEL.DEVICE'])": "options come in pairs",
    "OpenWorldSAMPredictor(cfg, opts=['MODEL.WEIGHT', 'x'])": "MODEL.WEIGHT",
    "OpenWorldSAMPredictor.from_pretrained('nothing')": "config nothing not found",
    "OpenWorldSAMPredictor.from_pretrained(world / 'pictures')": "is no folder that save_pretrained wrote",
    "predictor.save_pretrained(world / 'cat.png')": "cat.png",
    # video
    "VideoPredictor(predictor, ['cat'], task='panoptic')": "panoptic",
    "VideoPredictor(predictor, ['cat'], tracker='x')": "tracker.*x|x.*tracker",
    "VideoPredictor(predictor, ['cat'], every=-1)": "every",
    "VideoPredictor(predictor, [' '])": "prompt 0 is empty",
    # the session of the page
    "session.ask([], 'instance', USUAL)": "no prompt: type what to look for",
    "session.ask([' '], 'instance', USUAL)": "no prompt: type what to look for",
    "session.ask([3], 'instance', USUAL)": "prompt",
    "session.ask([None], 'instance', USUAL)": "prompt",
    "session.ask(3, 'instance', USUAL)": "prompt",
    "session.ask(['x' * 301], 'instance', USUAL)": "at most 100 prompts of 300 characters",
    "session.ask(list(map(str, range(101))), 'instance', USUAL)": "at most 100 prompts",
    "session.ask(['cat'], 'depth', USUAL)": "task is one of",
    "session.ask(['cat'], ['instance'], USUAL)": "task is one of",
    "session.ask(['cat'], 'instance', {**USUAL, 'score_threshold': 'x'})": "'x'",
    "session.ask(['cat'], 'instance', {**USUAL, 'nms_threshold': NAN})": "nan",
    "session.click(1, 1, 1)": "ask something first: clicks correct the answer",
    "session.archive({})": "there are no results yet: ask something first",
    "session.undo()": "there is no click to undo",
}
USUAL = {"score_threshold": 0.7, "nms_threshold": 0.5, "overlap_threshold": 0.5}


@pytest.fixture(scope="module")
def names(world):
    """Objects that the calls may use."""
    cfg = load_config(world / "tiny.yaml")
    predictor, bare = OpenWorldSAMPredictor(cfg), OpenWorldSAMPredictor(cfg)
    predictor.set_image(PIXELS)
    session = Session(predictor, PIXELS, "a.png", max_work=10**9)
    made = {"world": world, "cfg": cfg, "predictor": predictor, "bare": bare, "session": session}
    known = {"np": np, "torch": torch, "OpenWorldSAMPredictor": OpenWorldSAMPredictor, "VideoPredictor": VideoPredictor}
    return {"PIXELS": PIXELS, "NAN": NAN, "USUAL": USUAL, **known, **made}


@pytest.mark.parametrize("call", CALLS)
def test_a_bad_call_says_what_is_wrong(names, call):
    with pytest.raises((ValueError, KeyError, OSError)) as raised:
        eval(call, names)
    message = str(raised.value)
    assert re.search(CALLS[call], message) and len(message.splitlines()) == 1 and len(message) < 500, message
    names["predictor"].predict("cat")  # goes on
