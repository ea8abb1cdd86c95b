"""Adapter files: their metadata, and the warnings when an adapter is used otherwise than it was trained."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from published import beit3_state
from safetensors import safe_open
from safetensors.torch import save_file

from openworldsam.checkpoint import convert_released, load_weights, read_weights, save_trained
from openworldsam.modeling import OpenWorldSAM


@pytest.fixture
def encoders(files):
    return {"SAM2__WEIGHTS": files["sam2_hiera.pt"], "PROMPT_ENCODER__WEIGHTS": files["beit3.pth"]}


@pytest.fixture
def save(encoders, make_cfg):
    """Write the adapter of a new model; returns the model."""

    def save_new(path, **keys):
        cfg = make_cfg(**encoders, **keys)
        model = OpenWorldSAM(cfg)
        save_trained(model, path.parent, cfg, load_weights(model, cfg, need_adapter=False))
        path.with_name("adapter.safetensors").rename(path)
        return model

    return save_new


def test_a_saved_adapter_comes_back_with_its_metadata(save, encoders, make_cfg, tmp_path, log):
    path = tmp_path / "new" / "folder" / "adapter.safetensors"
    trained = save(path, ADAPTER__FUSION="add", ADAPTER__KEY_POSITIONS=True)
    with safe_open(path, framework="pt") as file:
        assert len(list(file.keys())) == 59
        metadata = file.metadata()
    recorded = [metadata[f"ADAPTER.{key}"] for key in ("FUSION", "INTERACTION", "KEY_POSITIONS")]
    assert [metadata["preset"], *recorded] == ["paper", "add", "prompt", "True"]
    sam2, beit3 = json.loads(metadata["sam2"]), json.loads(metadata["beit3"])
    assert (sam2["file"], sam2["layout"], beit3["file"]) == ("sam2_hiera.pt", "SAM 2.0", "beit3.pth")

    cfg = make_cfg(WEIGHTS=path, **encoders, ADAPTER__FUSION="add", ADAPTER__KEY_POSITIONS=True)
    model = OpenWorldSAM(cfg)
    sources = load_weights(model, cfg)
    assert sources["sam2"].fingerprint == sam2["fingerprint"]
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert not log.records


def told(cfg, log):
    """The one warning that loading gives."""
    log.clear()
    load_weights(OpenWorldSAM(cfg), cfg)
    (record,) = log.records
    assert record.levelno == logging.WARNING
    return record.getMessage()


@pytest.mark.parametrize(
    ("key", "value"),
    [("FUSION", "broadcast"), ("INTERACTION", "image"), ("KEY_POSITIONS", "True")],
)
def test_use_of_an_adapter_otherwise_than_trained_is_told(key, value, save, encoders, make_cfg, tmp_path, log):
    path = tmp_path / "adapter.safetensors"
    save(path)
    message = told(make_cfg(WEIGHTS=path, **encoders, **{f"ADAPTER__{key}": value}), log)
    assert f"MODEL.ADAPTER.{key}" in message and value in message


def test_other_encoders_than_trained_with_are_told(save, encoders, make_cfg, files, tmp_path, log):
    path, other = tmp_path / "adapter.safetensors", tmp_path / "other_beit3.pth"
    save(path)
    message = told(make_cfg(WEIGHTS=path, **{**encoders, "SAM2__WEIGHTS": files["sam2.1_hiera.pt"]}), log)
    assert all(part in message for part in ("other sam2 weights", "sam2_hiera.pt", "sam2.1_hiera.pt"))
    torch.save({"model": beit3_state(seed=77)}, other)
    message = told(make_cfg(WEIGHTS=path, **{**encoders, "PROMPT_ENCODER__WEIGHTS": other}), log)
    assert "other beit3 weights" in message and "other_beit3.pth" in message


def test_the_same_encoders_in_another_file_are_not_told(save, make_cfg, files, tmp_path, log):
    path = tmp_path / "adapter.safetensors"
    save(path)
    for name in ("model_final.pth", "model.safetensors", "sharded bin"):
        cfg = make_cfg(WEIGHTS=path, SAM2__WEIGHTS=files[name], PROMPT_ENCODER__WEIGHTS=files[name])
        load_weights(OpenWorldSAM(cfg), cfg)
    assert not log.records


def test_an_adapter_of_before_the_encoders_name_was_recorded_loads_silently(save, encoders, make_cfg, tmp_path, log):
    path, old = tmp_path / "adapter.safetensors", tmp_path / "old.safetensors"
    save(path)
    file = read_weights(path)
    del file.metadata["PROMPT_ENCODER.NAME"]
    save_file(file.components["adapter"], old, metadata=file.metadata)
    cfg = make_cfg(WEIGHTS=old, **encoders)
    load_weights(OpenWorldSAM(cfg), cfg)
    assert not log.records


def test_a_failing_writer_leaves_the_old_file_and_no_other(save, tmp_path, monkeypatch):
    path = tmp_path / "adapter.safetensors"
    save(path)
    before = path.read_bytes()

    def half(tensors, target, metadata):
        Path(target).write_bytes(before[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("openworldsam.checkpoint.writing.save_file", half)
    with pytest.raises(OSError, match="No space"):
        save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_adapter_remembers_all_that_it_was_trained_on(save, encoders, make_cfg, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "adapter.safetensors"
    save(first)
    cfg = make_cfg(WEIGHTS=first, **encoders)
    cfg.DATASETS.TRAIN = ["refcocog_umd_train"]
    model = OpenWorldSAM(cfg)
    save_trained(model, tmp_path, cfg, load_weights(model, cfg))
    coco = "coco_2017_train_panoptic_openworldsam"
    assert read_weights(first).source("adapter").trained_on == coco
    assert read_weights(second).source("adapter").trained_on == f"{coco}, refcocog_umd_train"


def test_the_authors_checkpoints_are_told_apart_by_their_names(files, tmp_path):
    coco = "coco_2017_train_panoptic_openworldsam"
    for name, tuned in (("model_final.pth", ""), ("model_final_refcocog.pth", ", refcocog_umd_train")):
        shutil.copy(files["model_final.pth"], tmp_path / name)
        file = read_weights(tmp_path / name)
        assert file.source("adapter").trained_on == f"{coco}{tuned}" and file.source("sam2").trained_on == ""
    converted = convert_released(tmp_path / "model_final_refcocog.pth", tmp_path / "parts")
    assert read_weights(converted["adapter"]).source("adapter").trained_on == f"{coco}, refcocog_umd_train"


@pytest.mark.parametrize("record", ["{", "[]", "3", '{"file": "a"}', '{"x": 1}', "[" * 100_000])
def test_a_damaged_record_of_the_encoders_is_named(record, states, encoders, make_cfg, tmp_path):
    save_file(states["adapter"], tmp_path / "a.safetensors", {"sam2": record})
    cfg = make_cfg(WEIGHTS=tmp_path / "a.safetensors", **encoders)
    with pytest.raises(ValueError, match=r"a\.safetensors: the record of its sam2 weights is damaged"):
        load_weights(OpenWorldSAM(cfg), cfg)
