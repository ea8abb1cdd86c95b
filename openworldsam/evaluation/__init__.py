"""Metrics: accumulators of plain counts, equal to the reference tools; `merged` adds them up over processes."""

from openworldsam.evaluation.absent import AbsentPrompts
from openworldsam.evaluation.accumulator import Accumulator, Metrics, Scores, merged, named
from openworldsam.evaluation.instance import InstanceAP, MasksAndBoxes
from openworldsam.evaluation.panoptic import PanopticQuality
from openworldsam.evaluation.referring import ReferringScores
from openworldsam.evaluation.semantic import SemanticScores

__all__ = [
    "AbsentPrompts",
    "Accumulator",
    "InstanceAP",
    "MasksAndBoxes",
    "Metrics",
    "PanopticQuality",
    "ReferringScores",
    "Scores",
    "SemanticScores",
    "merged",
    "named",
]
