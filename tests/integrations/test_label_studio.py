"""Label Studio's own server of backends serves ours; requests are those that Label Studio sends."""

import re
from pathlib import Path

import pytest
from PIL import Image

api = pytest.importorskip("label_studio_ml.api")

import flask  # noqa: E402

import openworldsam  # noqa: E402
from openworldsam.annotate.label_studio import pack_mask  # noqa: E402
from openworldsam.integrations.label_studio import backend  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs/ecosystem.md"
CONFIG = """<View><Image name="picture" value="$photo"/>
<KeyPointLabels name="point" toName="picture" smart="true"><Label value="cat"/></KeyPointLabels>
<RectangleLabels name="box" toName="picture" smart="true"><Label value="cat"/></RectangleLabels>
<BrushLabels name="mask" toName="picture"><Label value="cat"/><Label value="grass"/></BrushLabels></View>"""


@pytest.fixture
def client(predictor, photograph, tmp_path, monkeypatch):
    """A client of the server; the folder that Label Studio serves images from has the photograph "a b.png"."""
    io = pytest.importorskip("label_studio_tools.core.utils.io")
    monkeypatch.setattr(io, "LOCAL_FILES_DOCUMENT_ROOT", str(tmp_path))
    Image.open(photograph).save(tmp_path / "a b.png")
    monkeypatch.setattr(api._manager, "_current_model", None)
    app = api.init_app(backend(predictor, nms_threshold=0.9), model_dir=str(tmp_path / "models"))
    return app.test_client()


@pytest.fixture
def ask(client):
    """Send tasks with images of these names; returns their predictions."""

    def post(*names, context=None, config=CONFIG):
        project = {"project": "1.1700000000"}
        assert client.get("/health").json["status"] == "UP"
        assert client.post("/setup", json={**project, "schema": config}).status_code == 200
        tasks = [{"id": n, "data": {"photo": f"/data/local-files/?d={name}"}} for n, name in enumerate(names)]
        params = {"login": None, "password": None, "context": context}
        body = {"tasks": tasks, **project, "label_config": config, "params": params}
        answer = client.post("/predict", json=body)
        return answer.json["results"] if answer.status_code == 200 else answer

    return post


def test_health_setup_and_predictions_by_text(ask, predictor, photograph):
    """A missing image has no regions, and takes no other with it."""
    found, missing, again = ask("a%20b.png", "nothing.png", "a%20b.png")
    expected = predictor(photograph, ["cat", "grass"], nms_threshold=0.9)
    assert missing["result"] == [] and missing["score"] == 0 and again == found
    assert len(found["result"]) == len(expected) > 0 and found["model_version"] == "openworldsam"
    assert found["score"] == pytest.approx(expected.scores.max())
    for region, (mask, _, score, prompt) in zip(found["result"], expected, strict=True):
        assert region["value"] == {"format": "rle", "rle": pack_mask(mask), "brushlabels": [prompt]}
        assert (region["from_name"], region["to_name"], region["type"]) == ("mask", "picture", "brushlabels")
        assert (region["original_width"], region["original_height"]) == (451, 300)
        assert region["score"] == pytest.approx(score)
    assert len({region["id"] for region in found["result"]}) == len(found["result"])


def test_the_snippet_of_the_page_serves_and_its_configuration_has_the_labels(predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(openworldsam, "OpenWorldSAMPredictor", lambda name: predictor)
    monkeypatch.setattr(api._manager, "_current_model", None)
    served = []
    monkeypatch.setattr(flask.Flask, "run", lambda app, port: served.append((app, port)))
    page = PAGE.read_text()
    (snippet,) = (block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "label_studio" in block)
    (config,) = re.findall(r"^```xml\n(.*?)^```", page, re.M | re.S)
    exec(snippet, {})
    ((app, port),) = served
    client = app.test_client()
    assert port == 9090 and client.get("/health").json["status"] == "UP"
    assert client.post("/setup", json={"project": "1.1700000000", "schema": config}).status_code == 200


def drawn(kind, is_positive=1, **value):
    size = {"original_width": 451, "original_height": 300}
    return {"type": kind, "is_positive": is_positive, **size, "value": {**value, kind: ["cat"]}}


POINT = drawn("keypointlabels", x=50, y=25, width=0.3)
NEGATIVE = drawn("keypointlabels", 0, x=100, y=100, width=0.3)
BOX = drawn("rectanglelabels", x=10, y=20, width=90, height=50)


@pytest.mark.parametrize(
    ("items", "click"),
    [
        ([POINT], {"points": [(225.5, 75)]}),
        ([POINT, NEGATIVE], {"points": [(225.5, 75), (450, 299)], "labels": [1, 0]}),
        ([BOX], {"box": [45.1, 60, 451, 210]}),
        (
            [{"type": "brushlabels"}, BOX, NEGATIVE],
            {"points": [(450, 299)], "labels": [0], "box": [45.1, 60, 451, 210]},
        ),
    ],
)
def test_a_smart_tool_is_answered_by_a_click(ask, predictor, photograph, items, click):
    (found,) = ask("a%20b.png", context={"result": items})
    (region,) = found["result"]
    (expected,) = predictor.click(**click, image=photograph)
    assert region["value"] == {"format": "rle", "rle": pack_mask(expected.mask), "brushlabels": ["cat"]}
    assert (region["from_name"], region["score"]) == ("mask", pytest.approx(expected.score))


def test_a_configuration_without_brush_labels_is_an_error(ask):
    answer = ask("a%20b.png", config=CONFIG.replace("BrushLabels", "PolygonLabels"))
    assert answer.status_code == 500 and b"needs <BrushLabels> of an <Image>" in answer.data
