"""Tiny random encoders for the Shapes config: two training steps take a second."""

from pathlib import Path

import pytest
import torch

from openworldsam.ablation import command, runs
from openworldsam.checkpoint import save_component
from openworldsam.config import load_config
from openworldsam.modeling import OpenWorldSAM
from openworldsam.parity.rule_weights import save_tokenizer

CONFIG = str(Path(__file__).parents[2] / "configs/shapes/paper.yaml")


@pytest.fixture(scope="session")
def opts(tmp_path_factory):
    """Config overrides (KEY VALUE ...) of a small model and a small world."""
    weights = tmp_path_factory.mktemp("encoders")
    pairs = {
        "MODEL.DEVICE": "cpu",
        "MODEL.SAM2.WEIGHTS": weights / "sam2.safetensors",
        "MODEL.SAM2.EMBED_DIM": 16,
        "MODEL.SAM2.IMAGE_SIZE": 64,
        "MODEL.SAM2.WIDTH": 32,
        "MODEL.SAM2.WINDOW_SPEC": (8, 4, 4, 4),
        "MODEL.PROMPT_ENCODER.WEIGHTS": weights / "beit3.safetensors",
        "MODEL.PROMPT_ENCODER.TOKENIZER": weights / "beit3.spm",
        "MODEL.PROMPT_ENCODER.IMAGE_SIZE": 32,
        "MODEL.PROMPT_ENCODER.EMBED_DIM": 20,
        "MODEL.PROMPT_ENCODER.VOCAB_SIZE": 300,
        "MODEL.ADAPTER.NUM_TIE_BREAKERS": 3,
        "MODEL.INFERENCE.SCORE_THRESHOLD": 0.3,  # untrained scores are around 0.5
        "DATASETS.TRAIN": ("shapes_train",),
        "DATASETS.SHAPES.SIZE": 64,
        "DATASETS.SHAPES.THING_SIZE": (12, 30),
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 2,
        "TEST.MAX_IMAGES": 3,
    }
    words = [str(word) for pair in pairs.items() for word in pair]
    torch.manual_seed(0)
    model = OpenWorldSAM(load_config(CONFIG, words))
    for component, key in (("sam2", "MODEL.SAM2.WEIGHTS"), ("beit3", "MODEL.PROMPT_ENCODER.WEIGHTS")):
        save_component(model, component, pairs[key], note="random")
    save_tokenizer(pairs["MODEL.PROMPT_ENCODER.TOKENIZER"])
    return tuple(words)


@pytest.fixture
def calls(monkeypatch):
    """Run trainings and evaluations one by one in this process; list their modules."""
    listed = []

    run_command = runs.run_command

    def listing(name, words):
        listed.append(name)
        run_command(name, words)

    def run_jobs(jobs, workers, finished):
        for job in sorted(jobs, key=lambda job: job.needs is not None):
            job.work()
            finished(job)

    monkeypatch.setattr(runs, "run_command", listing)
    monkeypatch.setattr(command, "run_jobs", run_jobs)
    return listed
