"""Metrics: accumulators of plain counts, equal to the reference tools; `merged` adds them up over processes."""

from openworldsam.evaluation.metrics.absent import AbsentPrompts
from openworldsam.evaluation.metrics.accumulator import Accumulator, Metrics, Scores, merged, named
from openworldsam.evaluation.metrics.instance import InstanceAP, MasksAndBoxes
from openworldsam.evaluation.metrics.panoptic import PanopticQuality
from openworldsam.evaluation.metrics.referring import ReferringScores
from openworldsam.evaluation.metrics.semantic import SemanticScores

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
