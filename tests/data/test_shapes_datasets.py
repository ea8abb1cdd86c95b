"""The splits of Shapes as datasets: seeds, names of things, and training."""

import pickle
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from openworldsam.config import load_config
from openworldsam.data.datasets import register_datasets, shapes
from openworldsam.data.datasets.shapes import SPLITS, configured_world
from openworldsam.data.mapper import DatasetMapper
from openworldsam.data.records.scenes import render_reference
from openworldsam.data.shapes import NOVEL_PAIRS, NOVEL_SHAPES, World, crowded, expressions
from openworldsam.engine.cache_features import build_cache
from openworldsam.engine.dry_run import describe_training
from openworldsam.engine.train import run_training
from openworldsam.engine.trainer import Trainer
from openworldsam.engine.training_state import resume

SMALL = ["DATASETS.SHAPES.SIZE", 64, "DATASETS.SHAPES.THING_SIZE", [10, 40]]


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.merge_from_list(SMALL)
    register_datasets(tiny_cfg)
    return tiny_cfg


@pytest.fixture
def few(monkeypatch):
    """Splits of 12 scenes."""
    for name, split in SPLITS.items():
        monkeypatch.setitem(SPLITS, name, split._replace(images=12))


def mapper_of(name, **options):
    metadata = MetadataCatalog.get(name)
    return DatasetMapper(class_names=metadata.vocabulary, is_thing=metadata.is_thing, **options)


def test_the_config_has_the_defaults_of_a_world(tiny_cfg):
    assert configured_world(tiny_cfg) == World()
    assert tiny_cfg.DATASETS.SHAPES.keys() == {field.name.upper() for field in fields(World)}


def test_the_numbers_of_scenes(cfg):
    counts = {name: len(DatasetCatalog.get(name)) for name in SPLITS}
    assert counts == {name: 20_000 if name.endswith("_train") else 500 for name in SPLITS}


def test_crowds_have_many_equal_things():
    cfg = load_config(Path(__file__).parents[2] / "configs/shapes/paper.yaml")
    register_datasets(cfg)
    equal = []
    for name, most in (("shapes_val", 3), ("shapes_crowd_val", 10)):
        scenes = [render_reference(record["scene"]) for record in DatasetCatalog.get(name)[:40]]
        things = [Counter(s.name for s in scene.segments if s.is_thing) for scene in scenes]
        assert max(counts.total() for counts in things) == most
        equal.append(np.mean([max(counts.values()) >= 4 for counts in things]))
    assert equal[0] == 0 and equal[1] > 0.5
    assert crowded(World(thing_size=(12, 80))).thing_size == (6, 40)


def test_records_are_small_and_can_be_sent_to_other_processes(cfg):
    for name in SPLITS:
        record = DatasetCatalog.get(name)[3]
        assert record["file_name"] == f"{name}/000003"
        assert len(pickle.dumps(record)) < 1000
        again = pickle.loads(pickle.dumps(record))
        np.testing.assert_array_equal(again.read_image(), record.read_image())


def test_the_seed_fixes_a_split_and_another_one_changes_every_split(cfg):
    def pictures(seed):
        cfg.DATASETS.SHAPES_SEED = seed
        register_datasets(cfg)
        records = {name: DatasetCatalog.get(name)[:5] for name in SPLITS}
        return {name: np.stack([record.read_image() for record in own]) for name, own in records.items()}

    first, again, other = pictures(3), pictures(3), pictures(4)
    for name in SPLITS:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any(axis=(1, 2, 3)).all()


def test_no_scene_and_no_image_id_is_in_two_splits_seeds_or_worlds(cfg):
    ids, pictures = set(), set()
    for opts in ([], ["DATASETS.SHAPES_SEED", 1], ["DATASETS.SHAPES.NOISE", 2.0]):
        cfg.merge_from_list(opts)
        register_datasets(cfg)
        for name in SPLITS:
            records = DatasetCatalog.get(name)[:500]
            own = {record["image_id"] for record in records}
            assert len(own) == 500 and not own & ids
            ids |= own
            few = {record.read_image().tobytes() for record in records[:5]}
            assert not few & pictures
            pictures |= few


