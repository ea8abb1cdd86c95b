"""A model's folder: what is saved answers the same elsewhere, and what is not whole does not load."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from openworldsam import OpenWorldSAMPredictor, cli
from openworldsam.checkpoint import read_weights, store_thresholds
from openworldsam.config import LOCAL_KEYS, config_value, load_config
from openworldsam.predictor import pretrained
from openworldsam.utils.files import save_json

PROMPTS = ["cat", "grass", "a blue ball"]
FILES = {"config.json", "adapter.safetensors", "sam2.safetensors", "beit3.safetensors", "beit3.spm"}


@pytest.fixture
def movable_cfg(tiny_cfg, tiny_weights, tmp_path):
    """Config of a model whose files may be changed."""
    folder = shutil.copytree(tiny_weights, tmp_path / "own")
    cfg = tiny_cfg.clone()
    cfg.merge_from_list(["MODEL.WEIGHTS", str(folder / "model_final.pth")])
    cfg.merge_from_list(["MODEL.PROMPT_ENCODER.TOKENIZER", str(folder / "beit3.spm")])
    return cfg


@pytest.fixture
def saved(predictor, tmp_path):
    folder = tmp_path / "saved"
    predictor.save_pretrained(folder)
    return folder


def assert_same_answers(ours, theirs, photograph):
    for predictor in (ours, theirs):
        predictor.set_image(photograph)
    for task in ("instance", "panoptic"):
        expected, found = (predictor.predict(PROMPTS, task) for predictor in (ours, theirs))
        assert len(expected.masks)
        assert np.array_equal(expected.masks, found.masks) and np.array_equal(expected.scores, found.scores)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_folder_alone_is_enough(movable_cfg, tmp_path, photograph, monkeypatch, precision, caplog):
    opts = ["MODEL.PRECISION", precision, "MODEL.INFERENCE.NMS_THRESHOLD", "0.9", "MODEL.ADAPTER.FUSION", "add"]
    predictor = OpenWorldSAMPredictor(movable_cfg, opts=opts)
    predictor.save_pretrained(tmp_path / "deep/saved")
    shutil.rmtree(tmp_path / "own")
    shutil.move(tmp_path / "deep/saved", tmp_path / "elsewhere")
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == FILES
    assert str(tmp_path) not in (tmp_path / "elsewhere/config.json").read_text()
    monkeypatch.chdir(tmp_path)
    caplog.clear()
    loaded = OpenWorldSAMPredictor.from_pretrained("elsewhere", device="cpu")
    assert_same_answers(predictor, loaded, photograph)
    # the adapter's record is saved with it: it was trained otherwise, but with these encoders
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [warning.split(" was trained with ")[1][:22] for warning in warnings] == ["MODEL.ADAPTER.FUSION r"]
    assert {name: source.note for name, source in loaded.sources.items()} == dict.fromkeys(
        ("sam2", "beit3", "adapter"), "rule-made, not trained, seed 0"
    )
    for component, source in predictor.sources.items():
        assert loaded.sources[component].fingerprint == source.fingerprint


@pytest.mark.parametrize("score", ["match", "iou"])
def test_a_score_head_is_saved_with_its_thresholds(tiny_cfg, head_opts, tmp_path, photograph, score):
    head = tmp_path / "calibrated.safetensors"
    store_thresholds(head, read_weights(head_opts[3]), {"match": 0.05})
    opts = [*head_opts[:3], str(head), "MODEL.INFERENCE.SCORE", score]
    predictor = OpenWorldSAMPredictor(tiny_cfg, opts=opts)
    predictor.save_pretrained(tmp_path / "saved")
    head.unlink()
    assert {path.name for path in (tmp_path / "saved").iterdir()} == FILES | {"score_head.safetensors"}
    loaded = OpenWorldSAMPredictor.from_pretrained(tmp_path / "saved", device="cpu")
    assert_same_answers(predictor, loaded, photograph)
    assert np.array_equal(*(p.predict(PROMPTS, "referring").match for p in (predictor, loaded)))
    assert [p.predict(PROMPTS, score="match").threshold for p in (predictor, loaded)] == [0.05, 0.05]
    saved = read_weights(tmp_path / "saved/score_head.safetensors")
    assert saved.recorded("adapter").fingerprint == predictor.sources["adapter"].fingerprint
    loaded.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "saved").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_model_whose_files_have_no_head_is_saved_without(tiny_cfg, tmp_path, photograph):
    predictor = OpenWorldSAMPredictor(tiny_cfg, opts=["MODEL.SCORE_HEAD.HIDDEN", "8"])
    predictor.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == FILES
    loaded = OpenWorldSAMPredictor.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.cfg.MODEL.SCORE_HEAD.HIDDEN == 0 and loaded.model.score_head is None
    assert_same_answers(predictor, loaded, photograph)


def test_drawn_tie_breakers_are_drawn_again(tiny_cfg, tmp_path, photograph):
    predictor = OpenWorldSAMPredictor(tiny_cfg, opts=["MODEL.ADAPTER.NUM_TIE_BREAKERS", "7"])
    predictor.save_pretrained(tmp_path / "saved")
    loaded = OpenWorldSAMPredictor.from_pretrained(tmp_path / "saved", device="cpu")
    assert_same_answers(predictor, loaded, photograph)
    assert loaded.sources["adapter"].note == predictor.sources["adapter"].note
    assert loaded.sources["adapter"].note.endswith("; 3 of 7 tie-breakers are drawn, not learned")


def test_every_tensor_is_saved_as_it_was(predictor, saved, tiny_weights):
    components = read_weights(tiny_weights / "model_final.pth").components
    for component, expected in components.items():
        found = load_file(saved / f"{component}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_same_model_gives_the_same_bytes(predictor, saved, tmp_path):
    first = {path.name: path.read_bytes() for path in saved.iterdir()}
    predictor.save_pretrained(saved)
    predictor.save_pretrained(tmp_path / "second")
    OpenWorldSAMPredictor.from_pretrained(saved, device="cpu").save_pretrained(tmp_path / "third")
    for folder in (saved, tmp_path / "second", tmp_path / "third"):
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_links_in_the_folder_are_written_through(predictor, saved, tmp_path):
    first = {path.name: path.read_bytes() for path in saved.iterdir()}
    (tmp_path / "linked").mkdir()
    for name in first:
        (tmp_path / "linked" / name).symlink_to(tmp_path / f"target_{name}")
    predictor.save_pretrained(tmp_path / "linked")
    assert {name: (tmp_path / f"target_{name}").read_bytes() for name in first} == first
    assert all(path.is_symlink() for path in (tmp_path / "linked").iterdir())


def test_saving_what_was_loaded_into_its_own_folder(saved, photograph):
    components = ("sam2", "beit3", "adapter")
    before = [read_weights(saved / f"{component}.safetensors").metadata for component in components]
    loaded = OpenWorldSAMPredictor.from_pretrained(saved)
    loaded.save_pretrained(saved)
    assert [read_weights(saved / f"{component}.safetensors").metadata for component in components] == before
    assert_same_answers(loaded, OpenWorldSAMPredictor.from_pretrained(saved), photograph)


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("stage", range(1, 6))
def test_an_interrupted_save_does_not_load(predictor, tmp_path, monkeypatch, stage, earlier):
    folder, written = tmp_path / "saved", []
    if earlier:
        predictor.save_pretrained(folder)

    def interrupted(path, write):
        written.append(path.name)
        if len(written) == stage:
            raise KeyboardInterrupt
        save(path, write)

    save = pretrained.save_atomically
    monkeypatch.setattr(pretrained, "save_atomically", interrupted)
    monkeypatch.setattr("openworldsam.utils.files.save_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predictor.save_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"saved is no folder that save_pretrained wrote to the end"):
        OpenWorldSAMPredictor.from_pretrained(folder)


def test_weights_that_changed_since_they_were_loaded_are_not_saved(movable_cfg, tmp_path):
    predictor = OpenWorldSAMPredictor(movable_cfg)
    content = torch.load(movable_cfg.MODEL.WEIGHTS)
    content["model"]["positional_tokens"] += 1
    torch.save(content, movable_cfg.MODEL.WEIGHTS)
    with pytest.raises(ValueError, match=r"model_final\.pth has changed since its adapter weights were loaded"):
        predictor.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", sorted(FILES - {"config.json"}))
def test_a_damaged_or_missing_file_is_named(saved, name):
    whole = (saved / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (whole[:-3], bytes(flipped), b""):
        (saved / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is damaged or of another model"):
            OpenWorldSAMPredictor.from_pretrained(saved)
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        OpenWorldSAMPredictor.from_pretrained(saved)


def test_a_foreign_folder_or_config_is_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere not found: no file, no saved model and no config"):
        OpenWorldSAMPredictor.from_pretrained(tmp_path / "nowhere")
    path = saved / "config.json"
    content = json.loads(path.read_text())
    renamed = {**content["config"], "MODEL": {**content["config"]["MODEL"], "NEW_KEY": 1}}
    mistyped = {**content["config"], "PRESET": 5}
    foreign = [
        "",
        path.read_text()[:-9],
        "[1]",
        '{"architectures": ["Sam2Model"]}',
        json.dumps({**content, "config": 5}),
        json.dumps({**content, "crc32": {}}),
    ]
    for text in foreign:
        path.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json is damaged, or not what save_pretrained wrote") as caught:
            OpenWorldSAMPredictor.from_pretrained(saved)
        assert "\n" not in str(caught.value)
    for config, error in ((renamed, KeyError), (mistyped, ValueError)):
        path.write_text(json.dumps({**content, "config": config}))
        with pytest.raises(error, match=r"config\.json: "):
            OpenWorldSAMPredictor.from_pretrained(saved)


def test_a_folder_that_cannot_be_made_is_an_error(predictor, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        predictor.save_pretrained(tmp_path / "file")


def test_what_is_missing_is_fetched_when_asked_for(predictor, tiny_weights, tmp_path, photograph, monkeypatch, capsys):
    monkeypatch.setenv("OPENWORLDSAM_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "openworldsam.download.download", lambda _, target: shutil.copy(tiny_weights / target.name, target)
    )
    weights = {"WEIGHTS": "weights/model_final.pth", "PROMPT_ENCODER": {"TOKENIZER": "weights/beit3.spm"}}
    config = tmp_path / "configs/mine.yaml"
    save_json(config, {"_BASE_": "tiny", "MODEL": weights})  # JSON is YAML
    with pytest.raises(FileNotFoundError, match=r"weights/beit3\.spm not found"):
        OpenWorldSAMPredictor.from_pretrained(config)
    assert capsys.readouterr().err == ""
    assert_same_answers(predictor, OpenWorldSAMPredictor.from_pretrained(config, download=True), photograph)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"fetching model_final.pth, beit3.spm (3.6 GB) into {tmp_path}/weights; ")
    assert_same_answers(predictor, OpenWorldSAMPredictor.from_pretrained(config, download=True), photograph)
    assert capsys.readouterr().err == ""


def test_the_folder_is_a_config_for_every_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    OpenWorldSAMPredictor("shapes/paper", device="cpu").save_pretrained("mine")
    saved, original = load_config("mine"), load_config("shapes/paper")
    for node in (saved, original):
        for key in LOCAL_KEYS:
            *path, name = key.split(".")
            (config_value(node, ".".join(path)) if path else node)[name] = None
        for key in ("MODEL", "MODEL.SAM2", "MODEL.PROMPT_ENCODER", "MODEL.SCORE_HEAD"):
            config_value(node, key).WEIGHTS = ""
        node.MODEL.PROMPT_ENCODER.TOKENIZER = ""
    assert saved == original  # among them the world, on which the scores of shapes_val depend
    cli.main(["evaluate", "--config", "mine", "--benchmarks", "shapes_val", "--output", "out", "TEST.MAX_IMAGES", "2"])
    cli.main(["train", "--config", "mine", "--dry-run", "DATASETS.TRAIN_IMAGES", "4"])
