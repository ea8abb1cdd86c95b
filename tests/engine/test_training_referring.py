"""RefCOCOg through the training loop: from scratch, from a feature cache, and from an adapter trained on COCO."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from trainings import Losses, make_dataset, register, trained

from openworldsam import cli
from openworldsam.checkpoint import convert_released, read_weights
from openworldsam.config import load_config
from openworldsam.engine.cache_features import build_cache
from openworldsam.engine.checks import check_training
from openworldsam.engine.trainer import Trainer

main = cli.command("train")

ROOT = Path(__file__).parents[2]


def write_refcocog(root, images, annotations):
    """Put expressions where the catalog looks for RefCOCOg's training split."""
    (root / "coco/annotations").mkdir(parents=True)
    content = {"images": images, "annotations": annotations}
    (root / "coco/annotations/refcocog_umd_train.json").write_text(json.dumps(content))


def make_referring(root, num_images=5):
    """Pictures of up to three coloured squares, each with up to three sentences."""
    (root / "coco/train2017").mkdir(parents=True)
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(num_images):
        picture = generator.integers(0, 60, (48, 60, 3)).astype(np.uint8)
        for index, (colour, left) in enumerate([("red", 4), ("green", 24), ("blue", 42)][image_id % 3 :]):
            top, side = 8 + 4 * index, 14
            picture[top : top + side, left : left + side, ("red", "green", "blue").index(colour)] += 150
            corners = [left, top, left + side, top, left + side, top + side, left, top + side]
            sentences = [f"the {colour} square", f"A {colour} thing", colour][: 1 + (image_id + index) % 3]
            annotations.append(
                {
                    "id": len(annotations), "image_id": image_id, "category_id": 1, "bbox": [left, top, side, side],
                    "segmentation": [corners], "sentences": sentences,
                }
            )  # fmt: skip
        Image.fromarray(picture).save(root / f"coco/train2017/{image_id:012d}.jpg")
        images.append({"id": image_id, "height": 48, "width": 60})
    write_refcocog(root, images, annotations)


@pytest.fixture(scope="module")
def encoders(tiny_weights, tmp_path_factory):
    """The tiny encoders in files of their own, as they are for download."""
    return convert_released(tiny_weights / "model_final.pth", tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def config(encoders, tiny_weights):
    """Write a published training config for the tiny model; what it says of weights and folders stays."""
    tiny = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text())["MODEL"]
    del tiny["WEIGHTS"]
    tiny["SAM2"]["WEIGHTS"] = str(encoders["sam2"])
    tiny["PROMPT_ENCODER"] |= {"WEIGHTS": str(encoders["beit3"]), "TOKENIZER": str(tiny_weights / "beit3.spm")}
    solver = {"IMS_PER_BATCH": 2, "MAX_ITER": 6, "STEPS": [4], "CHECKPOINT_PERIOD": 3, "LOG_PERIOD": 1}

    def write(published, **more):
        content = {"_BASE_": str(ROOT / "configs" / published), "VERSION": 2, "MODEL": tiny, "SOLVER": solver}
        content |= {"DATALOADER": {"NUM_WORKERS": 0}, **more}
        path = Path(published.replace("/", "_"))
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to work in, whose `datasets` is where data is looked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    return tmp_path


@pytest.fixture
def refcocog(workplace):
    make_referring(workplace / "datasets")
    return workplace / "datasets"


def losses_of(cfg):
    losses = Losses()
    trained(cfg, hooks=[losses])
    return losses.values


def changed(path, *opts):
    cfg = load_config(path, [*opts, "SOLVER.BASE_LR", 0.001, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0])
    check_training(cfg)
    return cfg


@pytest.fixture
def coco_adapter(workplace, config):
    """Train on classes as configs/coco/openworldsam.yaml says; returns the adapter's tensors."""
    folder = make_dataset(workplace / f"classes_{workplace.name}")
    path = config("coco/openworldsam.yaml", DATASETS={"TRAIN": [register(folder)]})
    main(["--config-file", path, "SOLVER.BASE_LR", "0.001"])
    return read_weights(workplace / "output/coco/adapter.safetensors")


def test_fine_tuning_starts_from_the_coco_adapter(coco_adapter, refcocog, config, workplace):
    """The two commands of the published configs, one after the other."""
    path = config("refcocog/openworldsam.yaml")
    trainer = Trainer(load_config(path))
    assert trainer.sources["adapter"].fingerprint == coco_adapter.source("adapter").fingerprint
    learned = coco_adapter.components["adapter"]
    own = {f"adapter.{name}": tensor for name, tensor in trainer.model.adapter.state_dict().items()}
    torch.testing.assert_close(own, learned, rtol=0, atol=0)
    main(["--config-file", path])
    tuned = read_weights(workplace / "output/refcocog/adapter.safetensors")
    moved = {name: (tuned.components["adapter"][name] - learned[name]).abs().max().item() for name in learned}
    assert 0 < max(moved.values()) < 1e-4  # six steps of 1e-5
    for component in ("sam2", "beit3"):
        assert tuned.metadata[component] == coco_adapter.metadata[component]


def test_fine_tuning_without_the_coco_adapter_is_an_error(exit_status, refcocog, config, capsys):
    assert exit_status(main, "--config-file", config("refcocog/openworldsam.yaml")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "output/coco/adapter.safetensors" in line


def test_expressions_from_a_cache_give_the_losses_without_it(coco_adapter, refcocog, config, workplace):
    path = config("refcocog/openworldsam.yaml")
    plain = losses_of(changed(path, "OUTPUT_DIR", "plain"))
    assert len(plain) == 6 and len(set(plain)) == 6
    annotations = json.loads((refcocog / "coco/annotations/refcocog_umd_train.json").read_text())["annotations"]
    for image_features in ("none", "all"):
        cfg = changed(path, "OUTPUT_DIR", f"cached_{image_features}")
        cache = workplace / f"cache_{image_features}"
        summary = build_cache(cfg, cache, image_features=image_features, dtype="fp32")
        assert summary.prompts == len({(a["image_id"], s.lower()) for a in annotations for s in a["sentences"]})
        cfg.DATASETS.FEATURE_CACHE = str(cache)
        cfg.MODEL.PROMPT_ENCODER.WEIGHTS = ""
        assert losses_of(cfg) == pytest.approx(plain, rel=1e-5)


@pytest.fixture
def real_expressions(shared, workplace):
    """Real images, objects and sentences."""
    sample, images, annotations = shared / "data/refcocog_sample", {}, []
    for index, o in enumerate(json.loads((sample / "expressions.json").read_text())):
        images[o["image_id"]] = {"id": o["image_id"], "height": o["height"], "width": o["width"]}
        annotations.append({**o, "id": index, "sentences": [o["sentence"]]})
    write_refcocog(workplace / "datasets", list(images.values()), annotations)
    (workplace / "datasets/coco/train2017").symlink_to(sample / "images")


def test_training_on_real_expressions_lowers_the_loss(real_expressions, config):
    opts = ["MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 24, "SOLVER.STEPS", [], "MODEL.ADAPTER.DROPOUT", 0.0]
    losses = losses_of(changed(config("refcocog/openworldsam.yaml"), *opts))
    assert sum(losses[-6:]) < 0.85 * sum(losses[:6])
