"""`openworldsam score`: correct scores of files of every format, and clear errors."""

import json

import numpy as np
import pytest
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as mask_util

from openworldsam import cli

main = cli.command("score")


SIZE = {"height": 4, "width": 6}
CATEGORIES = [{"id": 17, "name": "cat", "isthing": 1}, {"id": 187, "name": "sky", "isthing": 0}]


@pytest.fixture
def score(tmp_path, exit_status, capsys):
    """Run the tool on files below tmp_path: exit status, content of OUT.json, standard output, standard error."""

    def run(task, *options):
        output = tmp_path / "out/scores.json"
        arguments = [str(tmp_path / o) if not o.startswith("--") and (tmp_path / o).exists() else o for o in options]
        status = exit_status(main, "--task", task, "--output", output, *arguments)
        return status, json.loads(output.read_text()) if output.exists() else None, *capsys.readouterr()

    return run


@pytest.fixture
def fails(score):
    """Run the tool in vain: its one line of standard error."""

    def run(*arguments):
        status, content, out, err = score(*arguments)
        assert (status, content, out) == (2, None, "")
        assert err.count("\n") == 1 and err.startswith("error: ")
        return err

    return run


def write(path, content):
    path.write_text(json.dumps(content))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    write(path, content)


def code(*columns):
    """The mask of some columns of an image, as RLE."""
    mask = np.zeros((4, 6), dtype=np.uint8, order="F")
    mask[:, list(columns)] = 1
    coded = mask_util.encode(mask)
    return {"size": [4, 6], "counts": coded["counts"].decode()}


@pytest.fixture
def panoptic(tmp_path):
    """Cat in columns 0 to 2, sky in 3 to 5; predicted with a column of the cat as sky. Returns the options."""
    for name, ids in (("gt", [1, 1, 1, 2, 2, 2]), ("pred", [70000, 70000, 3, 3, 3, 3])):
        (tmp_path / name).mkdir()
        Image.fromarray(id2rgb(np.repeat([ids], 4, axis=0))).save(tmp_path / name / "5.png")
        segments = [{"id": ids[0], "category_id": 17}, {"id": ids[-1], "category_id": 187}]
        annotation = {"image_id": 5, "file_name": "5.png", "segments_info": segments}
        images = [{"id": 5, "file_name": "5.jpg", **SIZE}]
        write(tmp_path / f"{name}.json", {"images": images, "annotations": [annotation], "categories": CATEGORIES})
    return ["--gt", "gt.json", "--pred", "pred.json"]


def test_panoptic(score, panoptic):
    status, content, out, err = score("panoptic", *panoptic)
    assert (status, err) == (0, "")
    cat, sky = pytest.approx(100 * 2 / 3), pytest.approx(75)
    assert content["per_class"] == {"cat": {"PQ": cat, "SQ": cat, "RQ": 100}, "sky": {"PQ": sky, "SQ": sky, "RQ": 100}}
    assert (content["PQ_th"], content["PQ_st"], content["RQ"]) == (cat, sky, 100)
    assert content["SQ"] == pytest.approx((200 / 3 + 75) / 2)
    assert "PQ_th                        66.67\n" in out
    assert score("panoptic", *panoptic, "--gt-dir", "gt", "--pred-dir", "pred")[1] == content


