"""A new user's session: the commands and programs of every page, pasted into a folder."""

import ast
import json
import re
import xml.etree.ElementTree
from pathlib import Path

import av
import pytest
from PIL import Image
from safetensors import safe_open
from shell import ADDED, NOT_RUN, blocks

ROOT = Path(__file__).parents[2]
PROMISED = {
    "README.md": "output/photo_panoptic.png output/photo_panoptic.json overlay.png my_model/config.json"
    " output/photos/instances.json output/photos/panoptic.json output/photos/label_studio.json output/photos/cvat.xml"
    " output/clip/overlay.mp4 output/clip/tracks.json output/coco/adapter.safetensors output/eval/results.json"
    " output/reef/results.json",
    "datasets/README.md": "output/shapes/results.json output/reef/results.json output/coco/adapter.safetensors",
    "docs/annotate.md": "output/photos/instances.json output/photos/panoptic/0.png output/photos/semantic/1.png"
    " output/annotated/instances.json output/annotated/panoptic.json output/annotated/overlays/scene114.png",
    "docs/app.md": "",
    "docs/evaluation.md": "output/eval/results.json output/eval/report.html output/eval/coco_instances.json"
    " output/eval/cityscapes.json output/two_stage.html output/figure5.html output/evf_sam2/results.json",
    "docs/performance.md": "output/benchmark/shapes/benchmark.json output/benchmark/presets/benchmark.json",
    "docs/python.md": "output/overlay.png output/scene3.png",
    "docs/quickstart.ipynb": "",
    "docs/score.md": "output/shapes/score/score_head.safetensors output/coco/score_released/score_head.safetensors"
    " output/shapes/score_eval/calibration.json output/shapes/score_eval/calibration.png"
    " output/shapes/score_eval/results.json output/shapes/score_eval/report.html output/shapes/eval/results.json"
    " output/shapes/eval/calibration.json output/shapes/eval_global/results.json",
    "docs/training.md": "output/coco/adapter.safetensors output/coco_cached/adapter.safetensors",
    "docs/video.md": "output/clip/overlay.mp4 output/crossing_masks/overlay.mp4 output/crossing_masks/masks/000015.png"
    " output/crossing_memory/tracks.json output/shapes/sam2_video.safetensors",
    "weights/README.md": "output/verify/verify.json",
}
"""The files that each page promises."""
ELSEWHERE = {"docs/ecosystem.md": "needs FiftyOne and Label Studio: tests/integrations"}
BEFORE = {
    "docs/evaluation.md": "openworldsam train --config coco\n"
    "openworldsam evaluate --config coco --weights output/coco/adapter.safetensors --save-predictions"
    " --benchmarks ade20k_847_val --output output/one_stage\n"
    "cp -r output/one_stage output/two_stage"
}
"""Commands whose results a page presupposes."""
AFTER = {
    "docs/python.md": "assert len(stars) == 2 and len(fixed) == len(again) == 1 and len(results) == 2",
    "docs/quickstart.ipynb": "assert sum(isinstance(value, Image.Image) for value in shown) == 4\n"
    "assert {annotation['category_id'] for annotation in shown[-1]} == {1}",
}
"""Checks at the end of a page's program."""
STATUS = {
    "openworldsam check --own": 0,
    "openworldsam check": 1,
    "openworldsam prepare --help": 0,
    "openworldsam prepare coco --check": 1,
    "openworldsam prepare": 2,
}
"""Exit status by the first words, where it is not 0, as the published files are not here."""
KEYS = {
    "photo_panoptic.json": {"info", "images", "annotations", "categories"},
    "instances.json": {"info", "images", "annotations", "categories"},
    "panoptic.json": {"info", "images", "annotations", "categories"},
    "results.json": {"benchmarks", "paper", "preset", "protocol", "score", "missing", "weights", "versions", "command"},
    "tracks.json": {"weights", "not_found"},
    "benchmark.json": {"machine", "records", "configurations"},
    "verify.json": {"layout", "components", "loads", "fusions"},
    "coco_instances.json": {"AP", "AP50", "per_class"},
    "cityscapes.json": {"AP_cityscapes", "per_class"},
}
SAID = {
    "README.md": [r"<Prediction instance, 640 x 480 pixels: ", r"overlay\.mp4  2 frames"],
    "docs/python.md": [r"<Prediction panoptic, \d+ x \d+ pixels: star 2, water 1, circle not found \(best 0\.\d+\)>"],
    "docs/quickstart.ipynb": [r"star 2", r"no mask passed the threshold 0\.99 \(best match score 0\."],
    "weights/README.md": [r"sam2_hiera_large +sam2_hiera_large\.pt "],
}
"""Patterns of the output of a page's commands."""


