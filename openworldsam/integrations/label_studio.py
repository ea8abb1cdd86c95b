"""Label Studio: a machine-learning backend that labels tasks by text, and answers clicks and boxes while labelling.

    from label_studio_ml.api import init_app
    from openworldsam import OpenWorldSAMPredictor
    from openworldsam.integrations.label_studio import backend

    init_app(backend(OpenWorldSAMPredictor("released")), model_dir="output/label_studio").run(port=9090)

The labels of the project's <BrushLabels> are the prompts. With <KeyPointLabels smart="true"> or
<RectangleLabels smart="true"> beside them, clicks and a box of the smart tool are answered as by SAM2.

https://labelstud.io/guide/ml_create, https://labelstud.io/guide/ml#Interactive-preannotations
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from label_studio_ml.model import LabelStudioMLBase

from openworldsam.annotate.label_studio import brush_region
from openworldsam.predictor import OpenWorldSAMPredictor, Prediction
from openworldsam.utils.launch import item_error

logger = logging.getLogger(__name__)

SMART = ("keypointlabels", "rectanglelabels")
"""Types of what smart tools draw; the same words are the keys of its label."""


class LabelStudioBackend(LabelStudioMLBase):
    """Backend of a project, which Label Studio's package makes of the class that `backend` returns."""

    predictor: OpenWorldSAMPredictor
    options: Mapping[str, Any]

    def predict(
        self, tasks: Sequence[Mapping[str, Any]], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Return a prediction for each task, without a region for one that fails.

        Args:
            tasks: of Label Studio; their data holds the URL of an image.
            context: of a smart tool; its "result" lists the clicks and boxes drawn so far.

        Raises:
            ValueError: the labeling configuration has no BrushLabels of an Image.
        """
        drawn = [item for item in (context or {}).get("result") or () if item["type"] in SMART]
        tag, control = self._brush()
        predictions = []
        for task in tasks:
            url = task["data"][control["inputs"][0]["value"]]
            try:
                # label-studio-ml 1.0.9 takes the name in such a URL as it stands
                path = self.get_local_path(unquote(url) if "/local-files/?d=" in url else url)
                regions = self._regions(path, tag, control, drawn)
            except Exception as error:
                logger.warning("skipped %s", item_error(error, url))
                regions = []
            score = max((region["score"] for region in regions), default=0.0)
            predictions.append({"model_version": "openworldsam", "score": score, "result": regions})
        return predictions

    def _brush(self) -> tuple[str, Mapping[str, Any]]:
        """Name and content of the control tag of masks."""
        for tag, control in self.parsed_label_config.items():
            if control["type"] == "BrushLabels" and control["inputs"][0]["type"] == "Image":
                return tag, control
        raise ValueError("the labeling configuration needs <BrushLabels> of an <Image>; its labels are the prompts")

    def _regions(
        self, image: str, tag: str, control: Mapping[str, Any], drawn: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        if drawn:
            result = self._pointed_at(image, drawn)
            labels = [drawn[-1]["value"][drawn[-1]["type"]][0]] * len(result)
        else:
            result = self.predictor(image, list(control["labels"]), **self.options)
            labels = [segment.prompt for segment in result]
        return [
            brush_region(f"mask{n}", segment.mask, label, segment.score, tag, control["to_name"][0])
            for n, (segment, label) in enumerate(zip(result, labels, strict=True), start=1)
        ]

    def _pointed_at(self, image: str, drawn: Sequence[Mapping[str, Any]]) -> Prediction:
        """Answer clicks and the last box, which are in percent of the image's size."""
        points, labels, box = [], [], None
        for item in drawn:
            value, width, height = item["value"], item["original_width"], item["original_height"]
            x, y = value["x"] / 100 * width, value["y"] / 100 * height
            if item["type"] == "rectanglelabels":
                right, bottom = x + value["width"] / 100 * width, y + value["height"] / 100 * height
                box = [x, y, min(right, width), min(bottom, height)]
            else:
                points.append((min(x, width - 1), min(y, height - 1)))
                labels.append(int(item.get("is_positive", 1)))
        return self.predictor.click(points, labels, box=box, image=image)


def backend(predictor: OpenWorldSAMPredictor, **options: Any) -> type[LabelStudioBackend]:
    """Make the class that `label_studio_ml.api.init_app` takes; options are those of `predict`."""
    return type("OpenWorldSAM", (LabelStudioBackend,), {"predictor": predictor, "options": options})
