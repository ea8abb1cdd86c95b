"""Metrics as accumulators of plain counts, each equal to the reference tool of its task.

Every accumulator has `update` (add one image; raises ValueError for input that cannot be scored and leaves the counts
unchanged), `merge` (add the counts of another one) and `compute`. The result depends neither on the order of the images
nor on how they are split over processes; `merged` sums the counts of all processes.
"""

from openworldsam.evaluation.metrics.absent import AbsentPrompts
from openworldsam.evaluation.metrics.accumulator import Metrics, Scores, merged
from openworldsam.evaluation.metrics.cityscapes import CityscapesAP
from openworldsam.evaluation.metrics.concept import ConceptScores
from openworldsam.evaluation.metrics.instance import InstanceAP, MasksAndBoxes
from openworldsam.evaluation.metrics.panoptic import PanopticQuality
from openworldsam.evaluation.metrics.referring import GeneralizedReferringScores, ReferringScores
from openworldsam.evaluation.metrics.semantic import SemanticScores

__all__ = [
    "AbsentPrompts",
    "CityscapesAP",
    "ConceptScores",
    "GeneralizedReferringScores",
    "InstanceAP",
    "MasksAndBoxes",
    "Metrics",
    "PanopticQuality",
    "ReferringScores",
    "Scores",
    "SemanticScores",
    "merged",
]