def test_panoptic_of_void_is_not_available(score, panoptic, tmp_path):
    edit(tmp_path / "gt.json", lambda c: c["annotations"][0].update(segments_info=[]))
    Image.new("RGB", (6, 4)).save(tmp_path / "gt/5.png")
    status, content, out, _ = score("panoptic", *panoptic)
    assert status == 0
    assert content["PQ"] is content["RQ_st"] is content["per_class"]["cat"]["PQ"] is None
    assert out.count("not available") == 9


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pred", lambda c: c["annotations"].clear(), "pred.json has no prediction for 1 images, such as 5"),
        ("pred", lambda c: c.pop("annotations"), "pred.json is no COCO panoptic json: it has no 'annotations'"),
        ("pred", lambda c: c["annotations"][0]["segments_info"].pop(), "image 5: the predicted map has the ids [3]"),
        (
            "pred",
            lambda c: c["annotations"][0]["segments_info"][0].update(category_id=4),
            "image 5: the predicted segment 70000 has the unknown category 4",
        ),
        ("pred", lambda c: c["annotations"][0].update(file_name="6.png"), "pred/6.png not found"),
        ("gt", lambda c: c.pop("categories"), "gt.json is no json of classes: it has no 'categories'"),
        ("gt", lambda c: c["annotations"][0].pop("file_name"), "gt.json is no COCO panoptic json: it has no 'file_n"),
        ("gt", lambda c: c["annotations"].append(c["annotations"][0]), "gt.json: 2 annotations with only 1 id"),
        ("pred", lambda c: c["annotations"].append(c["annotations"][0]), "pred.json: 2 annotations with only"),
        (
            "pred",
            lambda c: c["annotations"][0]["segments_info"][0].update(id="a"),
            "pred.json: the id of a segment is 'a', not a whole number",
        ),
        (
            "gt",
            lambda c: c["annotations"][0]["segments_info"][0].update(category_id=[]),
            "gt.json: the category id of a segment is [], not a whole number",
        ),
        ("gt", lambda c: c["categories"][0].update(id=[]), "gt.json: a category id is [], not a whole number"),
        ("gt", lambda c: c["categories"][0].update(name=None), "gt.json: a category has a name of one line, got None"),
    ],
)
def test_bad_panoptic_files(fails, panoptic, tmp_path, name, change, message):
    edit(tmp_path / f"{name}.json", change)
    assert message in fails("panoptic", *panoptic)


def test_bad_panoptic_images(fails, panoptic, tmp_path):
    Image.new("RGB", (4, 6)).save(tmp_path / "pred/5.png")
    assert "image 5: the predicted map is (6, 4), the ground truth (4, 6)" in fails("panoptic", *panoptic)
    (tmp_path / "pred/5.png").write_bytes((tmp_path / "gt/5.png").read_bytes()[:45])
    assert "pred/5.png is not a readable image" in fails("panoptic", *panoptic)
    (tmp_path / "gt.json").write_text('{"images": [')
    assert "gt.json is not json" in fails("panoptic", *panoptic)


@pytest.fixture
def instances(tmp_path):
    """A cat in each of two images; found in the first, with a mask of 3 of its 4 columns and a perfect box."""
    annotations = [
        {"id": i, "image_id": i, "category_id": 17, "area": 16, "bbox": [0, 0, 4, 4], "segmentation": code(0, 1, 2, 3)}
        for i in (0, 1)
    ]
    truth = {"images": [{"id": i, **SIZE} for i in (0, 1)], "annotations": annotations, "categories": CATEGORIES}
    write(tmp_path / "gt.json", truth)
    result = {"image_id": 0, "category_id": 17, "score": 0.5, "bbox": [0, 0, 4, 4], "segmentation": code(0, 1, 2)}
    write(tmp_path / "pred.json", [result])
    return ["--gt", "gt.json", "--pred", "pred.json"]


def test_the_root_of_roboflow_is_no_class(score, instances, tmp_path):
    expected = score("instance", *instances)[1]
    root = {"id": 0, "name": "cat", "supercategory": "none"}
    edit(tmp_path / "gt.json", lambda c: c["categories"][0].update(supercategory="cat"))
    edit(tmp_path / "gt.json", lambda c: c["categories"].insert(0, root))
    assert score("instance", *instances)[1] == expected


