"""Prompt encoders that are one class each: everything else follows from what they declare."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from trainings import assert_same, make_dataset, run, training_cfg

from openworldsam import OpenWorldSAMPredictor, cli
from openworldsam.checkpoint import load_weights, read_weights
from openworldsam.data.feature_cache import FeatureCache
from openworldsam.engine.cache_features import build_cache
from openworldsam.engine.dry_run import describe_training
from openworldsam.engine.trainer import Trainer
from openworldsam.engine.training_state import resume
from openworldsam.evaluation.comparison import row_of
from openworldsam.modeling import PROMPT_ENCODER_REGISTRY, OpenWorldSAM, PromptEncoder
from openworldsam.modeling.components import Component

eval_net = cli.command("evaluate")


@PROMPT_ENCODER_REGISTRY.register()
class LetterEncoder(PromptEncoder):
    """The mean of a text's letters and the colour of its image; its weights and its alphabet are folders."""

    component = Component(
        name="letters",
        prefixes=(("", "prompt_encoder."),),
        recognised_by="table.",
        layout="Letters",
        not_read="head",
        hint="to a folder of letters",
        advice=lambda public: f"It holds {len(public['table.weight'])} letters.",
    )
    settings = ("MODEL.PROMPT_ENCODER.IMAGE_SIZE",)
    tokenizer_name = "alphabet"
    paper_row = "CLIP-Large"

    def __init__(self, cfg):
        super().__init__()
        self.embed_dim, self.folder = cfg.MODEL.PROMPT_ENCODER.EMBED_DIM, cfg.MODEL.PROMPT_ENCODER.TOKENIZER
        self.table, self.colour = nn.Embedding(26, self.embed_dim), nn.Linear(3, self.embed_dim)
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)  # in no file

    def preprocess(self, image):
        return image.float().mean((1, 2), keepdim=True) / 255

    def forward(self, images, prompts, image_index):
        with open(f"{self.folder}/alphabet.json") as file:
            alphabet = json.load(file)
        texts = [torch.tensor([alphabet.index(x) for x in text if x in alphabet]) for text in prompts]
        letters = torch.stack([self.table(ids).mean(0) for ids in texts])
        return letters + self.scale * self.colour(images.flatten(1))[image_index]


@PROMPT_ENCODER_REGISTRY.register()
class LengthEncoder(PromptEncoder):
    """The length of a text. Declares nothing, reads no file."""

    embed_dim = 32

    def __init__(self, cfg):
        super().__init__()

    def preprocess(self, image):
        return image.new_zeros(3, 4, 4)

    def forward(self, images, prompts, image_index):
        return torch.tensor([[float(len(prompt))] for prompt in prompts]).expand(-1, 32) / 10


