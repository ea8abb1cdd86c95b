"""One predictor in many threads: each answer is about the caller's own image."""

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from openworldsam import OpenWorldSAMPredictor

THREADS = 16
PROMPTS = ["cat", "grass"]


@pytest.fixture(scope="module")
def shapes(shapes_opts, request):
    return OpenWorldSAMPredictor(request.config.rootpath / "configs/shapes/openworldsam.yaml", opts=shapes_opts)


@pytest.fixture(scope="module")
def images():
    """Images of blobs, of different sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(12 + n, 0).repeat(20, 1) for n in range(THREADS)]


def set_and_ask(predictor, image):
    predictor.set_image(image)
    return predictor.predict(PROMPTS, "referring")


def set_and_click(predictor, image):
    predictor.set_image(image)
    return predictor.click([(5, 5)])


def ask_in_one_call(predictor, image):
    return predictor.predict(PROMPTS, "semantic", image=image)


def encode_and_click(predictor, image):
    session = predictor.encode(image)
    found = predictor.predict(PROMPTS, "instance", image=session, score_threshold=0.0)
    return predictor.click([(5, 5)], among=found, image=session)


@pytest.mark.parametrize("work", [set_and_ask, set_and_click, ask_in_one_call, encode_and_click])
def test_every_thread_gets_the_answer_about_its_image(shapes, images, work):
    alone = [work(shapes, image) for image in images]
    start = Barrier(THREADS)

    def together(image):
        start.wait()
        return work(shapes, image)

    with ThreadPoolExecutor(THREADS) as pool:
        for answer, expected in zip(pool.map(together, images), alone, strict=True):
            assert np.array_equal(answer.masks, expected.masks) and np.array_equal(answer.scores, expected.scores)


def test_an_encoded_image_goes_to_any_thread_and_a_current_one_to_none(shapes, images):
    shapes.set_image(images[0])
    session = shapes.encode(images[1])
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(shapes.predict, PROMPTS, "referring", image=session).result()
        with pytest.raises(ValueError, match=r"call set_image first, in the thread that asks, or give image="):
            pool.submit(shapes.predict, PROMPTS).result()
    assert np.array_equal(elsewhere.masks, shapes.predict(PROMPTS, "referring", image=images[1]).masks)
    assert shapes.session.size == images[0].shape[:2]


def test_a_copy_has_its_own_image(shapes, images):
    shapes.set_image(images[0])
    shallow, deep = copy.copy(shapes), copy.deepcopy(shapes)
    assert shallow.model is shapes.model is not deep.model
    for other in (shallow, deep):
        with pytest.raises(ValueError, match="set_image"):
            other.predict(PROMPTS)
        other.set_image(images[1])
        assert shapes.session.size == images[0].shape[:2] != other.session.size


def test_an_image_of_another_predictor_is_refused(shapes, predictor, images):
    with pytest.raises(ValueError, match="encoded by another predictor"):
        predictor.predict(PROMPTS, image=shapes.encode(images[0]))