def test_instance(score, instances):
    status, masks, out, err = score("instance", *instances)
    assert (status, err) == (0, "")
    # one of two found: recall up to 50 of 101 points and a bit, six of ten thresholds up to an IoU of 0.75
    assert masks["AP50"] == masks["AP75"] == pytest.approx(100 * 51 / 101)
    assert masks["AP"] == masks["per_class"]["cat"]["AP"] == pytest.approx(60 * 51 / 101)
    assert (masks["AR100"], masks["APm"], masks["per_class"]["sky"]["AP"]) == (pytest.approx(30), None, None)
    assert masks["without_prediction"] == [1]
    assert "without prediction: 1, such as 1" in out
    boxes = score("instance", *instances, "--iou-type", "bbox")[1]
    assert boxes["AP"] == pytest.approx(100 * 51 / 101)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pred", lambda c: c[0].update(image_id=9), "pred.json has 1 images that the ground truth does not list: 9"),
        ("pred", lambda c: c[0].update(category_id=9), "image 0: an instance has the unknown category 9"),
        ("pred", lambda c: c[0].pop("score"), "pred.json is no list of COCO results: it has no 'score'"),
        ("pred", lambda c: c[0].pop("segmentation"), "pred.json is no list of COCO results: it has no 'segmentation'"),
        ("pred", lambda c: c[0]["segmentation"].update(size=[6, 4]), "image 0: a mask has the size [6, 4]"),
        ("gt", lambda c: c["annotations"][1].pop("area"), "gt.json is no COCO json of instances: it has no 'area'"),
        ("gt", lambda c: c["categories"][0].update(name="sky"), "gt.json must name all its classes, each differently"),
        ("gt", lambda c: c["categories"][0].update(name=None), "gt.json must name all its classes, each differently"),
        ("gt", lambda c: c["images"].append(c["images"][0]), "gt.json: two images have the id 0"),
        (
            "gt",
            lambda c: c["images"][1].update(height="4"),
            "gt.json: the height of image 1 is '4', not a whole number",
        ),
        ("gt", lambda c: c["images"][0].update(height=2**40), "gt.json: the height of image 0 is 1099511627776"),
        ("gt", lambda c: c["annotations"][1].update(area="16"), "image 1: area must be a finite number, got '16'"),
        ("gt", lambda c: c["annotations"][1].update(iscrowd="no"), "image 1: iscrowd must be 0 or 1, got 'no'"),
        (
            "pred",
            lambda c: c[0].update(score=float("nan")),
            "image 0: score must be a finite number, got nan",
        ),
        (
            "pred",
            lambda c: c[0].update(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]),
            "image 0: a polygon far outside an im",
        ),
        (
            "pred",
            lambda c: c[0]["segmentation"].update(counts=[0, 16.5, 7.5]),
            "image 0: the runs of a mask must be whole",
        ),
        ("pred", lambda c: c[0]["segmentation"].update(size=4), "image 0: a mask has the size 4"),
    ],
)
def test_bad_instance_files(fails, instances, tmp_path, name, change, message):
    edit(tmp_path / f"{name}.json", change)
    assert message in fails("instance", *instances)


@pytest.mark.parametrize("box", [[0, 0, 4], 3, [0, 0, "4", 4], [0, 0, float("nan"), 4]])
def test_bad_boxes(fails, instances, tmp_path, box):
    edit(tmp_path / "pred.json", lambda c: c[0].update(bbox=box))
    assert "image 0: bbox must be " in fails("instance", *instances, "--iou-type", "bbox")


@pytest.fixture
def phrases(tmp_path):
    """The cat of the first image is found, that of the second is not; sky is in neither and found in the second."""
    cat = {"category_id": 17, "segmentation": code(0, 1), "iscrowd": 0}
    annotations = [{"id": i, "image_id": i, **cat} for i in (0, 1)]
    images = [{"id": i, "neg_category_ids": [187], **SIZE} for i in (0, 1)]
    write(tmp_path / "gt.json", {"images": images, "annotations": annotations, "categories": CATEGORIES})
    found = [(0, 17, 0.5), (1, 187, 0.6), (1, 17, 0.4)]
    results = [{**cat, "image_id": image, "category_id": c, "score": score} for image, c, score in found]
    write(tmp_path / "pred.json", results)
    return ["--gt", "gt.json", "--pred", "pred.json"]


def test_concept(score, phrases, tmp_path):
    status, content, out, err = score("concept", *phrases)
    assert (status, err) == (0, "")
    # image level: one each of true and false positives and negatives
    f1 = 2 * (1 / 1.0001) * (1 / 2.0001) / (1 / 1.0001 + 1 / 2.0001 + 1e-4)
    assert (content["IL_MCC"], content["cgF1"]) == (0, 0)
    assert content["pmF1"] == content["pmF1@0.75"] == pytest.approx(100 * f1)
    assert "pmF1                         66.66\n" in out
    # of the categories that an image is not known to lack it is not asked
    edit(tmp_path / "gt.json", lambda c: c["images"][1].update(neg_category_ids=[]))
    assert score("concept", *phrases)[1]["IL_MCC"] == pytest.approx(0.5)
    edit(tmp_path / "gt.json", lambda c: c["images"][1].update(not_exhaustive_category_ids=[17]))
    assert score("concept", *phrases)[1]["IL_MCC"] == pytest.approx(1)
    # without any such entry, of all
    for change in (lambda image: image.update(neg_category_ids=None), lambda image: image.pop("neg_category_ids")):
        edit(tmp_path / "gt.json", lambda c, change=change: [change(image) for image in c["images"]])
        assert score("concept", *phrases)[1]["IL_MCC"] == pytest.approx(0.5)