def save_letters(folder, seed=0):
    """Two shards, their index, and a head that the encoder does not read."""
    folder.mkdir()
    state = {"table.weight": (26, 32), "colour.weight": (32, 3), "colour.bias": (32,), "head.weight": (4, 32)}
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in state.items()}
    index = {name: f"part{number % 2}.safetensors" for number, name in enumerate(state)}
    for shard in set(index.values()):
        save_file({name: tensor for name, tensor in state.items() if index[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "alphabet.json").write_text(json.dumps("abcdefghijklmnopqrstuvwxyz"))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("letter_rectangles"), 3)


@pytest.fixture
def make_cfg(data, tiny_weights, tmp_path):
    """Config of a short training whose encoder has, or has not, files of its own."""

    def make(output, name="LetterEncoder", *opts):
        letters = tmp_path / "letters"
        if not letters.exists():
            save_letters(letters)
        words = ["MODEL.SAM2.WEIGHTS", str(tiny_weights / "model_final.pth"), "MODEL.PROMPT_ENCODER.NAME", name]
        words += ["SOLVER.MAX_ITER", 4, "SOLVER.STEPS", []]
        if name == "LetterEncoder":
            words += ["MODEL.PROMPT_ENCODER.WEIGHTS", str(letters), "MODEL.PROMPT_ENCODER.TOKENIZER", str(letters)]
        return training_cfg(data, tiny_weights, tmp_path / output, *words, *opts)

    return make


def trained(cfg):
    """The config of a predictor with the adapter that a training left."""
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/adapter.safetensors"
    return cfg


def fingerprint(folder):
    return read_weights(folder).source("letters").fingerprint


@pytest.mark.parametrize("name", ["LetterEncoder", "LengthEncoder"])
def test_it_trains_resumes_and_trains_from_a_cache(make_cfg, tmp_path, name):
    whole = run(make_cfg("whole", name))
    run(make_cfg("parts", name, "SOLVER.MAX_ITER", 2))
    resumed = run(make_cfg("parts", name), resume=True)
    assert_same(resumed, whole)

    cfg = make_cfg("cached", name, "DATASETS.FEATURE_CACHE", str(tmp_path / "cache"))
    build_cache(cfg, tmp_path / "cache", dtype="fp32")
    FeatureCache(tmp_path / "cache").verify()
    cached = run(cfg)
    for key in whole:
        torch.testing.assert_close(cached[key], whole[key], rtol=1e-3, atol=1e-4)
    metadata = read_weights(tmp_path / "whole/adapter.safetensors").metadata
    assert metadata["PROMPT_ENCODER.NAME"] == name and "beit3" not in metadata
    assert read_weights(tmp_path / "cached/adapter.safetensors").metadata == metadata
    assert ("letters" in metadata) == (name == "LetterEncoder")
    assert "cache        6 prompts of 3 images" in describe_training(cfg)


@pytest.mark.parametrize("name", ["LetterEncoder", "LengthEncoder"])
def test_it_is_saved_loaded_and_evaluated(make_cfg, tmp_path, photograph, capsys, name):
    cfg = make_cfg("out", name)
    run(cfg)
    predictor = OpenWorldSAMPredictor(trained(cfg))
    predictor.set_image(photograph)
    expected = predictor.predict(["cat", "grass"], "referring").scores
    predictor.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "letters")
    files = {"adapter.safetensors", "config.json", "sam2.safetensors"}
    if name == "LetterEncoder":
        files |= {"letters.safetensors", "alphabet/alphabet.json"}
    assert {str(p.relative_to(tmp_path / "saved")) for p in (tmp_path / "saved").rglob("*.*")} == files
    assert str(tmp_path) not in (tmp_path / "saved/config.json").read_text()
    loaded = OpenWorldSAMPredictor.from_pretrained(tmp_path / "saved")
    loaded.set_image(photograph)
    assert np.array_equal(loaded.predict(["cat", "grass"], "referring").scores, expected)
    assert expected[0] != expected[1]

    cfg = loaded.cfg
    (tmp_path / "config.yaml").write_text(cfg.dump())
    small = ["DATASETS.SHAPES.SIZE", "64", "DATASETS.SHAPES.THING_SIZE", "[10, 40]", "TEST.MAX_IMAGES", "1"]
    words = ["--config-file", str(tmp_path / "config.yaml"), "--benchmarks", "shapes_val", *small]
    eval_net([*words, "--output", str(tmp_path / "eval"), "DATALOADER.NUM_WORKERS", "0"])
    results = json.loads((tmp_path / "eval/results.json").read_text())
    fingerprints = {component: source["fingerprint"] for component, source in results["weights"].items()}
    assert fingerprints == {component: source.fingerprint for component, source in predictor.sources.items()}
    assert fingerprints.keys() - {"letters"} == {"sam2", "adapter"}
    assert ("letters" in fingerprints) == (name == "LetterEncoder")
    assert row_of(cfg) == ("CLIP-Large" if name == "LetterEncoder" else None)
    assert results["paper"]["row"] is None and "MODEL.SAM2" in results["paper"]["reason"]


