"""Which of the paper's numbers a run can be compared with, and why not with the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from detectron2.config import CfgNode, get_cfg

from openworldsam.checkpoint.layouts import Source
from openworldsam.config import add_openworldsam_config, config_value
from openworldsam.data.datasets.benchmarks import EXPECTED_IMAGES
from openworldsam.evaluation.paper_tables import (
    CITYSCAPES_TRAIN,
    OUR_ENCODER,
    PAPER_TABLES,
    Column,
    Number,
    paper_numbers,
)
from openworldsam.modeling.prompt_encoders import prompt_encoder_class

PRESETS = {"paper": ("replace", "prompt"), "released": ("broadcast", "image")}
"""Presets that reproduce the paper's model, with their ADAPTER.FUSION and ADAPTER.INTERACTION."""
TRAINED_ON = "coco_2017_train_panoptic_openworldsam"
"""Training set of the adapter behind all numbers but those of `FINE_TUNED`."""
FINE_TUNED = {"refcocog_umd_val": "refcocog_umd_train"}
"""Benchmarks whose numbers are of an adapter that was then fine-tuned, and on what."""
ROWS = {
    (True, True, False, False): "OpenWorldSAM",
    (True, True, False, True): "+ two-stage inference",
    (False, False, False, False): "E1",
    (True, False, False, False): "E3",
    (True, False, True, False): "E4",
    (True, True, True, False): "E6",
}
"""Row by: tie-breakers, soft-prompt layers, trained prompt encoder, two-stage inference."""
AS_DEFAULT = (
    "INPUT.ANTIALIAS",
    "MODEL.ADAPTER.NUM_HEADS",
    "MODEL.ADAPTER.KEY_POSITIONS",
    "MODEL.ADAPTER.IMAGE_LAYERS",
    "MODEL.INFERENCE.SCORE",
    "MODEL.INFERENCE.SCORE_THRESHOLD",
    "MODEL.INFERENCE.NMS_THRESHOLD",
    "TEST.TEMPLATE",
    "TEST.FIRST_SYNONYM",
    "TEST.READABLE_NAMES",
)
"""Keys beside those of MODEL.SAM2 that have the paper's value by default."""


class Comparison(NamedTuple):
    """A run's place in the paper.

    Attributes:
        row: of the paper's tables; None if there is none.
        tuned_on: dataset on which the adapter was fine-tuned after COCO; empty for none.
        reason: why there is no row.
    """

    row: str | None = None
    tuned_on: str = ""
    reason: str = ""

    def number(self, column: Column, content: Mapping[str, Any]) -> tuple[Number | None, str]:
        """Return the paper's number for a metric, and if there is one that cannot be compared the reason.

        Args:
            column: the benchmark, task and metric.
            content: of the benchmark, see `Benchmark.content`.
        """
        name, images = column[0], content["images"]
        tuning, row = FINE_TUNED.get(name, ""), self.row
        if self.tuned_on == CITYSCAPES_TRAIN and column in PAPER_TABLES[8].columns:
            tuning, row = CITYSCAPES_TRAIN, row and f"{row}, Cityscapes"
        number = paper_numbers(row or "OpenWorldSAM").get(column)
        if number is None or not row:
            return None, self.reason if number else ""
        if self.tuned_on != tuning:
            ours, theirs = (f"fine-tuned on {name}" if name else "trained on COCO" for name in (self.tuned_on, tuning))
            return None, f"the adapter was {ours}, the paper's {theirs}"
        if content["protocol"] != "oracle":
            return None, f"the protocol is {content['protocol']}, the paper's oracle"
        if images != (published := EXPECTED_IMAGES[name]):
            return None, f"{images} of {published} images were scored"
        return number, ""


def comparison(cfg: CfgNode, sources: Mapping[str, Source]) -> Comparison:
    """Find a run's place in the paper, by encoders and their sizes, K, preset, and the origin of the weights.

    Args:
        cfg: of the run.
        sources: of its weights, by component.
    """
    reason = next(_differences(cfg), "") or next(_other_weights(cfg, sources), "")
    if reason:
        return Comparison(reason=reason)
    row = row_of(cfg)
    if not row:
        return Comparison(reason="its tables have no row for these tie-breakers, layers, encoder and stages")
    first, *others = sources["adapter"].trained_on.split(", ")
    if first != TRAINED_ON or len(others) > 1:
        trained_on = sources["adapter"].trained_on or "what its file does not say"
        return Comparison(reason=f"the adapter was trained on {trained_on}, the paper's on {TRAINED_ON} first")
    return Comparison(row, *others)


def row_of(cfg: CfgNode) -> str | None:
    """Return the row of the paper's tables with a config's encoder and switches; None if there is none."""
    adapter, encoder = cfg.MODEL.ADAPTER, cfg.MODEL.PROMPT_ENCODER
    switches = (adapter.NUM_TIE_BREAKERS > 0, adapter.NUM_LAYERS > 0, encoder.TRAINABLE, cfg.MODEL.INFERENCE.TWO_STAGE)
    row = ROWS.get(switches)
    encoder_row = prompt_encoder_class(cfg).paper_row + ("" if encoder.USE_IMAGE else ", text")
    if encoder_row == OUR_ENCODER:
        return row
    return encoder_row if row == "OpenWorldSAM" and encoder_row in PAPER_TABLES[4].rows else None


def _differences(cfg: CfgNode) -> Iterator[str]:
    """Yield what differs from the paper's model."""
    if cfg.PRESET not in PRESETS:
        yield f"preset {cfg.PRESET} is not the paper's model"
        return
    add_openworldsam_config(default := get_cfg())
    encoder = prompt_encoder_class(cfg)
    sizes = {f"MODEL.PROMPT_ENCODER.{key}": (value,) for key, value in encoder.paper_sizes.items()}
    sam2 = [f"MODEL.SAM2.{key}" for key in default.MODEL.SAM2 if key != "WEIGHTS"]
    rules = zip(("FUSION", "INTERACTION"), PRESETS[cfg.PRESET], strict=True)
    allowed = {
        **{key: (config_value(default, key),) for key in (*sam2, *AS_DEFAULT)},
        **sizes,
        **{f"MODEL.ADAPTER.{key}": (default.MODEL.ADAPTER[key], 0) for key in ("NUM_TIE_BREAKERS", "NUM_LAYERS")},
        **{f"MODEL.ADAPTER.{key}": (value,) for key, value in rules},
    }
    for key, values in allowed.items():
        if (found := config_value(cfg, key)) not in values:
            yield f"{key} is {found}, the paper's {values[0]}"


def _other_weights(cfg: CfgNode, sources: Mapping[str, Source]) -> Iterator[str]:
    """Yield what is not the weights of the paper's model."""
    for name, source in sources.items():
        # encoders that were split from a checkpoint, or trained with the adapter, say so
        if source.note and not re.match("from |trained together", source.note):
            yield f"its {name} weights are not the public ones ({source.note})"
        origin = f"{source.layout}, {source.note}"
        if "SAM 2.1" in origin:
            yield "its SAM2 is 2.1, the paper's 2.0"
        if cfg.PRESET == "paper" and name != "adapter" and re.search("EVF-SAM2|released", origin):
            yield f"its {name} weights are those of the released code ({origin}), the paper's are the public ones"