def test_as_in_sa_co_images_that_are_not_exhaustively_annotated_are_left_out(score, phrases, tmp_path):
    write(tmp_path / "other.json", json.loads((tmp_path / "gt.json").read_text()))
    edit(tmp_path / "gt.json", lambda c: c["images"][0].update(is_instance_exhaustive=True))
    files = ["--gt", "gt.json", "other.json", "--pred", "pred.json"]
    assert score("concept", *files)[1]["IL_MCC"] == 0
    edit(tmp_path / "other.json", lambda c: c["images"][1].update(is_instance_exhaustive=False))
    assert score("concept", *files)[1]["IL_MCC"] == pytest.approx(1)
    assert score("concept", *files)[1]["pmF1"] == pytest.approx(100, abs=0.1)


def test_concept_of_several_annotators(score, phrases, tmp_path):
    write(tmp_path / "other.json", json.loads((tmp_path / "gt.json").read_text()))
    edit(tmp_path / "other.json", lambda c: c["annotations"].pop())
    assert score("concept", "--gt", "other.json", "gt.json", "--pred", "pred.json")[1]["pmF1"] == pytest.approx(
        100, abs=0.1
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pred", lambda c: c[0].update(category_id=9), "pred.json has the category 9, not among those of gt.json"),
        ("pred", lambda c: c[0].update(image_id=9), "pred.json has 1 images that the ground truth does not list: 9"),
        ("pred", lambda c: c[0].pop("segmentation"), "pred.json is no list of COCO results: it has no 'segmentation'"),
        ("gt", lambda c: c["images"][0].update(neg_category_ids=3), "gt.json is no COCO json of instances: "),
        ("gt", lambda c: c["images"][0].update(neg_category_ids=[3]), "image 0: it has the category 3, not among"),
        ("other", lambda c: c["annotations"][0].update(category_id=3), "image 0: it has the category 3, not among"),
        ("gt", lambda c: c["categories"].append({"id": 17, "name": "dog"}), "gt.json has 3 categories with only 2 ids"),
        ("gt", lambda c: c["images"].pop(0), "gt.json has 1 images that the ground truth does not list: 0"),
        ("other", lambda c: c["images"].append({"id": 2, **SIZE}), "other.json and gt.json list other images"),
    ],
)
def test_bad_concept_files(fails, phrases, tmp_path, name, change, message):
    write(tmp_path / "other.json", json.loads((tmp_path / "gt.json").read_text()))
    edit(tmp_path / f"{name}.json", change)
    assert message in fails("concept", "--gt", "gt.json", "other.json", "--pred", "pred.json")
    assert "--gt takes one file for --task instance, got 2" in fails("instance", "--gt", "a", "b", "--pred", "c")


def test_missing_or_broken_json(fails, instances, tmp_path):
    (tmp_path / "pred.json").write_text('[{"image_id": 1')
    assert "pred.json is not json" in fails("instance", *instances)
    (tmp_path / "pred.json").unlink()
    assert "pred.json" in fails("instance", *instances)
    (tmp_path / "gt.json").unlink()
    assert "gt.json not found" in fails("instance", *instances)


@pytest.fixture
def labels(tmp_path):
    """Two images, one in a subfolder and of 16 bits; one pixel of each is wrong, one ignored."""
    for name, first in (("gt", 0), ("pred", 1)):
        (tmp_path / name / "more").mkdir(parents=True)
        pixels = np.array([[first, 0, 1, 1, 254]])
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / "a.png")
        Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / name / "more/b.png")
    names = "\ufeffwall\nadding machine, totalizer\nnever\n"  # with the mark that Windows writes
    (tmp_path / "names.txt").write_text(names, encoding="utf-8")
    return ["--gt-dir", "gt", "--pred-dir", "pred", "--classes", "names.txt", "--ignore", "254"]


def test_semantic(score, labels):
    status, content, _, err = score("semantic", *labels)
    assert (status, err) == (0, "")
    ious = {name: metrics["IoU"] for name, metrics in content["per_class"].items()}
    assert ious == {"wall": 50, "adding machine, totalizer": pytest.approx(200 / 3), "never": None}
    assert content["mIoU"] == pytest.approx((50 + 200 / 3) / 2)
    assert content["pACC"] == 75
    assert score("semantic", "--gt", "gt", "--pred", "pred", *labels[4:])[1] == content