def test_weights_that_do_not_fit_are_refused_with_its_own_advice(make_cfg, tmp_path):
    cfg = make_cfg("out")
    cfg.MODEL.PROMPT_ENCODER.WEIGHTS = ""
    with pytest.raises(ValueError, match=r"no weights for letters .*MODEL\.PROMPT_ENCODER\.WEIGHTS to a folder of"):
        Trainer(cfg)
    save_file({"table.weight": torch.zeros(5, 32)}, tmp_path / "five.safetensors")
    cfg.MODEL.PROMPT_ENCODER.WEIGHTS = str(tmp_path / "five.safetensors")
    with pytest.raises(ValueError, match=r"\(Letters\) does not fit the configured letters: .*It holds 5 letters\."):
        Trainer(cfg)


def test_other_weights_are_noticed(make_cfg, tmp_path, caplog):
    cfg = make_cfg("out")
    run(cfg)
    build_cache(cfg, tmp_path / "cache")
    other = cfg.clone()
    other.MODEL.PROMPT_ENCODER.WEIGHTS = str(save_letters(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="was trained with another letters"):
        resume(Trainer(other))
    other.DATASETS.FEATURE_CACHE = str(tmp_path / "cache")
    with pytest.raises(ValueError, match="fingerprint of the letters is"):
        Trainer(other)
    for changed, told in (
        (other, "was trained with other letters weights"),
        (make_cfg("out", "LengthEncoder"), "with MODEL.PROMPT_ENCODER.NAME LetterEncoder, not LengthEncoder"),
    ):
        caplog.clear()
        load_weights(OpenWorldSAM(changed), trained(changed))
        (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
        assert told in warning.getMessage()
    with pytest.raises(ValueError, match=r"its MODEL\.PROMPT_ENCODER\.NAME is LetterEncoder, not LengthEncoder"):
        Trainer(make_cfg("out", "LengthEncoder", "DATASETS.FEATURE_CACHE", str(tmp_path / "cache")))


def test_without_its_weights_a_training_from_the_cache_records_those_of_the_cache(make_cfg, tmp_path):
    cfg = make_cfg("out", "LetterEncoder", "DATASETS.FEATURE_CACHE", str(tmp_path / "cache"))
    build_cache(cfg, tmp_path / "cache")
    expected = fingerprint(tmp_path / "letters")
    shutil.rmtree(tmp_path / "letters")
    run(cfg)
    recorded = json.loads(read_weights(tmp_path / "out/adapter.safetensors").metadata["letters"])
    assert (recorded["layout"], recorded["fingerprint"]) == ("feature cache", expected)


def test_it_is_trained_and_written_too(make_cfg, tmp_path):
    before = fingerprint(make_cfg("out").MODEL.PROMPT_ENCODER.WEIGHTS)
    run(make_cfg("out", "LetterEncoder", "MODEL.PROMPT_ENCODER.TRAINABLE", True))
    cfg = trained(make_cfg("out"))
    cfg.MODEL.PROMPT_ENCODER.WEIGHTS = str(tmp_path / "out/letters.safetensors")
    sources = load_weights(OpenWorldSAM(cfg), cfg)
    recorded = json.loads(read_weights(tmp_path / "out/adapter.safetensors").metadata["letters"])
    assert sources["letters"].fingerprint == recorded["fingerprint"] != before


@pytest.mark.parametrize(
    ("opts", "error", "message"),
    [
        (["MODEL.PROMPT_ENCODER.TRAINABLE", True], ValueError, "LengthEncoder declares no weight file"),
        (["MODEL.PROMPT_ENCODER.EMBED_DIM", 16], ValueError, "width 32: set MODEL.PROMPT_ENCODER.EMBED_DIM"),
        (["MODEL.PROMPT_ENCODER.NAME", "Nothing"], KeyError, "no prompt encoder 'Nothing' .*LengthEncoder"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(make_cfg, opts, error, message):
    with pytest.raises(error, match=message):
        Trainer(make_cfg("out", "LengthEncoder", *opts))