@pytest.mark.parametrize("name", [name for name in SPLITS if "refer" not in name])
def test_ground_truth_is_that_of_the_scene(cfg, name):
    for record in DatasetCatalog.get(name)[:5]:
        scene = render_reference(record["scene"])
        ids, segments = record.read_panoptic()
        assert not record.is_referring and (record["height"], record["width"]) == ids.shape == (64, 64)
        np.testing.assert_array_equal(ids, scene.segment_map)
        named = {(s["id"], MetadataCatalog.get(name).vocabulary[s["category_id"]]) for s in segments}
        assert len(named) == len(segments)
        assert all(s["area"] == (ids == s["id"]).sum() > 0 and not s["iscrowd"] for s in segments)
        expected = {(s.id, s.name) for s in scene.segments if not s.is_thing}
        for s in (s for s in scene.segments if s.is_thing):
            pair = f"{s.colour} {s.name}"
            names = {"shapes_train": {s.name, pair}, "shapes_crowd_train": {s.name, pair}}
            names |= {"shapes_novel_val": {s.name if s.name in NOVEL_SHAPES else pair}}
            expected |= {(s.id, text) for text in names.get(name, {s.name})}
        assert named == expected


def test_nobody_can_change_what_the_next_reader_gets(cfg):
    record = DatasetCatalog.get("shapes_val")[0]
    for pixels in (record.read_image(), record.read_panoptic()[0]):
        with pytest.raises(ValueError, match="read-only"):
            pixels[:] = 0


def test_vocabularies(cfg):
    vocabularies = {name: MetadataCatalog.get(name).vocabulary for name in SPLITS}
    train = set(vocabularies["shapes_train"])
    textures, novel_pairs = set(World().textures), {" ".join(pair) for pair in NOVEL_PAIRS}
    assert set(vocabularies["shapes_novel_val"]) == novel_pairs | set(NOVEL_SHAPES) | textures
    assert set(vocabularies["shapes_novel_val"]) & train == textures
    assert set(vocabularies["shapes_val"]) < train and len(vocabularies["shapes_val"]) == 18
    assert vocabularies["shapes_absent_val"] == vocabularies["shapes_val"]
    assert vocabularies["shapes_refer_val"] == []
    for name, names in vocabularies.items():
        assert [not thing for thing in MetadataCatalog.get(name).is_thing] == [text in textures for text in names]


def test_a_shape_is_asked_for_in_all_its_colours_and_in_each(cfg):
    mapper, pairs = mapper_of("shapes_train", max_prompts=0), 0
    for record in DatasetCatalog.get("shapes_train")[:10]:
        mapped = mapper(record, np.random.default_rng(0))
        masks = dict(zip(mapped["prompts"], mapped["targets"], strict=True))
        for shape in (text for text in masks if any(other.endswith(f" {text}") for other in masks)):
            coloured = [mask for text, mask in masks.items() if text.endswith(f" {shape}")]
            assert len(masks[shape]) == sum(map(len, coloured))
            torch.testing.assert_close(masks[shape].any(0), torch.cat(coloured).any(0))
            pairs += len(coloured) > 1
    assert pairs


def test_expressions_come_with_the_masks_of_their_things(cfg):
    for record in DatasetCatalog.get("shapes_refer_val")[:5]:
        scene = render_reference(record["scene"])
        assert record.is_referring
        expected = expressions(scene)
        found = record.read_referring()
        assert [r.sentences for r in found] == record.sentences() == list(expected.values())
        for referent, id_ in zip(found, expected, strict=True):
            np.testing.assert_array_equal(referent.mask, scene.segment_map == id_)


@pytest.mark.parametrize("name", SPLITS)
def test_texts_are_all_prompts_of_any_visit(cfg, name):
    mapper = mapper_of(name, max_prompts=0)
    for record in DatasetCatalog.get(name)[:4]:
        texts = mapper.texts(record)
        asked = {t for seed in range(30) for t in mapper(record, np.random.default_rng(seed))["prompts"]}
        assert asked == set(texts) if name != "shapes_refer_train" else asked <= set(texts)
        assert len(texts) == len(set(texts))


def test_registering_again_follows_the_config(cfg):
    cfg.DATASETS.SHAPES.TEXTURES = ["sky", "wood"]
    for _ in range(2):
        register_datasets(cfg)
        assert MetadataCatalog.get("shapes_val").vocabulary[-2:] == ["sky", "wood"]