@pytest.mark.parametrize(
    "classes",
    [
        ["wall", "adding machine, totalizer", "never"],
        {"classes": [{"id": i, "name": name} for i, name in enumerate(("wall", "adding machine, totalizer", "never"))]},
        {"classes": {"2": "never", "0": "wall", "1": "adding machine, totalizer"}},
    ],
)
def test_class_names_as_json(score, labels, tmp_path, classes):
    write(tmp_path / "names.JSON", classes)
    labels[5] = "names.JSON"
    assert list(score("semantic", *labels)[1]["per_class"]) == ["wall", "adding machine, totalizer", "never"]


def test_upper_case_suffixes_and_linked_folders_count(score, labels, tmp_path):
    """Each file counts, whatever the case of its suffix and wherever its folder is."""
    expected = score("semantic", *labels)[1]
    for name in ("gt", "pred"):
        (tmp_path / name / "more/b.png").rename(tmp_path / name / "more/b.PNG")
        (tmp_path / name / "more").rename(tmp_path / f"store_{name}")
        (tmp_path / name / "more").symlink_to(tmp_path / f"store_{name}")
    assert score("semantic", *labels)[1] == expected
    (tmp_path / "pred/more").unlink()
    assert "1 of 2 predictions are missing" in score("semantic", *labels)[3]


@pytest.mark.parametrize(("classes", "void"), [(255, 255), (256, 65_535), (300, 65_535)])
def test_the_void_label_follows_from_the_number_of_classes(score, tmp_path, classes, void):
    (tmp_path / "names.txt").write_text("".join(f"class {c}\n" for c in range(classes)))
    truth = np.array([[0, 0, 254, 255, void]]) if void > 255 else np.array([[0, 0, 254, 254, void]])
    for name, pixels in (("gt", truth), ("pred", np.zeros_like(truth))):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / name / "a.png")
    content = score("semantic", "--gt", "gt", "--pred", "pred", "--classes", "names.txt")[1]
    assert content["mIoU"] == pytest.approx(50 / len(set(truth[0, :4].tolist())))


def test_palette_images_are_labels(score, labels, tmp_path):
    expected = score("semantic", *labels)[1]
    with Image.open(tmp_path / "pred/a.png") as image:
        values = np.asarray(image)
    picture = Image.fromarray(values).convert("P")
    picture.putdata(values.ravel().tolist())
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    picture.save(tmp_path / "pred/a.png")
    assert score("semantic", *labels)[1] == expected


def test_bad_semantic_files(fails, labels, tmp_path):
    assert "gt/a.png: the ground truth has the labels [254]; classes are 0..2, 255" in fails("semantic", *labels[:-2])
    assert "needs --classes" in fails("semantic", *labels[:4])
    write(tmp_path / "names.json", [{"id": 1, "name": "wall"}])
    assert "names.json must have the ids 0, 1, 2" in fails("semantic", *labels[:5], "names.json")
    (tmp_path / "names.txt").write_text("wall\nwall\n")
    assert "names.txt must name all its classes, each differently" in fails("semantic", *labels)
    (tmp_path / "names.txt").write_text("wall\nmachine\n")
    Image.new("L", (3, 2)).save(tmp_path / "pred/a.png")
    assert "gt/a.png: the prediction is (2, 3), the ground truth (1, 5)" in fails("semantic", *labels)
    Image.new("RGB", (5, 1)).save(tmp_path / "pred/a.png")
    assert "pred/a.png is no label image: one channel of whole numbers, got (1, 5, 3)" in fails("semantic", *labels)
    (tmp_path / "pred/a.png").write_bytes(b"no image")
    assert "pred/a.png is not a readable label image" in fails("semantic", *labels)
    (tmp_path / "pred/a.png").unlink()
    assert "1 of 2 predictions are missing, such as " in fails("semantic", *labels)
    assert "has no PNG" in fails("semantic", "--gt-dir", "nowhere", *labels[2:])


