"""Configs by name, and the places where weights are looked for."""

from pathlib import Path

import pytest

from openworldsam.config import load_config
from openworldsam.config_files import (
    config_names,
    dataset_root,
    find_config,
    find_weights,
    looked_for,
    shipped,
    weights_folder,
)

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("shapes", "shapes/openworldsam.yaml"),
        ("coco", "coco/openworldsam.yaml"),
        ("coco/openworldsam", "coco/openworldsam.yaml"),
        ("configs/coco/openworldsam.yaml", "coco/openworldsam.yaml"),
        ("paper", "presets/paper.yaml"),
        ("released", "released.yaml"),
        ("presets/released", "presets/released.yaml"),
    ],
)
def test_a_config_is_found_by_name_from_anywhere(tmp_path, monkeypatch, name, file):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == ROOT / "configs" / file
    monkeypatch.chdir(ROOT)
    assert find_config(name) == Path("configs") / file


def test_every_config_that_ships_is_read_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = config_names()
    assert {"shapes/openworldsam", "released", "improved", "tiny"} <= set(names)
    for name in names:
        assert find_config(name).is_file()


def test_a_file_or_saved_model_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("released").write_text("VERSION: 2\nPRESET: mine\n")
    assert load_config("released").PRESET == "mine"
    Path("shapes").mkdir()  # any folder
    assert find_config("shapes") == ROOT / "configs/shapes/openworldsam.yaml"


@pytest.mark.parametrize(
    ("name", "near"), [("relesed", "released"), ("coco/openwordsam", "coco/openworldsam"), ("imprved.yaml", "improved")]
)
def test_a_misspelt_name_is_corrected(name, near):
    with pytest.raises(FileNotFoundError, match=f"config {name} not found.*did you mean {near}"):
        find_config(name)


def test_a_folder_that_is_no_saved_model_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no folder that save_pretrained wrote to the end"):
        find_config(tmp_path)


@pytest.mark.parametrize(
    ("opts", "near"),
    [
        (["MODLE.WEIGHTS", "a"], "MODEL.WEIGHTS"),
        (["TEST.CHUNK", "1"], "TEST.PROMPT_CHUNK"),
        (["SOLVR", "1"], "SOLVER"),
        (["seed", "1"], "SEED"),
    ],
)
def test_a_misspelt_key_is_corrected(opts, near):
    with pytest.raises(KeyError, match=f"did you mean {near}\\?"):
        load_config("paper", opts)


def test_a_base_may_be_a_name(tmp_path):
    (tmp_path / "mine.yaml").write_text("_BASE_: [improved, encoders/sam2_hiera_tiny]\nSEED: 3\n")
    cfg = load_config(tmp_path / "mine.yaml")
    assert (cfg.PRESET, cfg.MODEL.SAM2.EMBED_DIM, cfg.SEED) == ("improved", 96, 3)
    (tmp_path / "mine.yaml").write_text("_BASE_: imprved\n")
    with pytest.raises(FileNotFoundError, match=r"imprved not found. .*mine.yaml names it.*did you mean improved"):
        load_config(tmp_path / "mine.yaml")


def test_weights_lie_beside_the_config_then_here_then_in_the_folder(tmp_path, monkeypatch):
    beside, here, folder = tmp_path / "configs", tmp_path / "here", tmp_path / "folder"
    for place in (beside, here, folder):
        place.mkdir()
        (place / "a.pth").touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("OPENWORLDSAM_WEIGHTS", str(folder))
    config = beside / "c.yaml"
    config.write_text("MODEL:\n  WEIGHTS: a.pth\n  SAM2:\n    WEIGHTS: weights/a.pth\n")
    cfg = load_config(config)
    assert str(beside / "a.pth") == cfg.MODEL.WEIGHTS
    assert str(folder / "a.pth") == cfg.MODEL.SAM2.WEIGHTS  # neither has a folder "weights"
    (beside / "a.pth").unlink()
    assert load_config(config).MODEL.WEIGHTS == "a.pth"
    (here / "a.pth").unlink()
    assert str(folder / "a.pth") == load_config(config).MODEL.WEIGHTS
    assert str(folder / "a.pth") == load_config(config, ["MODEL.WEIGHTS", "weights/a.pth"]).MODEL.WEIGHTS
    (folder / "a.pth").unlink()
    assert load_config(config).MODEL.WEIGHTS == "a.pth"
    for place in ("beside the config", "working directory", str(folder), "OPENWORLDSAM_WEIGHTS"):
        assert place in looked_for("a.pth")


def test_the_weights_folder_is_in_the_users_cache_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENWORLDSAM_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "openworldsam/weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_folder() == tmp_path / ".cache/openworldsam/weights"
    assert find_weights("") == ""


def test_the_shapes_model_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = load_config("shapes")
    encoder = cfg.MODEL.PROMPT_ENCODER
    for path in (cfg.MODEL.WEIGHTS, cfg.MODEL.SAM2.WEIGHTS, encoder.WEIGHTS, encoder.TOKENIZER):
        assert Path(path).is_relative_to(shipped("weights")) and Path(path).is_file()


def test_a_home_that_does_not_exist_is_no_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENWORLDSAM_WEIGHTS", "~no-such-user/weights")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~no-such-user/data")
    assert weights_folder() == Path("~no-such-user/weights") and dataset_root() == Path("~no-such-user/data")
    assert find_weights("a.pth") == "a.pth"
