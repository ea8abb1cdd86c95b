"""Shared fixtures: a tiny model with rule-made weights, real pictures, and the test data that is not in the project."""

import gc
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import panopticapi.evaluation as panopticapi
import pytest
import skimage
import torch
from processes import forked_processes

from openworldsam import OpenWorldSAMPredictor, Prediction
from openworldsam.checkpoint import save_component
from openworldsam.config import load_config
from openworldsam.inference import Found
from openworldsam.modeling import OpenWorldSAM
from openworldsam.parity.rule_weights import save_rule_checkpoint, save_tokenizer

# its pool of processes is never closed, and may wait for ever when it is collected
panopticapi.pq_compute_multi_core = lambda *arguments: panopticapi.pq_compute_single_core(0, *arguments)

ROOT = Path(__file__).parents[1]
SKIMAGE_DATA = Path(skimage.__file__).parent / "data"

# Detectron2 keeps the handler of the first logger set up, whose stream pytest closes after that test
logging.raiseExceptions = False
# tiny models gain nothing from more threads, and lose much beside another job
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# ignored in the background jobs of a script's shell
signal.signal(signal.SIGINT, signal.default_int_handler)


internal_errors = []


def pytest_internalerror(excrepr):
    internal_errors.append(str(excrepr))


def pytest_unconfigure():
    """Say last what ended pytest: of several processes, the first one's error tells why."""
    if internal_errors:
        print(f"\nThe first internal error:\n{internal_errors[0][-4000:]}", file=sys.stderr)


def pytest_collection_finish():
    """Keep the garbage collector from the imported libraries: going through them takes most of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def threads(request, monkeypatch):
    """Full-size models (marked slow) get all cores."""
    if request.node.get_closest_marker("slow") is None:
        yield
        return
    monkeypatch.setenv("OMP_NUM_THREADS", str(os.cpu_count()))
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    with forked_processes(tmp_path_factory.mktemp("processes")) as started:
        yield started


@pytest.fixture(scope="session")
def leave_part():
    """Leave the temporary file of a process that is killed while it writes a file; returns its path."""
    program = (
        "import os, signal, sys; from pathlib import Path; from openworldsam.utils.files import save_atomically\n"
        "def write(part): print(part, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_atomically(Path(sys.argv[1]), write)"
    )

    def leave(path):
        killed = subprocess.run([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True)
        part = Path(killed.stdout.strip())
        assert killed.returncode == -signal.SIGKILL and part.exists() and part.parent == path.parent
        return part

    return leave


@pytest.fixture(scope="session")
def shared():
    """Golden numbers and sample data, kept beside the checkout; tests that need them are skipped without."""
    folder = Path(os.environ.get("OPENWORLDSAM_TEST_DATA", ROOT.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip("no test data; OPENWORLDSAM_TEST_DATA says where it lies")
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """Folder with model_final.pth and beit3.spm for configs/tiny.yaml."""
    folder = tmp_path_factory.mktemp("tiny_weights")
    cfg = load_config(ROOT / "configs/tiny.yaml")
    save_rule_checkpoint(OpenWorldSAM(cfg), cfg, 0, folder / "model_final.pth")
    save_tokenizer(folder / "beit3.spm")
    return folder


@pytest.fixture(scope="session")
def tiny_opts(tiny_weights):
    """Config overrides that give configs/tiny.yaml its weights and tokenizer."""
    weights, tokenizer = str(tiny_weights / "model_final.pth"), str(tiny_weights / "beit3.spm")
    return ["MODEL.WEIGHTS", weights, "MODEL.PROMPT_ENCODER.TOKENIZER", tokenizer]


@pytest.fixture(scope="session")
def head_opts(tiny_opts, tmp_path_factory):
    """Config overrides that give the tiny model a random score head."""
    torch.manual_seed(0)
    model = OpenWorldSAM(load_config(ROOT / "configs/tiny.yaml", [*tiny_opts, "MODEL.SCORE_HEAD.HIDDEN", "8"]))
    path = tmp_path_factory.mktemp("score_head") / "score_head.safetensors"
    with torch.no_grad():
        model.score_head.mlp[-1].weight.mul_(10)  # so that prompts differ
    save_component(model, "score_head", path, "random")
    return ["MODEL.SCORE_HEAD.HIDDEN", "8", "MODEL.SCORE_HEAD.WEIGHTS", str(path)]


@pytest.fixture(scope="session")
def matching_opts(tiny_opts, head_opts):
    """Config overrides of the tiny model with a random score head, whose match score counts."""
    return [*tiny_opts, *head_opts, "MODEL.INFERENCE.SCORE", "match"]


@pytest.fixture
def tiny_cfg(tiny_opts):
    """The tiny model's config; fp32, preset paper."""
    return load_config(ROOT / "configs/tiny.yaml", [*tiny_opts, "MODEL.DEVICE", "cpu"])