def cells(notebook):
    """The program of a notebook; `shown` are the values that it shows below its cells."""
    program = ["shown = []"]
    for cell in json.loads(notebook.read_text())["cells"]:
        if cell["cell_type"] == "code":
            body = ast.parse("".join(cell["source"])).body
            program += map(ast.unparse, body)
            if isinstance(body[-1], ast.Expr):
                program[-1] = f"shown.append({program[-1]})"
    return program


def opened(path):
    """Read a file to its end, as its suffix says; returns the content of a json."""
    assert path.stat().st_size
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".mp4":
        with av.open(path) as clip:
            assert [*clip.decode(video=0)]
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            assert file.keys()
    elif path.suffix == ".xml":
        xml.etree.ElementTree.parse(path)
    else:
        assert path.suffix == ".html" and path.read_text().rstrip().endswith("</html>")
    return {}


@pytest.mark.parametrize("page", PROMISED)
def test_the_commands_of_a_page_do_what_it_says(page, shell):
    path = ROOT / page
    for block in blocks(path, "yaml"):
        if "name: reef_val" in block:
            for part in ("val", "train"):
                (shell.folder / f"reef/{part}.yaml").write_text(block.replace("reef_val", f"reef_{part}"))
    for block in [BEFORE.get(page, ""), *blocks(path, "bash")]:
        shell.bash(block)
    program = cells(path) if path.suffix == ".ipynb" else blocks(path, "python")
    if program and page != "docs/annotate.md":  # whose few lines go on from a predictor, and need FiftyOne
        shell.python("\n".join([*program, AFTER.get(page, "")]))
    for ran in shell.ran:
        expected = next((status for start, status in STATUS.items() if ran.line.startswith(start)), 0)
        assert ran.status == expected and "Traceback" not in ran.output, f"{ran.line}: {ran.status}\n{ran.output}"
        assert expected != 2 or ran.output.splitlines()[-1].startswith("error: "), ran.output
    for name in PROMISED[page].split():
        content = opened(shell.folder / name)
        if keys := KEYS.get(Path(name).name):
            assert keys <= content.keys(), f"{name} has {sorted(content)}"
    output = "\n".join(ran.output for ran in shell.ran)
    for pattern in SAID.get(page, []):
        assert re.search(pattern, output, re.DOTALL), output


def test_true_objects_score_100(shell):
    for block in blocks(ROOT / "docs/evaluation.md", "bash"):
        if block.startswith("openworldsam score"):
            shell.bash(block)
    for name, metric in (("coco_instances", "AP"), ("cityscapes", "AP_cityscapes")):
        assert opened(shell.folder / f"output/eval/{name}.json")[metric] == pytest.approx(100)


def test_every_page_is_tried():
    folders = [ROOT / name for name in ("docs", "datasets", "weights")]
    pages = [ROOT / "README.md", *(path for folder in folders for path in folder.glob("*.md"))]
    with_commands = {str(path.relative_to(ROOT)) for path in pages if blocks(path, "bash")}
    with_programs = {str(path.relative_to(ROOT)) for path in pages if blocks(path, "python")}
    assert with_commands | with_programs <= {*PROMISED, *ELSEWHERE}
    scripts = "\n".join(block for page in with_commands for block in blocks(ROOT / page, "bash"))
    assert all(re.search(rf"\b{words}", scripts) for words in [*NOT_RUN, *ADDED])
