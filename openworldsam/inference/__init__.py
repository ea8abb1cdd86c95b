"""From mask logits and scores to results: one pure function per task."""

from openworldsam.inference.instance import InstanceResult, instance_inference
from openworldsam.inference.options import InferenceOptions
from openworldsam.inference.panoptic import PanopticResult, Segment, panoptic_inference
from openworldsam.inference.referring import ReferringResult, referring_inference
from openworldsam.inference.refine import refine
from openworldsam.inference.rows import MaskRows
from openworldsam.inference.semantic import SemanticMerge, semantic_inference, semantic_scores
from openworldsam.inference.streaming import join_rows, useful_rows

__all__ = [
    "InferenceOptions",
    "InstanceResult",
    "MaskRows",
    "PanopticResult",
    "ReferringResult",
    "Segment",
    "SemanticMerge",
    "instance_inference",
    "join_rows",
    "panoptic_inference",
    "referring_inference",
    "refine",
    "semantic_inference",
    "semantic_scores",
    "useful_rows",
]
