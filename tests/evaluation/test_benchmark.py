"""Scoring a model on registered datasets: perfect predictions, protocols, what cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from panopticapi.utils import id2rgb
from PIL import Image
from torch import nn

from openworldsam.config import load_config
from openworldsam.data.datasets import register_datasets
from openworldsam.data.datasets.benchmarks import EXPECTED_IMAGES, PROMPT_CAPS, SOFTMAX_CLASSES
from openworldsam.data.datasets.catalog import SEGMENTATION, PanopticFiles, load_records, register_panoptic
from openworldsam.data.datasets.coco import CATEGORIES
from openworldsam.data.records.record import semantic_map
from openworldsam.data.records.rle import encode_mask
from openworldsam.engine.checks import check_evaluation
from openworldsam.evaluation.answer import NO_CLASS, Answer, predicted_answer
from openworldsam.evaluation.benchmark import Benchmark, evaluate
from openworldsam.evaluation.examples import EvaluationDataset, Example, Truth, Unreadable, remark
from openworldsam.evaluation.metrics import AbsentPrompts
from openworldsam.evaluation.prompt_text import READABLE, PromptText
from openworldsam.evaluation.saved import Saving
from openworldsam.evaluation.score import score_concept
from openworldsam.evaluation.summary import remarks, scalars, table
from openworldsam.inference import InferenceOptions, Queries, Question, infer
from openworldsam.inference.nms import mask_boxes

ROOT = Path(__file__).parents[2]
NAMES, IS_THING = ("cat", "dog", "grass", "sky"), (True, True, False, False)


@pytest.fixture
def cfg(tiny_cfg):
    opts = ["DATASETS.SHAPES.SIZE", 64, "DATASETS.SHAPES.THING_SIZE", [10, 40], "TEST.MAX_IMAGES", 4]
    tiny_cfg.merge_from_list([*opts, "DATALOADER.NUM_WORKERS", 0])
    register_datasets(tiny_cfg)
    return tiny_cfg


@pytest.fixture
def coco_sample(shared):
    """Three real COCO images with their panoptic ground truth."""
    folder = shared / "data/coco_panoptic_sample"
    files = PanopticFiles(str(folder / "panoptic.json"), str(folder / "images"), str(folder / "panoptic"))
    register_panoptic("coco_sample", files, CATEGORIES)
    return "coco_sample"


@pytest.fixture
def pictures_on_disk(tmp_path):
    """Registers four pictures: a cat and grass; a dog, a crowd of cats and void; void alone; an unreadable one."""
    generator = np.random.default_rng(0)
    contents = [
        {1: (0, 0), 2: (2, 0)},
        {1: (1, 0), 2: (0, 1)},
        {},
        {1: (0, 0)},
    ]
    records = []
    for index, segments in enumerate(contents):
        ids = np.zeros((20, 24), dtype=np.uint32)
        for id_ in segments:
            ids[8 * id_ - 8 : 8 * id_] = id_
        Image.fromarray(id2rgb(ids)).save(tmp_path / f"{index}_ids.png")
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
        listed = [{"id": i, "category_id": c, "iscrowd": crowd} for i, (c, crowd) in segments.items()]
        plain = {"file_name": str(tmp_path / f"{index}.png"), "image_id": index, "height": 20, "width": 24}
        records.append({**plain, "pan_seg_file_name": str(tmp_path / f"{index}_ids.png"), "segments_info": listed})
    (tmp_path / "3.png").write_bytes(b"nothing")
    name = f"pictures_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(vocabulary=NAMES, is_thing=IS_THING, tasks=SEGMENTATION)
    yield name
    DatasetCatalog.remove(name)


@pytest.fixture
def expressions_on_disk(tmp_path):
    """Registers two pictures with expressions of any number of targets, two without any, and one of an empty mask."""
    left, right = [0, 0, 8, 0, 8, 20, 0, 20], [14, 0, 24, 0, 24, 20, 14, 20]
    masks = {"both": [left, right], "left": [left], "the cat": None, "dot": [[3, 3, 3, 3, 3, 3]], "the dog": None}
    annotations = [{"id": text, "sentences": [text, f"{text} again"], "segmentation": m} for text, m in masks.items()]
    records = []
    for index in range(2):
        file = tmp_path / f"{index}.png"
        Image.fromarray(np.full((20, 24, 3), 99 * index, np.uint8)).save(file)
        plain = {"file_name": str(file), "image_id": index, "height": 20, "width": 24}
        records.append({**plain, "annotations": annotations[2 * index : 2 * index + 3]})
    name = f"expressions_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(vocabulary=(), is_thing=(), tasks=("generalized_referring",))
    yield name
    DatasetCatalog.remove(name)


def perfect(example, is_thing):
    """The prediction that says exactly the ground truth; crowds are left empty."""
    inputs, truth = example
    size = (inputs["height"], inputs["width"])
    segments = [s for s in truth.segments if not s["iscrowd"] and (truth.segment_map == s["id"]).any()]
    panoptic = np.where(np.isin(truth.segment_map, [s["id"] for s in segments]), truth.segment_map, 0)
    things = [s for s in segments if is_thing[s["category_id"]]]
    masks = torch.zeros(len(things), *size, dtype=torch.bool)
    for mask, segment in zip(masks, things, strict=True):
        mask[:] = torch.from_numpy(truth.segment_map == segment["id"])
    return {
        "panoptic_seg": (
            torch.from_numpy(panoptic.astype(np.int32)),
            [{**s, "isthing": is_thing[s["category_id"]]} for s in segments],
        ),
        "instances": Instances(
            size,
            pred_masks=masks,
            pred_boxes=Boxes(mask_boxes(masks)),
            scores=torch.ones(len(masks)),
            pred_classes=torch.tensor([s["category_id"] for s in things], dtype=torch.long),
        ),
        "semantic": torch.from_numpy(semantic_map(truth.segment_map, truth.segments, NO_CLASS)),
        "referring": (torch.from_numpy(np.array(truth.referents).reshape(-1, *size)), torch.ones(len(truth.referents))),
    }


class Oracle(nn.Module):
    """Answers with the ground truth of a dataset, whatever it is asked."""

    def __init__(self, name, **options):
        super().__init__()
        metadata = MetadataCatalog.get(name)
        classes = {"class_names": metadata.vocabulary, "is_thing": metadata.is_thing}
        examples = EvaluationDataset(load_records(name)[:4], **classes, **options)
        readable = [e for e in map(examples.__getitem__, range(len(examples))) if isinstance(e, Example)]
        self.answers = {e.inputs["image_id"]: perfect(e, metadata.is_thing) for e in readable}
        self.asked = []

    def forward(self, batch, tasks, prompt_chunk):
        self.asked.append([x["prompts"] for x in batch])
        keys = [{"panoptic": "panoptic_seg", "instance": "instances"}.get(task, task) for task in tasks]
        return [{key: self.answers[x["image_id"]][key] for key in keys} for x in batch]


BEST = {
    "panoptic": ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"),
    "instance": ("AP", "AP50", "AP75", "AP_box", "AP75_box"),
    "semantic": ("mIoU", "pACC"),
}


@pytest.mark.parametrize("name", ["shapes_val", "shapes_novel_val", "shapes_absent_val", "coco_sample"])
def test_perfect_predictions_of_segments_give_100(cfg, name, request):
    if name == "coco_sample":
        request.getfixturevalue(name)
    cfg.DATASETS.TEST = [name]
    content = evaluate(cfg, Oracle(name))[name]
    for task, metrics in BEST.items():
        assert [content[task][metric] for metric in metrics] == [pytest.approx(100)] * len(metrics), task
    assert content["images"] == (3 if name == "coco_sample" else 4) and content["skipped"] == {}
    assert content.get("absent", {}).get("false_positive_rate") == (0 if name == "shapes_absent_val" else None)
    concept = [100, 100, 1] if name == "shapes_absent_val" else [None] * 3
    found = [content.get("concept", {}).get(metric) for metric in ("cgF1", "pmF1", "IL_MCC")]
    assert found == [value and pytest.approx(value, rel=1e-3) for value in concept]


@pytest.mark.parametrize("sentences", ["first", "all"])
def test_perfect_masks_of_expressions_give_100(cfg, sentences):
    cfg.merge_from_list(["DATASETS.TEST", ["shapes_refer_val"], "TEST.SENTENCES", sentences])
    model = Oracle("shapes_refer_val", sentences=sentences)
    content = evaluate(cfg, model)["shapes_refer_val"]
    assert content.keys() == {"referring", "protocol", "images", "dataset_images", "skipped", "remarks"}
    assert content["referring"]["cIoU"] == content["referring"]["precision@0.9"] == 100
    texts = [record.sentences() for record in load_records("shapes_refer_val")[:4]]
    expected = [[t for own in image for t in (own if sentences == "all" else own[:1])] for image in texts]
    assert model.asked == [[image] for image in expected]


def test_expressions_of_any_number_of_targets(cfg, build, expressions_on_disk):
    cfg.merge_from_list(["DATASETS.TEST", [expressions_on_disk], "TEST.SENTENCES", "all"])
    content = evaluate(cfg, Oracle(expressions_on_disk, sentences="all"))[expressions_on_disk]
    assert content["generalized_referring"] == {
        **dict.fromkeys(("gIoU", "cIoU", "N-acc", "T-acc"), 100),
        **{f"precision@{t}": 100 for t in (0.7, 0.8, 0.9)},
        "per_class": {},
    }
    # the empty mask of an expression with a target is to be noted, that of one without is not
    assert list(content["remarks"].values()) == ["the ground-truth mask is empty of 'dot', 'dot again'"]
    found = {}
    for threshold, right in ((1.0, [True, False]), (0.0, [False, True])):  # the model accepts nothing, or anything
        model = build("MODEL.INFERENCE.SCORE_THRESHOLD", threshold)
        found[threshold] = evaluate(cfg, model)[expressions_on_disk]["generalized_referring"]
        assert [found[threshold][f"{kind}-acc"] == 100 for kind in "NT"] == right
    assert found[1.0]["cIoU"] == 0 and found[0.0]["cIoU"] > 0


def test_absent_phrases_are_scored_wherever_they_are_asked_for(cfg):
    for protocol, expected in (("oracle", None), ("present+absent", 1), ("global", 1)):
        cfg.merge_from_list(["DATASETS.TEST", ["shapes_val"], "TEST.PROTOCOL", protocol])
        content = evaluate(cfg, Oracle("shapes_val"))["shapes_val"]
        assert content.get("concept", {}).get("IL_MCC") == (expected and pytest.approx(expected))
        assert ("absent" in content) == (protocol == "present+absent")


def test_the_units_of_concepts_are_the_things_asked_or_present():
    """A cat that is found, a dog that is not there and is found, a horse that is there and was not asked for."""
    names, things = ("cat", "dog", "horse", "grass"), (True, True, True, False)
    ids = np.repeat(np.array([[1], [2], [3]], dtype=np.int32), 4, axis=1)
    segments = [{"id": i, "category_id": c, "iscrowd": 0} for i, c in ((1, 0), (2, 2))]
    example = Example({"file_name": "a", "prompts": [*names]}, Truth(ids, segments, [1, 3]))
    found = [{"category_id": c, "segmentation": encode_mask(ids == 1), "score": 0.9} for c in (0, 1)]
    benchmark = Benchmark(("concept",), names, things, "present+absent")
    assert benchmark.model_tasks == ("instance",)
    benchmark.update(example, Answer(instance=found))
    cells = {(True, True): 1, (False, True): 1, (True, False): 1}
    assert benchmark.accumulators["concept"].units == cells


def test_negatives_of_custom_data_are_asked_and_scored(cfg, build, tmp_path):
    """Images without objects, and (as in LVIS) with a list of what is not there."""
    Image.new("RGB", (24, 20)).save(tmp_path / "a.png")
    size = {"file_name": "a.png", "height": 20, "width": 24}
    images = [{"id": 1, **size}, {"id": 2, **size}, {"id": 3, "neg_category_ids": [30, 10], **size}]
    square = {"category_id": 20, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]], "bbox": [0, 0, 9, 9], "area": 81}
    annotations = [{"id": i, "image_id": i, **square} for i in (1, 3)]
    categories = [{"id": i, "name": name} for i, name in ((10, "cat"), (20, "dog"), (30, "cow"), (40, "hen"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "all.json").write_text(json.dumps(content))
    name = f"animals_{tmp_path.name}"
    (tmp_path / "own.yaml").write_text(f"name: {name}\nimages: .\ninstances: all.json\n")
    cfg.merge_from_list(["DATASETS.OWN", [str(tmp_path / "own.yaml")], "DATASETS.TEST", [name]])
    register_datasets(cfg)
    units = {}
    for protocol in ("oracle", "present+absent", "global"):
        dataset = EvaluationDataset(
            load_records(name), class_names=[c["name"] for c in categories], is_thing=[True] * 4, protocol=protocol
        )
        units[protocol] = [sorted(dataset[index].truth.absent) for index in range(3)]
        cfg.TEST.PROTOCOL = protocol
        concept = evaluate(cfg, Oracle(name, protocol=protocol))[name].get("concept", {})
        assert concept.get("IL_MCC") == (None if protocol == "oracle" else pytest.approx(1))
    assert units["oracle"] == [[], [], []]
    assert [len(absent) for absent in units["present+absent"]] == [1, 1, 2]
    assert units["global"] == [[0, 2, 3], [0, 1, 2, 3], [0, 2]] and units["present+absent"][2] == [0, 2]
    # of dogs some may have no annotation, so neither a missing nor a further one counts
    images[2] |= {"neg_category_ids": [30], "not_exhaustive_category_ids": [20]}
    (tmp_path / "all.json").write_text(json.dumps(content))
    example = EvaluationDataset(load_records(name), class_names=list("abcd"), is_thing=[True] * 4, protocol="global")[2]
    benchmark = Benchmark(("concept",), list("abcd"), [True] * 4, "global")
    benchmark.update(example, Answer(instance=[]))
    assert benchmark.accumulators["concept"].units == {(False, False): 1}
    saving = Saving(tmp_path / "saved", {})
    whole = evaluate(cfg, Oracle(name, protocol="global"), saving)[name]["concept"]
    folder = tmp_path / f"saved/{name}"
    scores = score_concept([folder / "truth/instances.json"], folder / "prediction/instances.json").scores.overall
    assert scores == {key: value for key, value in whole.items() if key != "per_class"}
    listed = json.loads((folder / "truth/instances.json").read_text())["images"]
    assert [image.get("not_exhaustive_category_ids") for image in listed] == [None, None, [20]]
    images[2]["neg_category_ids"] = [7]
    (tmp_path / "all.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="neg_category_ids of image 3 has 7, none of the known categories"):
        load_records(name)


def test_what_is_wrong_costs(cfg):
    """A class mistaken for another, on half of the images."""
    dataset = EvaluationDataset(load_records("shapes_val")[:4], class_names=NAMES * 5, is_thing=[True] * 20)
    benchmark = Benchmark(("panoptic", "semantic"), NAMES * 5, [True] * 20)
    for index in range(4):
        example = dataset[index]
        answer = perfect(example, [True] * 20)
        if index % 2:
            shifted = [{**s, "category_id": s["category_id"] + 2} for s in answer["panoptic_seg"][1]]
            answer["panoptic_seg"] = (answer["panoptic_seg"][0], shifted)
            answer["semantic"] = answer["semantic"] + 2
        benchmark.update(example, predicted_answer(answer, index))
    scores = benchmark.compute()
    assert scores["panoptic"].overall["PQ"] < 75 and scores["semantic"].overall["pACC"] < 75


def test_protocols_ask_what_they_say(cfg):
    records = load_records("shapes_val")[:6]
    metadata = MetadataCatalog.get("shapes_val")
    classes = {"class_names": metadata.vocabulary, "is_thing": metadata.is_thing}
    oracle, everything, absent = (
        EvaluationDataset(records, **classes, protocol=p) for p in ("oracle", "global", "present+absent")
    )
    draws = set()
    for index in range(6):
        present = set(oracle[index].inputs["class_ids"])
        assert present == {s["category_id"] for s in oracle[index].truth.segments}
        assert everything[index].inputs["prompts"] == metadata.vocabulary
        inputs, truth = absent[index]
        assert not present & set(truth.absent)
        assert set(inputs["class_ids"]) == present | set(truth.absent)
        assert len(truth.absent) == min(len(present), len(metadata.vocabulary) - len(present))
        assert inputs["prompts"] == [metadata.vocabulary[c] for c in inputs["class_ids"]]
        assert inputs["is_thing"] == [metadata.is_thing[c] for c in inputs["class_ids"]]
        assert absent[index].truth.absent == truth.absent
        draws.add(tuple(truth.absent))
    assert len(draws) > 1


def ask(record, index=0, names=NAMES, is_thing=IS_THING, **options):
    """What one record of a dataset is asked."""
    records = [record] * (index + 1)
    return EvaluationDataset(records, class_names=names, is_thing=is_thing, **options)[index]


def test_a_number_of_absent_classes(pictures_on_disk):
    record = load_records(pictures_on_disk)[0]  # a cat and grass
    options = {"protocol": "present+absent", "num_absent": 1}
    inputs, truth = ask(record, **options)
    assert len(truth.absent) == 1 and inputs["class_ids"] == sorted([0, 2, *truth.absent])
    assert ask(record, protocol="present+absent", num_absent=9).truth.absent in ([1, 3], [3, 1])
    assert {ask(record, index, **options).truth.absent[0] for index in range(8)} == {1, 3}


def test_caps_of_the_released_code(pictures_on_disk):
    record = load_records(pictures_on_disk)[0]
    capped = ask(record, cap=1)
    assert len(capped.inputs["prompts"]) == 1 and set(capped.inputs["class_ids"]) < {0, 2}
    assert ask(record, 3, cap=1).inputs["class_ids"] == capped.inputs["class_ids"]  # the same seed for every image
    assert len(capped.truth.segments) == 2  # what is not asked is missed
    assert ask(record, cap=2).inputs["class_ids"] == [0, 2]
    assert len(ask(record, cap=1, protocol="global").inputs["prompts"]) == len(NAMES)


def test_only_the_preset_released_has_caps_and_only_where_the_released_code_has_them(cfg, monkeypatch):
    monkeypatch.setitem(PROMPT_CAPS, "shapes_val", 2)
    for name, preset, expected in (("shapes_val", False, 9), ("shapes_val", True, 2), ("shapes_novel_val", True, 9)):
        cfg.merge_from_list(["DATASETS.TEST", [name], "TEST.PROMPT_CAPS", preset])
        model = Oracle(name)
        evaluate(cfg, model)
        most = max(len(prompts) for batch in model.asked for prompts in batch)
        assert most == 2 if expected == 2 else most > 2
    presets = {p: load_config(ROOT / f"configs/presets/{p}.yaml").TEST.PROMPT_CAPS for p in ("paper", "released")}
    assert presets == {"paper": False, "released": True}


def test_the_softmax_of_the_released_code_counts_background_where_its_data_have_one(cfg, build, monkeypatch):
    """One query of score 1 and probability .2, and one of .3 and .9488: exp(s) - 1 over exp(s) + C, times those."""
    classes = {name: len(MetadataCatalog.get(name).vocabulary) for name in SOFTMAX_CLASSES}
    assert {name: count + 1 for name, count in classes.items()} == SOFTMAX_CLASSES
    assert classes == {"sun_rgbd_37_val": 37, "scannet_40_val": 40}
    monkeypatch.setitem(SOFTMAX_CLASSES, "shapes_val", 77)
    asked, model = [], build()
    monkeypatch.setattr(Question, "of", lambda *a, of=Question.of, **k: asked.append(k["num_classes"]) or of(*a, **k))
    for name in ("shapes_val", "shapes_novel_val"):
        cfg.DATASETS.TEST = [name]
        evaluate(cfg, model)
    assert asked == [77] * 4 + [len(MetadataCatalog.get("shapes_novel_val").vocabulary)] * 4
    probabilities = torch.tensor([0.2, 0.9488])[:, None, None].expand(2, 1, 1)
    queries = Queries(probabilities.logit(), torch.tensor([1.0, 0.3]), torch.arange(2))
    winners = {}
    for preset in ("released", "paper"):
        options = InferenceOptions.from_config(load_config(ROOT / f"configs/presets/{preset}.yaml"))
        for count in (37, 38):
            question = Question.of((1, 1), 2, num_classes=count)
            winners[preset, count] = int(infer([queries], ["semantic"], question, options)["semantic"].map)
    # .2 x 1.71828 / 39.71828 < .9488 x .34986 / 38.34986, but .2 x 1.71828 / 40.71828 > .9488 x .34986 / 39.34986
    assert winners == {("released", 37): 1, ("released", 38): 0, ("paper", 37): 1, ("paper", 38): 1}


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        ([], ["pottedplant", "road, route", "sky"]),
        (["TEMPLATE", "[semantic] {name}"], ["[semantic] pottedplant", "[semantic] road, route", "[semantic] sky"]),
        (["FIRST_SYNONYM", True], ["pottedplant", "road", "sky"]),
        (["READABLE_NAMES", True], ["potted plant", "road, route", "sky"]),
        (
            ["FIRST_SYNONYM", True, "READABLE_NAMES", True, "TEMPLATE", "a {name}."],
            ["a potted plant.", "a road.", "a sky."],
        ),
    ],
)
def test_the_text_of_prompts(tiny_cfg, opts, expected, pictures_on_disk):
    tiny_cfg.merge_from_list([f"TEST.{x}" if isinstance(x, str) and x.isupper() else x for x in opts])
    text, names = PromptText.from_config(tiny_cfg), ["pottedplant", "road, route", "sky"]
    assert [text.of(name) for name in names] == expected
    record = load_records(pictures_on_disk)[0]
    asked = ask(record, names=names, is_thing=[False] * 3, protocol="global", text=text)
    assert asked.inputs["prompts"] == expected


def test_readable_names_are_of_classes_that_there_are():
    benchmarks = [*EXPECTED_IMAGES, "coco_2017_val_panoptic_openworldsam"]
    names = {name for benchmark in benchmarks for name in getattr(MetadataCatalog.get(benchmark), "vocabulary", ())}
    assert READABLE.keys() <= names


def test_the_switches_of_the_prompt_text_reach_the_model(cfg):
    model = Oracle("shapes_val")
    cfg.merge_from_list(["DATASETS.TEST", ["shapes_val"], "TEST.TEMPLATE", "a {name}"])
    evaluate(cfg, model)
    assert all(text.startswith("a ") for batch in model.asked for prompts in batch for text in prompts)


def test_what_is_empty_is_said():
    inputs = {"file_name": "a", "prompts": ["cat"]}
    full, empty = np.ones((2, 2), bool), np.zeros((2, 2), bool)
    assert remark(Example(inputs, Truth(full))) is None
    assert remark(Example(inputs, Truth(empty))) == "the ground truth is empty"
    assert "crowd" in remark(Example({**inputs, "prompts": []}, Truth(full)))
    two = {**inputs, "prompts": ["left", "right"]}
    nothing = np.zeros((0, 0))
    assert remark(Example(two, Truth(nothing, referents=[full, full]))) is None
    assert remark(Example(two, Truth(nothing, referents=[full, empty]))) == "the ground-truth mask is empty of 'right'"


def test_a_class_of_a_crowd_is_neither_present_nor_absent(pictures_on_disk):
    records = load_records(pictures_on_disk)
    dataset = EvaluationDataset(records, class_names=NAMES, is_thing=IS_THING, protocol="present+absent")
    inputs, truth = dataset[1]
    assert inputs["class_ids"][0] == 1 and truth.absent in ([2], [3])


def test_an_absent_thing_is_found_as_an_instance_and_absent_stuff_as_a_segment():
    truth = Truth(np.ones((4, 4), dtype=np.int32), [{"id": 1, "category_id": 2, "iscrowd": 0}], absent=[0, 1, 3])
    benchmark = Benchmark(("absent",), NAMES, IS_THING, "present+absent")
    assert set(benchmark.model_tasks) == {"instance", "panoptic"}
    segments = [{"category_id": 0, "isthing": True}, {"category_id": 3, "isthing": False}]
    example = Example({"file_name": "a", "prompts": [*NAMES]}, truth)
    benchmark.update(example, Answer((np.ones((4, 4)), segments), [{"category_id": 1}]))
    assert benchmark.compute()["absent"].overall["false_positive_rate"] == pytest.approx(200 / 3)
    assert AbsentPrompts().compute().overall["false_positive_rate"] is None


def test_unreadable_images_are_listed_and_images_without_prompts_predict_nothing(cfg, build, pictures_on_disk):
    cfg.DATASETS.TEST = [pictures_on_disk]
    content = evaluate(cfg, build())[pictures_on_disk]
    assert content["images"] == 3
    ((file, reason),) = content["skipped"].items()
    assert file.endswith("3.png") and "not a readable image" in reason
    ((void, said),) = content["remarks"].items()
    assert void.endswith("2.png") and said == "the ground truth is empty, so there are no prompts"
    lines = remarks({pictures_on_disk: content})
    assert [line.split(": ")[1][:20] for line in lines] == ["1 images not scored,", "1 images to be noted"]
    assert content["semantic"]["per_class"]["cat"]["IoU"] is not None
    dataset = EvaluationDataset(load_records(pictures_on_disk), class_names=NAMES, is_thing=IS_THING)
    assert dataset[2].inputs["prompts"] == [] and isinstance(dataset[3], Unreadable)
    perfect_content = evaluate(cfg, Oracle(pictures_on_disk))[pictures_on_disk]
    assert [perfect_content["panoptic"]["PQ"], perfect_content["instance"]["AP"]] == [pytest.approx(100)] * 2


def test_a_metric_over_nothing_is_not_available(cfg, build, pictures_on_disk, tmp_path):
    for index in range(4):
        (tmp_path / f"{index}_ids.png").write_bytes(b"nothing")
    cfg.DATASETS.TEST = [pictures_on_disk]
    results = json.loads(json.dumps(evaluate(cfg, build())))
    content = results[pictures_on_disk]
    assert content["images"] == 0 and len(content["skipped"]) == 4
    assert [content[t][m] for t, m in (("panoptic", "PQ"), ("instance", "AP"), ("semantic", "mIoU"))] == [None] * 3
    assert scalars(results)[pictures_on_disk] == {}
    assert table(results).count("n/a") == 7


def test_batches_and_readers_change_nothing(cfg, build):
    cfg.merge_from_list(["DATASETS.TEST", ["shapes_absent_val", "shapes_refer_val"]])
    model = build()
    plain = evaluate(cfg, model)
    cfg.merge_from_list(["TEST.IMS_PER_BATCH", 3, "DATALOADER.NUM_WORKERS", 2])
    batched = evaluate(cfg, model)
    for name, metrics in scalars(plain).items():
        assert scalars(batched)[name] == pytest.approx(metrics, rel=1e-3)


def test_a_model_keeps_its_mode_and_the_generators_their_state(cfg, build):
    cfg.DATASETS.TEST = ["shapes_val"]
    model = build().train()
    before = torch.get_rng_state()
    evaluate(cfg, model)
    assert model.adapter.training
    torch.testing.assert_close(torch.get_rng_state(), before)


def test_a_prediction_that_cannot_be_scored_names_the_image(cfg):
    dataset = EvaluationDataset(load_records("shapes_val")[:1], class_names=NAMES * 5, is_thing=[True] * 20)
    benchmark = Benchmark(("semantic",), NAMES * 5, [True] * 20)
    with pytest.raises(ValueError, match=r"shapes_val/000000: the prediction is \(3, 3\)"):
        benchmark.update(dataset[0], Answer(semantic=np.zeros((3, 3))))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["DATASETS.TEST", []], "DATASETS.TEST is empty"),
        (["DATASETS.TEST", ["nothing"]], r"unknown datasets \['nothing'\]"),
        (["DATASETS.TEST", ["shapes_train"]], "shapes_train cannot be evaluated"),
        (["TEST.PROTOCOL", "open"], r"TEST\.PROTOCOL is one of .*global"),
        (["TEST.SENTENCES", "last"], r"TEST\.SENTENCES is one of"),
        (["TEST.IMS_PER_BATCH", 0], r"TEST\.IMS_PER_BATCH is 1 or more"),
        (["TEST.MAX_IMAGES", -1], r"TEST\.MAX_IMAGES"),
        (["TEST.PROMPT_CHUNK", -1], r"TEST\.PROMPT_CHUNK"),
        (["TEST.NUM_ABSENT", -1], r"TEST\.NUM_ABSENT"),
        (["TEST.TEMPLATE", "a photo"], r"TEST\.TEMPLATE must contain {name} once"),
    ],
)
def test_what_cannot_be_evaluated_is_named(cfg, opts, message):
    cfg.merge_from_list(["DATASETS.TEST", ["shapes_val"], *opts])
    with pytest.raises(ValueError, match=message):
        check_evaluation(cfg)