@pytest.fixture(scope="session")
def shapes_opts():
    """Config overrides with absolute paths of the Shapes weights, so that tests run from any folder."""
    cfg = load_config(ROOT / "configs/shapes/openworldsam.yaml")
    files = {"MODEL.WEIGHTS": cfg.MODEL.WEIGHTS, "MODEL.SAM2.WEIGHTS": cfg.MODEL.SAM2.WEIGHTS}
    for key in ("WEIGHTS", "TOKENIZER"):
        files[f"MODEL.PROMPT_ENCODER.{key}"] = cfg.MODEL.PROMPT_ENCODER[key]
    files["MODEL.SCORE_HEAD.WEIGHTS"] = cfg.MODEL.SCORE_HEAD.WEIGHTS
    paths = [word for key, path in files.items() for word in (key, str(ROOT / path))]
    return [*paths, "MODEL.SCORE_HEAD.HIDDEN", str(cfg.MODEL.SCORE_HEAD.HIDDEN)]


@pytest.fixture(scope="session")
def paper_opts(shapes_opts):
    """The same without a score head."""
    return [*shapes_opts, "MODEL.SCORE_HEAD.HIDDEN", "0", "MODEL.SCORE_HEAD.WEIGHTS", ""]


@pytest.fixture
def build(tiny_cfg):
    """Build the tiny model with its weights, some config keys changed."""
    from openworldsam.checkpoint import load_weights

    def make(*opts, weights=True):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list(list(opts))
        model = OpenWorldSAM(cfg)
        if weights:
            load_weights(model, cfg)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def exit_status():
    """Call the `main` of a command with some arguments; returns its exit status."""

    def call(main, *words):
        try:
            main([*map(str, words)])
        except SystemExit as exited:
            return exited.code
        return 0

    return call


@pytest.fixture
def predictor(tiny_cfg):
    return OpenWorldSAMPredictor(tiny_cfg)


@pytest.fixture(scope="session")
def predicted():
    """Make a Prediction from N masks, by default with scores 1 and all of the first prompt.

    The scores are the predicted IoU, unless there is a match score, which then makes them.
    """

    def make(masks, scores=None, labels=None, *, match=None, prompts=("cat",), is_thing=None, task="instance", **about):
        count = len(masks)
        scores = np.ones(count) if scores is None else scores
        labels = np.zeros(count) if labels is None else labels
        masks, scores = torch.as_tensor(masks).bool(), torch.as_tensor(scores).float()
        matched = torch.full_like(scores, torch.nan) if match is None else torch.as_tensor(match).float()
        evidence = torch.stack([scores, matched], dim=1)
        found = Found(masks, scores if match is None else matched, torch.as_tensor(labels).long(), evidence)
        rule = "iou" if match is None else "match"
        about = {"rule": rule, "threshold": 0.0, "best_scores": np.ones(len(prompts)), **about}
        about["is_thing"] = is_thing or [True] * len(prompts)
        return Prediction.of(found, task, list(prompts), **about)

    return make


@pytest.fixture(scope="session")
def photograph():
    """Path of a public-domain photograph of a cat, 451 x 300 pixels."""
    return SKIMAGE_DATA / "chelsea.png"


@pytest.fixture
def pictures():
    """Two random pictures of different sizes, uint8 [3, H, W]."""
    generator = np.random.default_rng(0)
    return [torch.from_numpy(generator.integers(0, 256, (3, *size), dtype=np.uint8)) for size in ((60, 90), (75, 50))]
