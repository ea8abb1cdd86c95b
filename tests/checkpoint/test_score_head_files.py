"""Score heads in files: in an adapter's, beside one, or nowhere; their thresholds; and what does not fit."""

import pytest
import torch
from safetensors.torch import save_file

from openworldsam.checkpoint import convert_to_released, load_weights, read_weights, save_trained, store_thresholds
from openworldsam.checkpoint.released import released_state
from openworldsam.inference import InferenceOptions
from openworldsam.modeling import OpenWorldSAM

WIDTH = 8
ALONE = {"ADAPTER__TRAINABLE": False, "CRITERION__MASK_WEIGHT": 0.0, "CRITERION__SCORE_WEIGHT": 1.0}


@pytest.fixture
def cfg_of(files, make_cfg):
    """The config of a model with a score head, on the public encoders."""
    encoders = {"SAM2__WEIGHTS": files["sam2_hiera.pt"], "PROMPT_ENCODER__WEIGHTS": files["beit3.pth"]}
    return lambda **keys: make_cfg(**{**encoders, "SCORE_HEAD__HIDDEN": WIDTH, **keys})


@pytest.fixture
def train(cfg_of, tmp_path):
    """Save what a training would, a new head and adapter; returns the model and the file."""

    def save(seed=0, **keys):
        torch.manual_seed(seed)
        cfg = cfg_of(**keys)
        model = OpenWorldSAM(cfg)
        save_trained(model, tmp_path, cfg, load_weights(model, cfg, need_adapter=False))
        return model, (tmp_path / ("adapter" if model.train_adapter else "score_head")).with_suffix(".safetensors")

    return save


def loaded(cfg):
    model = OpenWorldSAM(cfg)
    return model, load_weights(model, cfg)


def without_head(path):
    """An adapter file as before there were score heads."""
    file = read_weights(path)
    save_file(file.components["adapter"], path.with_stem("plain"), file.metadata)
    return path.with_stem("plain")


def assert_same_tensors(model, expected):
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_head_comes_back_out_of_its_adapters_file(train, cfg_of, log):
    trained, path = train()
    file = read_weights(path)
    assert file.components.keys() == {"adapter", "score_head"} and len(file.components["adapter"]) == 59
    model, sources = loaded(cfg_of(WEIGHTS=path))
    assert_same_tensors(model, trained)
    assert sources["score_head"].file == sources["adapter"].file and not log.records
    assert sources["score_head"].trained_on == "coco_2017_train_panoptic_openworldsam"
    without, sources = loaded(cfg_of(WEIGHTS=path, SCORE_HEAD__HIDDEN=0))
    assert without.score_head is None and sources.keys() == {"sam2", "beit3", "adapter"} and not log.records


@pytest.mark.parametrize("name", ["model_final.pth", "adapter"])
def test_weights_without_a_head_load_and_say_so(name, files, states, cfg_of, tmp_path, log):
    path = files.get(name, tmp_path / "adapter.safetensors")
    if name == "adapter":
        save_file(states["adapter"], path)
    as_released = {"ADAPTER__FUSION": "broadcast", "ADAPTER__INTERACTION": "image"}
    model, sources = loaded(cfg_of(WEIGHTS=path, **as_released if name != "adapter" else {}))
    assert model.score_head is None and "score_head" not in sources
    (record,) = log.records
    assert f"{path} has no score head, so there is no match score: " in record.getMessage()
    with pytest.raises(ValueError, match=r"has no score head, so MODEL\.INFERENCE\.SCORE match cannot be used"):
        loaded(cfg_of(WEIGHTS=path, INFERENCE__SCORE="match"))


@pytest.mark.parametrize("beside", ["score_head", "adapter"])
def test_a_head_beside_the_released_checkpoint(beside, train, cfg_of, files):
    trained, path = train(**({} if beside == "adapter" else {**ALONE, "WEIGHTS": files["model_final.pth"]}))
    assert path.stem == beside
    cfg = cfg_of(WEIGHTS=files["model_final.pth"], SCORE_HEAD__WEIGHTS=path, INFERENCE__SCORE="match")
    model, sources = loaded(cfg)
    assert sources["adapter"].file == "model_final.pth" and sources["score_head"].file == path.name
    assert_same_tensors(model.score_head, trained.score_head)


def test_a_head_of_its_own_file_replaces_the_adapters(train, cfg_of, log):
    _, together = train()
    trained, path = train(seed=1, **ALONE, WEIGHTS=without_head(together))
    log.clear()
    model, sources = loaded(cfg_of(WEIGHTS=together, SCORE_HEAD__WEIGHTS=path))
    assert sources["score_head"].file == "score_head.safetensors" and not log.records
    assert_same_tensors(model, trained)


