"""Components: the parts of a model that weight files fill, with their names in a file and in the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from openworldsam.modeling.adapter import grow_tie_breakers

if TYPE_CHECKING:
    from openworldsam.modeling.prompt_encoders import PromptEncoder

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Component:
    """A part of the model that a weight file fills. The defaults are those of a prompt encoder.

    Args:
        name: in records, file names and messages, such as "sam2".
        prefixes: (public name, name in the model) by prefix; the first that fits counts.
        recognised_by: prefix of public names that only files of this component have.
        layout: name of that file format, for messages and results.
        not_read: regular expression for the start of public names without a place in the model, such as heads.
        hint: what to set `key` to, or how to fetch the file.
        fit: changes a file's tensors in place, named as in the model, to fit those that the model expects.
        advice: describes a file that does not fit, from its tensors under their public names.
        key: the config key that names the file.
        modules: the model's modules that it fills.
    """

    name: str
    prefixes: tuple[tuple[str, str], ...]
    recognised_by: str
    layout: str
    not_read: str = "(?!)"
    hint: str = "to a file that holds them"
    fit: Callable[[StateDict, StateDict], None] = lambda state, expected: None
    advice: Callable[[StateDict], str] = lambda public: ""
    key: str = "MODEL.PROMPT_ENCODER.WEIGHTS"
    modules: tuple[str, ...] = ("prompt_encoder",)


SAM2_VIDEO = (
    "memory_attention.",
    "memory_encoder.",
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
    "mask_downsample.",
)
"""Prefixes of SAM2's tensors for video, for which the image model has no place."""
SAM2_BLOCKS = {12: "tiny", 16: "small", 24: "base_plus", 48: "large"}
"""Public sizes by the number of Hiera's blocks."""


def _sam2_advice(public: StateDict) -> str:
    blocks = {name.split(".")[3] for name in public if name.startswith("image_encoder.trunk.blocks.")}
    name = SAM2_BLOCKS.get(len(blocks), "unknown")
    return (
        f"It holds a Hiera of {len(blocks)} blocks ({name}). The default is large (48 blocks); configs/encoders/ "
        "has the other public sizes."
    )


TIE_BREAKERS = "adapter.tie_breakers"


def _adapter_fit(state: StateDict, expected: StateDict) -> None:
    """Draw the tie-breakers that the model has beyond a file's; where the file has none, there is no distribution."""
    learned, wanted = state.get(TIE_BREAKERS), expected.get(TIE_BREAKERS)
    if learned is None or wanted is None or learned.shape[1:] != wanted.shape[1:] or learned.dtype != wanted.dtype:
        return
    if 0 < len(learned) < len(wanted):
        state[TIE_BREAKERS] = grow_tie_breakers(learned, len(wanted))


def _adapter_advice(public: StateDict) -> str:
    queries = public[TIE_BREAKERS].shape[0] if TIE_BREAKERS in public and public[TIE_BREAKERS].ndim else 0
    layers = {name.split(".")[3] for name in public if name.startswith("adapter.soft_prompt.layers.")}
    keys = f"It wants MODEL.ADAPTER.NUM_TIE_BREAKERS {queries} and MODEL.ADAPTER.NUM_LAYERS {len(layers)}."
    if injected := {name.split(".")[3] for name in public if name.startswith("adapter.image_injection.layers.")}:
        keys = f"{keys[:-1]}, and MODEL.ADAPTER.IMAGE_LAYERS {len(injected)}."
    if queries or layers:
        return keys
    return (
        f"{keys} For EVF-SAM2 as it is, use configs/baselines/evf_sam2.yaml; for its encoders alone, name its file in "
        "MODEL.SAM2.WEIGHTS and MODEL.PROMPT_ENCODER.WEIGHTS."
    )


SAM2 = Component(
    name="sam2",
    prefixes=(
        ("image_encoder.", "image_encoder.backbone."),
        ("no_mem_embed", "image_encoder.no_mem_embed"),
        ("sam_mask_decoder.conv_s", "image_encoder.conv_s"),
        ("sam_mask_decoder.", "mask_decoder.decoder."),
        ("sam_prompt_encoder.", "mask_decoder.prompt_encoder."),
    ),
    recognised_by="image_encoder.trunk.",
    layout="SAM",
    hint="(openworldsam download sam2_hiera_large)",
    advice=_sam2_advice,
    key="MODEL.SAM2.WEIGHTS",
    modules=("image_encoder", "mask_decoder"),
)
ADAPTER = Component(
    name="adapter",
    prefixes=(("adapter.", "adapter."),),
    recognised_by="adapter.",
    layout="adapter",
    hint="to an adapter file",
    fit=_adapter_fit,
    advice=_adapter_advice,
    key="MODEL.WEIGHTS",
    modules=("adapter",),
)


SCORE_HEAD = Component(
    name="score_head",
    prefixes=(("score_head.", "score_head."),),
    recognised_by="score_head.",
    layout="score head",
    hint="to a file that configs/coco/score_released.yaml, say, makes",
    advice=lambda public: f"It wants MODEL.SCORE_HEAD.HIDDEN {len(public.get('score_head.mlp.0.bias', ()))}.",
    key="MODEL.SCORE_HEAD.WEIGHTS",
    modules=("score_head",),
)


def components_with(encoder: PromptEncoder | type[PromptEncoder], *, score_head: bool = False) -> dict[str, Component]:
    """Return the components of a model with this prompt encoder, and a score head or none, by name."""
    declared = [encoder.component] if encoder.component else []
    head = [SCORE_HEAD] if score_head else []
    return {component.name: component for component in (SAM2, *declared, ADAPTER, *head)}


def renamed(name: str, prefixes: Sequence[tuple[str, str]]) -> str | None:
    """Replace the first prefix that fits; None if none fits."""
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None


def rename(state: Mapping[str, Tensor], prefixes: Sequence[tuple[str, str]]) -> StateDict:
    """Select the tensors whose names have one of the prefixes, under their new names."""
    return {new: tensor for name, tensor in state.items() if (new := renamed(name, prefixes)) is not None}