def test_a_world_without_novel_things_trains_and_says_what_it_lacks(cfg):
    cfg.merge_from_list(["DATASETS.SHAPES.SHAPES", ["circle"], "DATASETS.SHAPES.COLOURS", ["green", "blue"]])
    register_datasets(cfg)
    assert MetadataCatalog.get("shapes_train").vocabulary[:3] == ["circle", "green circle", "blue circle"]
    assert len(DatasetCatalog.get("shapes_val")) == 500
    with pytest.raises(ValueError, match="is novel"):
        DatasetCatalog.get("shapes_novel_val")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DATASETS.SHAPES.SIZE", 8], r"DATASETS\.SHAPES\.SIZE must be a whole number from 32"),
        (["DATASETS.SHAPES.SIZE", 64], r"DATASETS\.SHAPES\.THING_SIZE must be two whole numbers.*64.*got \(12, 128\)"),
        (["DATASETS.SHAPES.COLOURS", ["mauve"]], r"DATASETS\.SHAPES\.COLOURS must be different ones of red"),
        (["DATASETS.SHAPES.BLUR", -1.0], r"DATASETS\.SHAPES\.BLUR must be a number"),
        (["DATASETS.SHAPES_SEED", -1], r"DATASETS\.SHAPES_SEED must be 0 or more"),
    ],
)
def test_a_wrong_key_is_named(tiny_cfg, opts, message):
    tiny_cfg.merge_from_list(opts)
    with pytest.raises(ValueError, match=message):
        register_datasets(tiny_cfg)


@pytest.fixture
def train_cfg(cfg, few, tmp_path):
    opts = ["OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", [], "SOLVER.IMS_PER_BATCH", 2]
    cfg.merge_from_list([*opts, "DATALOADER.NUM_WORKERS", 0, "DATASETS.TRAIN", ["shapes_train"]])
    return cfg


def trained(cfg, **changes):
    """The last loss of a training, and its adapter."""
    cfg = cfg.clone()
    cfg.merge_from_list([word for key, value in changes.items() for word in (key.replace("__", "."), value)])
    register_datasets(cfg)
    trainer = Trainer(cfg)
    run_training(trainer)
    weights = {name: p.detach().clone() for name, p in trainer.model.adapter.named_parameters()}
    return trainer.storage.history("total_loss").latest(), weights


@pytest.mark.parametrize("name", ["shapes_train", "shapes_refer_train"])
def test_training_with_the_features_from_a_cache_is_training_without(train_cfg, tmp_path, name):
    train_cfg.DATASETS.TRAIN = [name]
    loss, weights = trained(train_cfg)
    added = build_cache(train_cfg, tmp_path / "cache", image_features="all", dtype="fp32")
    assert added.images == 12 and not added.skipped
    cached, cached_weights = trained(train_cfg, DATASETS__FEATURE_CACHE=str(tmp_path / "cache"))
    assert cached == pytest.approx(loss, rel=1e-5)
    for key in weights:
        torch.testing.assert_close(cached_weights[key], weights[key], rtol=1e-3, atol=1e-4)


def test_a_cache_of_another_seed_is_refused(train_cfg, tmp_path, caplog):
    build_cache(train_cfg, tmp_path / "cache")
    with pytest.raises(KeyError, match="does not hold anything of image"):
        trained(train_cfg, DATASETS__FEATURE_CACHE=str(tmp_path / "cache"), DATASETS__SHAPES_SEED=1)


def test_training_does_not_resume_with_another_seed(train_cfg):
    trained(train_cfg)
    train_cfg.DATASETS.SHAPES_SEED = 1
    register_datasets(train_cfg)
    with pytest.raises(ValueError, match="another list of images"):
        resume(Trainer(train_cfg))


def test_the_prompts_of_many_scenes_are_estimated(cfg):
    cfg.DATASETS.TRAIN = ["shapes_train"]
    assert "20,000 images, about " in describe_training(cfg)


def test_the_shipped_configs_know_their_datasets():
    configs = Path(__file__).parents[2] / "configs/shapes"
    for name, train in (("openworldsam", ["shapes_train", "shapes_crowd_train"]), ("refer", ["shapes_refer_train"])):
        cfg = load_config(configs / f"{name}.yaml")
        register_datasets(cfg)
        assert list(cfg.DATASETS.TRAIN) == train and set(cfg.DATASETS.TEST) < set(SPLITS)
    assert shapes.SPLITS["shapes_absent_val"].protocol == "present+absent"
