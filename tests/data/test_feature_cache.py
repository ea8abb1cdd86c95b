"""The feature cache: it gives what the encoders give, survives a kill, and refuses what does not fit."""

import json
import os
import pickle
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image
from torch.utils.data import DataLoader

from openworldsam import cli
from openworldsam.config import load_config
from openworldsam.data.feature_cache import (
    CachedImage,
    CacheHeader,
    FeatureCache,
    FeatureCacheWriter,
    ImageEntry,
    ImageStamp,
    writer,
)
from openworldsam.data.feature_cache.index import write_index
from openworldsam.data.loader import training_dataset
from openworldsam.data.mapper import DatasetMapper
from openworldsam.engine.cache_features import build_cache, image_bytes
from openworldsam.utils.locking import lock

main = cli.command("cache")

ROOT = Path(__file__).parents[2]
WIDTH, CHANNELS, SIDE = 32, 32, 8  # of the tiny model
SQUARE = [1, 1, 14, 1, 14, 14, 1, 14]
WEIGHTS = {"beit3": "b", "sam2": "s"}


def make_dataset(folder, num_images=6):
    """Random pictures with three segments each, of three classes."""
    generator = np.random.default_rng(0)
    records = []
    for index in range(num_images):
        height, width = (int(side) for side in generator.integers(40, 60, 2))
        ids = np.ones((height, width), dtype=np.uint32)
        ids[: height // 3] = 2
        ids[-10:, 5:15] = 3
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        Image.fromarray(id2rgb(ids)).save(folder / f"{index}_panoptic.png")
        records.append(
            {
                "file_name": str(folder / f"{index}.png"),
                "image_id": index,
                "height": height,
                "width": width,
                "pan_seg_file_name": str(folder / f"{index}_panoptic.png"),
                "segments_info": [{"id": i, "category_id": c, "iscrowd": 0} for i, c in ((1, 1), (2, 2), (3, 0))],
            }
        )
    return records


def register(name, records, vocabulary=("cat", "grass", "sky")):
    """Put records into the catalogs, once."""
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(vocabulary=vocabulary, is_thing=(True,) * len(vocabulary))
    return name


def tiny_training(folder, weights):
    """Config of a training on the records.json of a folder."""
    name = register(f"pictures_{folder.name}", json.loads((folder / "records.json").read_text()))
    opts = ["MODEL.WEIGHTS", str(weights / "model_final.pth"), "DATASETS.TRAIN", [name], "DATALOADER.NUM_WORKERS", 0]
    opts += ["MODEL.PROMPT_ENCODER.TOKENIZER", str(weights / "beit3.spm")]
    return load_config(ROOT / "configs/tiny.yaml", opts)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    (folder / "records.json").write_text(json.dumps(make_dataset(folder)))
    return folder


@pytest.fixture
def cfg(data, tiny_weights):
    return tiny_training(data, tiny_weights)


@pytest.fixture
def referring_cfg(cfg, data, tmp_path):
    """Two of the pictures, with sentences; an object of two sentences, and two of one image that share one."""
    objects = [[("the left one", "a thing on the left"), ("the thing",)], [("the thing",), ("the thing",)]]
    records = [
        {**record, "annotations": [{"sentences": s, "segmentation": [SQUARE]} for s in sentences]}
        for record, sentences in zip(make_dataset(tmp_path, 2), objects, strict=True)
    ]
    cfg.DATASETS.TRAIN = [register(f"referring_{tmp_path}", records, vocabulary=())]
    return cfg


def visits(cfg):
    """What training sees in its first epoch."""
    dataset = training_dataset(cfg)
    return [dataset[position] for position in range(len(dataset.records))]


def entry(prompts, features=False):
    return ImageEntry(0, "0.png", ImageStamp(40, 50, 0), prompts, features)


def embeddings_of(model, x):
    return model.encode_prompts(model.prompt_inputs([x["image"]]), x["prompts"], torch.zeros(len(x["prompts"])).long())


def contents(folder):
    """Every file of a cache, by name; without its locks."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock" != path.name}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_it_gives_what_the_encoders_give(cfg, build, tmp_path, dtype):
    summary = build_cache(cfg, tmp_path / "cache", image_features="all", dtype=dtype, shard_images=4)
    assert (summary.images, summary.prompts, summary.skipped) == (6, 18, [])
    cache, model = FeatureCache(tmp_path / "cache"), build()
    rounding = {"fp32": 1e-5, "bf16": 2**-8, "fp16": 2**-11}[dtype]
    stored = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    for x in visits(cfg):
        found = cache.attach(x)
        assert x.keys() <= found.keys()
        expected = embeddings_of(model, x)
        torch.testing.assert_close(found["prompt_embeddings"], expected, rtol=rounding, atol=1e-5)
        features = model.encode_images([x["image"]])
        assert found["image_embed"].dtype == stored
        torch.testing.assert_close(found["image_embed"].float(), features.embed[0], rtol=rounding, atol=1e-5)
        for ours, level in zip(found["high_res"], features.high_res, strict=True):
            torch.testing.assert_close(ours.float(), level[0], rtol=rounding, atol=1e-5)


def test_all_classes_are_held_although_few_are_drawn(cfg, tmp_path):
    cfg.INPUT.MAX_PROMPTS = 1
    build_cache(cfg, tmp_path / "cache")
    cfg.INPUT.MAX_PROMPTS = 0
    cache = FeatureCache(tmp_path / "cache")
    for x in visits(cfg):
        found = cache.attach(x)
        assert found["prompt_embeddings"].shape == (3, WIDTH)
        assert "image_embed" not in found


def test_every_sentence_of_every_object(referring_cfg, build, tmp_path):
    summary = build_cache(referring_cfg, tmp_path / "cache", dtype="fp32")
    assert summary.prompts == 4  # a sentence of an image is encoded once
    cache, model, dataset = FeatureCache(tmp_path / "cache"), build(), training_dataset(referring_cfg)
    asked = set()
    for position in range(20):
        x = dataset[position]
        asked.update(x["prompts"])
        torch.testing.assert_close(cache.attach(x)["prompt_embeddings"], embeddings_of(model, x), rtol=1e-5, atol=1e-5)
    assert asked == {"the left one", "a thing on the left", "the thing"}


def test_a_second_dataset_of_the_same_images_adds_only_what_is_new(referring_cfg, data, cfg, tmp_path):
    build_cache(referring_cfg, tmp_path / "cache", image_features="all")
    panoptic = referring_cfg.clone()
    panoptic.DATASETS.TRAIN = [f"pictures_{data.name}"]
    assert build_cache(panoptic, tmp_path / "cache", image_features="all").prompts == 18
    cache = FeatureCache(tmp_path / "cache")
    assert (cache.num_images, cache.num_prompts) == (6, 22)
    size = sum(path.stat().st_size for path in cache.shards)
    assert size < 7 * image_bytes(cfg, cache.header)  # features of six images, not of eight
    for x in visits(panoptic) + visits(referring_cfg):
        assert cache.attach(x)["image_embed"].shape == (CHANNELS, SIDE, SIDE)


@pytest.mark.parametrize(("kind", "levels"), [("none", 0), ("all", 4)])
def test_sizes_are_as_documented(cfg, tmp_path, kind, levels):
    build_cache(cfg, tmp_path / "cache", image_features=kind, dtype="bf16")
    cache = FeatureCache(tmp_path / "cache")
    (shard,) = cache.shards
    with shard.open("rb") as file:
        overhead = 8 + int.from_bytes(file.read(8), "little")  # safetensors' own header
    per_image = levels * CHANNELS * SIDE**2 * 2
    assert image_bytes(cfg, cache.header) == per_image
    assert shard.stat().st_size - overhead == 18 * WIDTH * 2 + 6 * per_image


def build_and_die(folder, weights, output, name, count):
    """Build a cache, and die at a call of the writer: half a shard is on the disk, or one without its index."""
    real, calls = getattr(writer, name), 0

    def dies(first, path, *args):
        nonlocal calls
        calls += 1
        if calls == count:
            if name == "save_file":
                path.write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
        return real(first, path, *args)

    setattr(writer, name, dies)
    build_cache(tiny_training(folder, weights), output, image_features="all", shard_images=1)


def test_a_kill_at_any_moment_loses_nothing(cfg, processes, data, tiny_weights, tmp_path):
    build_cache(cfg, tmp_path / "whole", image_features="all", shard_images=1)
    killed = tmp_path / "killed"
    for moment, shards in ((("save_file", 3), 2), (("write_index", 2), 3)):
        (ended,) = processes(build_and_die, data, tiny_weights, killed, *moment)
        assert ended.status == -signal.SIGKILL, ended.stderr
        assert len(FeatureCache(killed).shards) == shards
    assert build_cache(cfg, killed, image_features="all", shard_images=1).images == 3
    assert contents(killed) == contents(tmp_path / "whole")
    assert build_cache(cfg, killed, image_features="all", shard_images=1).images == 0


def command_line(cfg, folder, *options):
    path = folder.parent / "config.yaml"
    path.write_text(cfg.dump())
    main(["--config-file", str(path), "--output", str(folder), *options])


def test_two_parts_are_the_whole(cfg, tmp_path):
    build_cache(cfg, tmp_path / "whole", shard_images=2)
    for part in (1, 0):
        build_cache(cfg, tmp_path / "parts", part=part, num_parts=2, shard_images=2)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    with pytest.raises(ValueError, match="parts are numbered from 0 to 1"):
        build_cache(cfg, tmp_path / "parts", part=2, num_parts=2)


def test_two_processes_share_the_work(cfg, processes, tmp_path, monkeypatch):
    cfg.DATASETS.TRAIN = ["refcocog_umd_train"]  # a started process knows only the datasets of the package
    root = tmp_path / "root"
    (root / "coco/annotations").mkdir(parents=True)
    (root / "coco/train2017").mkdir()
    Image.new("RGB", (20, 20)).save(root / "coco/train2017/000000000001.jpg")
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 13, 13], "segmentation": [SQUARE]}
    content = {
        "images": [{"id": 1, "height": 20, "width": 20}],
        "annotations": [{**annotation, "sentences": ["black", "all black"]}],
    }
    (root / "coco/annotations/refcocog_umd_train.json").write_text(json.dumps(content))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    options = ["--config-file", tmp_path / "config.yaml", "--output", tmp_path / "cache", "--num-gpus", 2]
    ended = processes.script(ROOT / "tools/cache_features.py", *options)
    assert ended.status == 0, ended.stderr
    assert "added 2 prompts of 1 images" in ended.stdout
    assert FeatureCache(tmp_path / "cache").num_prompts == 2


def test_unreadable_images_are_skipped_and_made_up_for_later(cfg, data, tmp_path, caplog):
    record = next(r for r in DatasetCatalog.get(cfg.DATASETS.TRAIN[0]) if r["image_id"] == 2)
    path = Path(record["file_name"])
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[: len(whole) // 2])
        with caplog.at_level("WARNING", logger="openworldsam"):
            assert build_cache(cfg, tmp_path / "cache").skipped == [str(path)]
            assert build_cache(cfg, tmp_path / "cache").images == 0
    finally:
        path.write_bytes(whole)
    with pytest.raises(KeyError, match="does not hold anything of image 2"):
        FeatureCache(tmp_path / "cache").attach(
            {"image_id": 2, "file_name": str(path), "prompts": ["cat"], "image": torch.zeros(3, 4, 5).byte()}
        )
    summary = build_cache(cfg, tmp_path / "cache")
    assert (summary.images, summary.prompts) == (1, 3)
    for x in visits(cfg):
        FeatureCache(tmp_path / "cache").attach(x)


def test_nothing_readable_is_an_error(cfg, tmp_path):
    records = [{**r, "file_name": r["file_name"] + ".gone"} for r in make_dataset(tmp_path, 2)]
    cfg.DATASETS.TRAIN = [register(f"gone_{tmp_path}", records)]
    with pytest.raises(ValueError, match="not one of 2 images could be read"):
        build_cache(cfg, tmp_path / "cache")


@pytest.mark.parametrize("file", ["0.png", "other.png"])
@pytest.mark.parametrize("kind", ["none", "all"])
def test_datasets_with_the_same_ids_share_one_cache(cfg, build, tmp_path, file, kind):
    """Images of one id are told apart by their pixels, even if their files have one name too."""
    one, (record,) = cfg.DATASETS.TRAIN, make_dataset(tmp_path, 1)
    path = tmp_path / file
    Image.fromarray(255 - np.array(Image.open(record["file_name"]))).save(path)
    two = [register(f"other_{tmp_path}", [{**record, "file_name": str(path)}])]
    cfg.DATASETS.TRAIN = [*one, *two]
    options = {"image_features": kind, "dtype": "fp32", "shard_images": 2}
    assert build_cache(cfg, tmp_path / "whole", **options).images == 7
    for part in (1, 0):
        build_cache(cfg, tmp_path / "cache", part=part, num_parts=2, **options)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")
    assert build_cache(cfg, tmp_path / "cache", **options) == (0, 0, [])
    cache, model = FeatureCache(tmp_path / "cache"), build()
    assert cache.num_images == 7
    for x in visits(cfg):
        found = cache.attach(x)
        torch.testing.assert_close(found["prompt_embeddings"], embeddings_of(model, x), rtol=1e-5, atol=1e-5)
        if kind == "all":
            torch.testing.assert_close(found["image_embed"], model.encode_images([x["image"]]).embed[0])
    for names in (one, two, [*two, *one]):  # each alone, and in another order
        cfg.DATASETS.TRAIN = names
        assert build_cache(cfg, tmp_path / "cache", **options).images == 0
        for x in visits(cfg):
            cache.attach(x)


def test_a_dataset_with_the_ids_of_another_is_added_later(cfg, tmp_path):
    build_cache(cfg, tmp_path / "cache")
    record = make_dataset(tmp_path, 1)[0]
    Image.new("RGB", (record["width"], record["height"])).save(tmp_path / "other.png")
    cfg.DATASETS.TRAIN = [register(f"other_{tmp_path}", [{**record, "file_name": str(tmp_path / "other.png")}])]
    with pytest.raises(KeyError, match=r"does not hold anything of image 0 \(other.png\)"):
        FeatureCache(tmp_path / "cache").attach(visits(cfg)[0])
    assert build_cache(cfg, tmp_path / "cache").images == 1
    FeatureCache(tmp_path / "cache").attach(visits(cfg)[0])


class Attached(torch.utils.data.Dataset):
    """Visits with their features."""

    def __init__(self, cfg, cache):
        self.visits, self.cache = training_dataset(cfg), cache

    def __len__(self):
        return len(self.visits.records)

    def __getitem__(self, position):
        return self.cache.attach(self.visits[position])


def test_it_works_from_two_loader_workers(cfg, tmp_path):
    build_cache(cfg, tmp_path / "cache", image_features="all", shard_images=2)
    cache = FeatureCache(tmp_path / "cache")
    here = [cache.attach(x) for x in visits(cfg)]  # the shards are open before the workers are started
    for found, expected in zip(DataLoader(Attached(cfg, cache), batch_size=None, num_workers=2), here, strict=True):
        assert found["image_id"] == expected["image_id"]
        for name in ("prompt_embeddings", "image_embed"):
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)
        assert len(found["high_res"]) == 2
        assert found["image_embed"].untyped_storage().nbytes() == found["image_embed"].nbytes
    copy = pickle.loads(pickle.dumps(cache))
    torch.testing.assert_close(copy.attach(visits(cfg)[0])["image_embed"], here[0]["image_embed"])


def fingerprints(cache):
    return dict(cache.header.fingerprints)


def test_it_refuses_what_would_give_other_features(cfg, tmp_path):
    build_cache(cfg, tmp_path / "cache", image_features="all")
    cache = FeatureCache(tmp_path / "cache")
    cache.check(cfg, fingerprints(cache))
    cache.check(cfg, {})  # weights that are not at hand are not compared
    with pytest.raises(ValueError, match=f"fingerprint of the beit3 is {fingerprints(cache)['beit3']}, not 0000"):
        cache.check(cfg, {**fingerprints(cache), "beit3": "0000"})
    with pytest.raises(ValueError, match="fingerprint of the sam2 is"):
        cache.check(cfg, {**fingerprints(cache), "sam2": "0000"})
    for key, value, now in (
        ("MODEL.SAM2.IMAGE_SIZE", 256, "128"),
        ("MODEL.PROMPT_ENCODER.IMAGE_SIZE", 64, "32"),
        ("MODEL.PROMPT_ENCODER.USE_IMAGE", False, "True"),
        ("INPUT.ANTIALIAS", True, "False"),
    ):
        other = cfg.clone()
        other.merge_from_list([key, value])
        with pytest.raises(ValueError, match=f"its {key} is {now}, not {value}"):
            cache.check(other, {})
    for key in ("INPUT.FLIP", "INPUT.LARGE_SCALE_JITTER", "MODEL.PROMPT_ENCODER.TRAINABLE"):
        other = cfg.clone()
        other.merge_from_list([key, True])
        with pytest.raises(ValueError, match=f"{key} is on"):
            cache.check(other, {})
        with pytest.raises(ValueError, match=f"{key} is on"):
            build_cache(other, tmp_path / "another")
    with pytest.raises(ValueError, match="holds another cache: its dtype is bf16, not fp32"):
        build_cache(cfg, tmp_path / "cache", image_features="all", dtype="fp32")


def test_prompts_alone_do_not_depend_on_sam2(cfg, tmp_path):
    build_cache(cfg, tmp_path / "cache")
    cache = FeatureCache(tmp_path / "cache")
    assert fingerprints(cache).keys() == {"beit3", "tokenizer"}
    with pytest.raises(ValueError, match="fingerprint of the tokenizer is"):
        cache.check(cfg, {"tokenizer": "0000"})
    cfg.MODEL.SAM2.IMAGE_SIZE = 256
    cache.check(cfg, {**fingerprints(cache), "sam2": "0000"})


def test_rounded_arithmetic_does_not_serve_a_precise_training(cfg, tmp_path):
    precise = CacheHeader.from_config(cfg, WEIGHTS, "none", "fp32")
    cfg.MODEL.PRECISION = "bf16"
    FeatureCacheWriter(tmp_path / "bf16", CacheHeader.from_config(cfg, WEIGHTS, "none", "fp32"))
    FeatureCacheWriter(tmp_path / "fp32", precise)
    FeatureCache(tmp_path / "bf16").check(cfg, {})
    FeatureCache(tmp_path / "fp32").check(cfg, {})
    cfg.MODEL.PRECISION = "fp32"
    with pytest.raises(ValueError, match="precision is bf16, not fp32"):
        FeatureCache(tmp_path / "bf16").check(cfg, {})


def test_what_is_missing_is_named_with_the_command_that_adds_it(cfg, tmp_path):
    build_cache(cfg, tmp_path / "cache")
    cache, x = FeatureCache(tmp_path / "cache"), visits(cfg)[0]
    with pytest.raises(KeyError, match=r"'a unicorn' of image \d.*openworldsam cache .*--output .*--dtype bf16"):
        cache.attach({**x, "prompts": ["cat", "a unicorn"]})
    with pytest.raises(KeyError, match="anything of image 77"):
        cache.attach({**x, "image_id": 77})
    cache.attach({**x, "file_name": "somewhere/the_same_pixels.png"})
    for image in (ImageStamp.of(x["image"]), Path(x["file_name"]).name):
        assert cache.missing(x["image_id"], ["cat", "a unicorn"], image) == (("a unicorn",), False)


def test_a_damaged_cache_is_named_and_mended(cfg, tmp_path, capsys):
    folder = tmp_path / "cache"
    build_cache(cfg, folder, shard_images=3)
    whole = contents(folder)
    shard = next(iter(FeatureCache(folder).shards))
    index = shard.with_suffix(".json")

    shard.write_bytes(whole[shard.name][:-10])
    with pytest.raises(ValueError, match=rf"{shard.name}: \d+ bytes, its index says \d+. Delete .*{index.name}"):
        FeatureCache(folder)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{shard.name}: no file"):
        FeatureCache(folder)
    index.write_bytes(whole[index.name][:50])
    with pytest.raises(ValueError, match=rf"{shard.name}: a damaged index .*Delete .*{index.name} and run"):
        FeatureCache(folder)
    index.write_text("{}")
    shard.write_bytes(whole[shard.name])
    with pytest.raises(ValueError, match=rf"{shard.name}: a damaged index"):
        FeatureCache(folder)

    index.unlink()  # as the messages say
    assert build_cache(cfg, folder, shard_images=3).images == 3
    assert contents(folder) == whole

    command_line(cfg, folder, "--verify")
    assert "is intact: 18 prompts of 6 images in 2 shards" in capsys.readouterr().out
    flipped = bytearray(whole[shard.name])
    flipped[-1] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(SystemExit, match="2"):
        command_line(cfg, folder, "--verify")
    assert f"{shard.name}: another checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, r"header\.json is damaged") for text in ("", "[]", '{"dtype": "fp32"', '{"version": 3}', "{}")),
        (
            '{"version": 2, "weights": {}}',
            r"is a cache of an older format \(2, this code reads 3\); make .* again",
        ),
        ('{"version": 99}', r"is a cache of another format \(99, this code reads 3\); make .* again"),
    ],
)
def test_a_damaged_or_older_header_is_named(cfg, tmp_path, text, message):
    folder = tmp_path / "cache"
    with pytest.raises(FileNotFoundError, match="holds no feature cache"):
        FeatureCache(folder)
    FeatureCacheWriter(folder, CacheHeader.from_config(cfg, WEIGHTS, "none", "fp32"))
    (folder / "header.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        FeatureCache(folder)
    with pytest.raises(ValueError, match=message):
        build_cache(cfg, folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("settings", None),
        ("settings", {}),
        ("fingerprints", None),
        ("fingerprints", {}),
        ("fingerprints", {"beit3": "0000"}),  # but image features are held
        ("fingerprints", {"beit3": 1, "sam2": "0000"}),
        ("image_features", []),
        ("dtype", None),
        ("precision", 32),
    ],
)
def test_a_damaged_field_of_the_header_is_one_line(cfg, tmp_path, capsys, field, value):
    header = CacheHeader.from_config(cfg, WEIGHTS, "all", "fp32")
    FeatureCacheWriter(tmp_path / "cache", header)
    (tmp_path / "cache/header.json").write_text(json.dumps({**asdict(header), field: value}))
    with pytest.raises(SystemExit, match="2"):
        command_line(cfg, tmp_path / "cache", "--verify")
    error = capsys.readouterr().err
    assert "header.json is damaged" in error and error.count("\n") == 1


def test_verifying_compares_shards_with_header_and_index(cfg, tmp_path):
    header = CacheHeader.from_config(cfg, WEIGHTS, "none", "fp32")
    folder = tmp_path / "cache"
    writer = FeatureCacheWriter(folder, header)
    writer.write("0", [CachedImage(entry(("cat", "sky")), torch.zeros(2, WIDTH))])
    FeatureCache(folder).verify()
    shard = folder / "shard-0.safetensors"
    (folder / "header.json").write_text(json.dumps({**asdict(header), "dtype": "bf16"}))
    with pytest.raises(ValueError, match="not in bf16"):
        FeatureCache(folder).verify()
    write_index(shard, [entry(("cat",))])
    with pytest.raises(ValueError, match=r"shard-0\.safetensors: 2 prompts, its index says 1\. Delete"):
        FeatureCache(folder).verify()
    header = CacheHeader.from_config(cfg, WEIGHTS, "all", "fp32")
    (folder / "header.json").write_text(json.dumps(asdict(header)))
    write_index(shard, [entry(("cat", "sky"), features=True)])
    with pytest.raises(ValueError, match="other tensors"):
        FeatureCache(folder).verify()


def test_a_changed_index_is_noticed(cfg, tmp_path):
    build_cache(cfg, tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("shard-*.json")
    index.write_text(index.read_text().replace('"grass"', '"glass"', 1))
    with pytest.raises(ValueError, match=r"a damaged index .*another checksum.*Delete"):
        FeatureCache(tmp_path / "cache")


def test_what_may_not_be_read_is_not_damaged(cfg, tmp_path, monkeypatch):
    def denied(path, *args, **kwargs):
        if path.suffix == ".safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    real = Path.open

    build_cache(cfg, tmp_path / "cache")
    monkeypatch.setattr(Path, "open", denied)  # chmod does not keep root out
    with pytest.raises(PermissionError, match=r"^\[Errno 13\] Permission denied: .*safetensors'$"):
        FeatureCache(tmp_path / "cache")


def test_another_user_may_read_a_cache(cfg, tmp_path):
    build_cache(cfg, tmp_path / "cache")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").iterdir()}
    assert modes == {0o644}


def test_a_replaced_picture_is_noticed(cfg, tmp_path):
    records = make_dataset(tmp_path, 2)
    cfg.DATASETS.TRAIN = [register(f"replaced_{tmp_path}", records)]
    build_cache(cfg, tmp_path / "cache")
    path = Path(records[1]["file_name"])
    pixels = np.array(Image.open(path))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    (index,) = (tmp_path / "cache").glob("shard-*.json")
    cache, message = FeatureCache(tmp_path / "cache"), rf"image 1 \(.*1\.png.* has other pixels .*delete .*{index.name}"
    with pytest.raises(ValueError, match=message):
        for x in visits(cfg):
            cache.attach(x)
    build_cache(cfg, tmp_path / "cache")  # nothing is missing
    index.unlink()  # as the message says
    build_cache(cfg, tmp_path / "cache")
    for x in visits(cfg):
        FeatureCache(tmp_path / "cache").attach(x)


def test_image_features_are_not_added_to_prompts_alone(cfg, tmp_path):
    for held, wanted, message in (("none", "all", "it holds no image features"), ("all", "none", "it holds image fe")):
        FeatureCacheWriter(tmp_path / held, CacheHeader.from_config(cfg, WEIGHTS, held, "bf16"))
        with pytest.raises(ValueError, match=f"{message}.*choose another folder"):
            FeatureCacheWriter(tmp_path / held, CacheHeader.from_config(cfg, WEIGHTS, wanted, "bf16"))


def test_a_part_has_one_writer_and_leftovers_go(cfg, tmp_path, leave_part):
    folder = tmp_path / "cache"
    build_cache(cfg, tmp_path / "whole", num_parts=2)
    (shard,) = (tmp_path / "whole").glob("*.safetensors")
    left, others = leave_part(folder / shard.name), leave_part(folder / "others.safetensors")
    with lock(folder / ".part-1.lock", "taken"):
        with pytest.raises(ValueError, match="another process fills part 1"):
            build_cache(cfg, folder, part=1, num_parts=2)
        build_cache(cfg, folder, part=0, num_parts=2)
    assert not left.exists() and others.exists()


def test_ctrl_c_is_one_line(cfg, tmp_path, monkeypatch, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("openworldsam.engine.cache_features.encode", stop)
    with pytest.raises(SystemExit, match="130"):
        command_line(cfg, tmp_path / "cache")
    error = capsys.readouterr().err
    assert error.endswith("stopped; the same command goes on\n") and "KeyboardInterrupt" not in error


def test_numbers_beyond_the_format_are_an_error(cfg, tmp_path):
    writer = FeatureCacheWriter(tmp_path / "cache", CacheHeader.from_config(cfg, {}, "none", "fp16"))
    with pytest.raises(ValueError, match=r"features of 0\.png are not finite in fp16"):
        writer.write("0", [CachedImage(entry(("cat",)), torch.full((1, WIDTH), 1e6))])
    assert not list((tmp_path / "cache").glob("shard-*"))


def test_a_full_disk_leaves_no_half_shard(cfg, tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("openworldsam.data.feature_cache.writer.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        build_cache(cfg, tmp_path / "cache")
    assert contents(tmp_path / "cache").keys() == {"header.json"}


def test_user_errors_are_one_line(cfg, tmp_path, capsys):
    for option, message in (("--part=3", "part 3 of 1"), ("--batch-size=0", "batch size"), ("--verify", "no feature")):
        with pytest.raises(SystemExit, match="2"):
            command_line(cfg, tmp_path / "cache", option)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--config-file", str(tmp_path / "config.yaml"), "--output", ""])
    assert "argument --output: a name is needed, got an empty one" in capsys.readouterr().err


def test_texts_are_all_that_a_visit_can_ask(cfg, referring_cfg):
    for some in (cfg, referring_cfg):
        dataset = training_dataset(some)
        assert isinstance(dataset.mapper, DatasetMapper)
        for record in dataset.records:
            for seed in range(5):
                asked = dataset.mapper(record, np.random.default_rng(seed))["prompts"]
                assert set(asked) <= set(dataset.mapper.texts(record))