@pytest.fixture
def expressions(tmp_path):
    """Three objects, the last without a sentence; the first is half found, the second not at all."""
    annotations = [
        {"id": i, "image_id": 5, "category_id": 1, "sentences": ["a cat"][: i != 12], "segmentation": code(0, 1)}
        for i in (10, 11, 12)
    ]
    write(tmp_path / "gt.json", {"images": [{"id": 5, **SIZE}], "annotations": annotations})
    write(tmp_path / "pred.json", {"annotations": [{"id": 10, "image_id": 5, "segmentation": code(1)}]})
    return ["--gt", "gt.json", "--pred", "pred.json"]


def test_referring(score, expressions, tmp_path):
    status, content, out, _ = score("referring", *expressions)
    assert status == 0
    assert (content["cIoU"], content["mIoU"]) == (25, 25)
    assert (content["precision@0.5"], content["precision@0.6"]) == (50, 0)
    assert (content["without_prediction"], content["per_class"]) == ([11], {})
    assert "without prediction: 1, such as 11" in out
    write(tmp_path / "pred.json", json.loads((tmp_path / "pred.json").read_text())["annotations"])
    assert score("referring", *expressions)[1] == content


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "pred",
            lambda c: c["annotations"][0].update(id=12),
            "pred.json has predictions for 1 unknown ids, such as 12",
        ),
        ("pred", lambda c: c["annotations"].append(c["annotations"][0]), "pred.json: 2 annotations with only 1 ids"),
        ("pred", lambda c: c["annotations"][0].pop("id"), "it has no 'id'"),
        ("pred", lambda c: c["annotations"][0]["segmentation"].update(size=[6, 4]), "pred.json: prediction 10: a mask"),
        ("gt", lambda c: c["annotations"][0].update(segmentation=[]), "gt.json: annotation 10: a segmentation without"),
        ("gt", lambda c: c["annotations"][0].update(segmentation=None), "annotation 10: a segmentation without a poly"),
        ("gt", lambda c: c["annotations"][0].update(no_target="false"), "no_target must be 0 or 1, got 'false'"),
        (
            "gt",
            lambda c: c["annotations"][0]["segmentation"].update(counts=None),
            "annotation 10: the counts of a",
        ),
        ("gt", lambda c: c["annotations"][0].update(segmentation={**code(0), "counts": "08`0P"}), "mask are cut short"),
        ("gt", lambda c: c["images"][0].update(width=0), "gt.json: the width of image 5 is 0, not one of 1 to"),
        ("gt", lambda c: c["annotations"][0].update(image_id=6), "gt.json: its list of images does not have 6"),
        (
            "gt",
            lambda c: (c["images"][0].update(width=65_535, height=65_535), c["annotations"][0].update(no_target=True)),
            "gt.json: annotation 10: a mask has 65535 x 65535 pixels; the limit is 64,000,000",
        ),
    ],
)
def test_bad_referring_files(fails, expressions, tmp_path, name, change, message):
    edit(tmp_path / f"{name}.json", change)
    assert message in fails("referring", *expressions)


def test_generalized_referring(score, expressions, tmp_path):
    """One target is half found, one missed; of the expressions without a target one is said to have one."""
    edit(
        tmp_path / "gt.json",
        lambda c: c["annotations"].extend(
            {"id": i, "image_id": 5, "sentences": ["a dog"], "no_target": True, "segmentation": []} for i in range(4)
        ),
    )
    results = [{"id": 0, "segmentation": code(3)}, {"id": 1, "segmentation": code()}, {"id": 2, "no_target": True}]
    edit(tmp_path / "pred.json", lambda c: c["annotations"].extend(results))
    status, content, *_ = score("generalized_referring", *expressions)
    assert status == 0
    for empty in ([], None):
        edit(tmp_path / "pred.json", lambda c, empty=empty: c["annotations"][2].update(segmentation=empty))
        assert score("generalized_referring", *expressions)[1] == content
    assert content["gIoU"] == pytest.approx(100 * (0.5 + 0 + 0 + 3) / 6)
    assert content["cIoU"] == pytest.approx(100 * 4 / (8 + 8 + 4))
    assert (content["N-acc"], content["T-acc"], content["precision@0.7"]) == (75, 50, 0)
    assert content["without_prediction"] == [11, 3]


def test_files_that_are_not_named_or_cannot_be_written(fails, expressions, tmp_path):
    assert "--task referring needs --gt and --pred" in fails("referring", "--gt", "gt.json")
    (tmp_path / "out").touch()
    assert "out" in fails("referring", *expressions)
