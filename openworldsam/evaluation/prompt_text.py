"""Prompts for classes: their names, adapted by switches of TEST."""

from __future__ import annotations

from typing import NamedTuple

from detectron2.config import CfgNode

READABLE = {
    # PASCAL VOC and Context
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
    "casette recorder": "cassette recorder",
    "fire place": "fireplace",
    "wineglass": "wine glass",
    # SUN RGB-D, ScanNet, BDD10K
    "refridgerator": "refrigerator",
    "otherfurniture": "other furniture",
    "otherprop": "other object",
    "otherstructure": "other structure",
    "polegroup": "group of poles",
    # COCO panoptic
    "floor-wood": "wood floor",
    "playingfield": "playing field",
    "wall-brick": "brick wall",
    "wall-stone": "stone wall",
    "wall-tile": "tile wall",
    "wall-wood": "wood wall",
    "window-blind": "window blind",
}
"""Corrections of class names that benchmarks join, invert or misspell."""

PLACE = "{name}"
"""Place of the name in a template; a config file reads a bare "{}" as an empty dict."""


class PromptText(NamedTuple):
    """The keys TEMPLATE, FIRST_SYNONYM and READABLE_NAMES of TEST; the default is the bare name, as in the paper."""

    template: str = PLACE
    first_synonym: bool = False
    readable_names: bool = False

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PromptText:
        """Read the keys.

        Raises:
            ValueError: the template does not have exactly one place for the name.
        """
        if cfg.TEST.TEMPLATE.count(PLACE) != 1:
            raise ValueError(
                f"TEST.TEMPLATE must contain {PLACE} once, in place of the name; got {cfg.TEST.TEMPLATE!r}"
            )
        return cls(cfg.TEST.TEMPLATE, cfg.TEST.FIRST_SYNONYM, cfg.TEST.READABLE_NAMES)

    def of(self, name: str) -> str:
        """The prompt for a class.

        Args:
            name: of the class; synonyms are separated by commas, as in ADE20K's "road, route".
        """
        if self.first_synonym:
            name = name.split(",")[0].strip()
        if self.readable_names:
            name = READABLE.get(name, name)
        return self.template.replace(PLACE, name)