def test_a_head_beside_another_adapter_than_its_own_is_told(train, cfg_of, tmp_path, log):
    other = train()[1].rename(tmp_path / "other.safetensors")
    own = train(seed=1)[1]
    _, path = train(**ALONE, WEIGHTS=own)
    log.clear()
    loaded(cfg_of(WEIGHTS=own, SCORE_HEAD__WEIGHTS=path))
    assert not log.records
    for adapter, told in ((own, 0), (other, 1)):
        log.clear()
        cfg = cfg_of(WEIGHTS=without_head(adapter), SCORE_HEAD__WEIGHTS=path)
        loaded(cfg)
        assert len(log.records) == told
    assert f"{path} was trained with other adapter weights (adapter.safetensors)" in log.records[0].getMessage()


def test_stored_thresholds_are_used_unless_the_config_says_another(train, cfg_of, tmp_path):
    trained, path = train()
    store_thresholds(tmp_path / "calibrated.safetensors", read_weights(path), {"match": 0.37, "product": 0.21})
    keys = {"WEIGHTS": tmp_path / "calibrated.safetensors", "INFERENCE__SCORE_THRESHOLD": 0.65}
    for opts, threshold in (
        ({"INFERENCE__SCORE": "match"}, 0.37),
        ({"INFERENCE__SCORE": "product"}, 0.21),
        ({"INFERENCE__SCORE": "match", "INFERENCE__MATCH_THRESHOLD": 0.8}, 0.8),
        ({}, 0.65),
        ({"INFERENCE__MATCH_THRESHOLD": 0.8}, 0.65),
    ):
        model, _ = loaded(cfg_of(**keys, **opts))
        assert model.inference.score_threshold == threshold
        assert model.match_thresholds == {"match": 0.37, "product": 0.21}
    assert_same_tensors(model, trained)
    model, _ = loaded(cfg_of(WEIGHTS=path, INFERENCE__SCORE="match"))
    assert model.inference.score_threshold == 0.5 and model.match_thresholds == {}


@pytest.mark.parametrize("record", ["{", "[1]", "3", '{"match": "high"}', '{"match": null}', "[" * 100_000])
def test_damaged_thresholds_are_named(record, train, tmp_path):
    file = read_weights(train()[1])
    state = {name: tensor for part in file.components.values() for name, tensor in part.items()}
    save_file(state, tmp_path / "a.safetensors", {"thresholds": record})
    with pytest.raises(ValueError, match=r"a\.safetensors: the record of its thresholds is damaged"):
        _ = read_weights(tmp_path / "a.safetensors").thresholds


def test_a_head_of_another_width_is_told_which(train, cfg_of):
    with pytest.raises(ValueError, match=r"configured score_head: .* It wants MODEL\.SCORE_HEAD\.HIDDEN 8\."):
        loaded(cfg_of(WEIGHTS=train()[1], SCORE_HEAD__HIDDEN=16))


def test_a_head_is_no_adapter(train, cfg_of, files):
    _, path = train(**ALONE, WEIGHTS=files["model_final.pth"])
    with pytest.raises(ValueError, match=r"no weights for adapter \(only .* score_head from .*\): set MODEL\.WEIGHTS"):
        loaded(cfg_of(WEIGHTS=path))


def test_the_released_layout_says_that_it_has_no_place_for_a_head(train, cfg_of, files, tmp_path, log):
    trained, path = train()
    log.clear()
    convert_to_released(path, files["sam2_hiera.pt"], files["beit3.pth"], tmp_path / "joined.pth")
    (record,) = log.records
    advice = f"no place for the score head; MODEL.SCORE_HEAD.WEIGHTS {path} adds it"
    assert advice in record.getMessage()
    joined = {"WEIGHTS": tmp_path / "joined.pth", "SAM2__WEIGHTS": "", "PROMPT_ENCODER__WEIGHTS": ""}
    model, _ = loaded(cfg_of(**joined, SCORE_HEAD__WEIGHTS=path))
    assert_same_tensors(model, trained)
    with pytest.raises(ValueError, match="the released layout has no place for score_head"):
        released_state(model)


def test_the_rule_decides_the_threshold(cfg_of):
    cfg = cfg_of(INFERENCE__SCORE_THRESHOLD=0.65, INFERENCE__SCORE="match")
    stored = {"match": 0.3}
    thresholds = [
        InferenceOptions.from_config(cfg, score, stored).score_threshold for score in ("iou", None, "product")
    ]
    assert thresholds == [0.65, 0.3, 0.5]
