"""The public weight layouts, read without a model.

A weight file holds one or more components, kept under their public names until they enter a model:

    sam2      Meta's names: image_encoder.*, sam_mask_decoder.*, sam_prompt_encoder.*, no_mem_embed, video modules
    beit3     Microsoft's names: beit3.*; other prompt encoders: as their `Component` declares
    adapter   our names: adapter.projector.*, adapter.tie_breakers, adapter.soft_prompt.*
    score_head  our names: score_head.*

| file                             | components           | recognised by                                     |
|----------------------------------|----------------------|---------------------------------------------------|
| released OpenWorldSAM checkpoint | sam2, beit3, adapter | visual_model.*, mm_extractor.*, positional_tokens |
| EVF-SAM2 (one file or shards)    | sam2, beit3, adapter | visual_model.*, mm_extractor.*                    |
| SAM2 2.0 or 2.1                  | sam2                 | image_encoder.trunk.*                             |
| BEiT-3                           | beit3                | beit3.*                                           |
| another prompt encoder           | its own              | as it declares                                    |
| adapter file                     | adapter, score_head  | adapter.*                                         |
| score head                       | score_head           | score_head.*                                      |

The adapter of EVF-SAM2 is its projector alone, for a model with neither tie-breakers nor soft-prompt layers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from openworldsam.checkpoint.reading import check_tensor, read_tensors
from openworldsam.modeling.components import ADAPTER, SAM2, SCORE_HEAD, StateDict, rename, renamed
from openworldsam.modeling.prompt_encoders import PROMPT_ENCODER_REGISTRY
from openworldsam.utils.text import shortened

logger = logging.getLogger(__name__)

RELEASED_ADAPTER = (
    ("text_hidden_fcs.0.", "adapter.projector."),
    ("positional_tokens", "adapter.tie_breakers"),
    ("cross_attention_transformer.", "adapter.soft_prompt."),
)
"""(name in the released checkpoint, our name) by prefix; EVF-SAM2 has the first."""
RELEASED_PREFIX = {"sam2": "visual_model.", "beit3": "mm_extractor."}
"""Prefix of a component's public names in the released checkpoint and in EVF-SAM2."""
RELEASED_TRAINING = {
    "preset": "released",
    "PROMPT_ENCODER.NAME": "BEiT3PromptEncoder",
    "ADAPTER.FUSION": "broadcast",
    "ADAPTER.INTERACTION": "image",
    "ADAPTER.KEY_POSITIONS": "False",
    "PROMPT_ENCODER.USE_IMAGE": "True",
}
"""Training settings of the released code, which its checkpoints do not record."""
THRESHOLDS = "thresholds"
"""Entry of a file's metadata with the thresholds of its score head."""
DUPLICATES = "evf_sam2."
"""Prefix of the second copy of both encoders in the released checkpoint."""


@dataclass(frozen=True)
class Source:
    """Origin of one component's weights; recorded in every result and adapter file.

    file: name of the file.
    layout: from the table above.
    fingerprint: of names, shapes and sampled values.
    note: the file's own note about its origin.
    trained_on: training sets of an adapter or score head in their order, joined by ", "; empty if unknown.
    """

    file: str
    layout: str
    fingerprint: str
    note: str = ""
    trained_on: str = ""


@dataclass(frozen=True)
class WeightFile:
    """Content of a weight file: its layout, components under public names, and metadata."""

    path: Path
    layout: str
    components: dict[str, StateDict]
    metadata: dict[str, str]

    def recorded(self, component: str) -> Source | None:
        """Return the origin of an encoder or adapter that these weights were trained with, if the file says so.

        Raises:
            ValueError: the record is damaged.
        """
        if component not in self.metadata:
            return None
        try:
            return Source(**json.loads(self.metadata[component]))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.path}: the record of its {component} weights is damaged ({error})") from None

    @property
    def thresholds(self) -> dict[str, float]:
        """Thresholds of the score head by rule, as `openworldsam calibrate` stored them.

        Raises:
            ValueError: the record is damaged.
        """
        try:
            found = json.loads(self.metadata.get(THRESHOLDS, "{}"))
            return {rule: float(value) for rule, value in found.items() if 0 < float(value) < 1}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{self.path}: the record of its thresholds is damaged ({error})") from None

    def layout_of(self, component: str) -> str:
        """Name the layout of one component, which is a part of `layout` where files of two encoders look alike."""
        encoders = {c.name: c.layout for _, encoder in PROMPT_ENCODER_REGISTRY if (c := encoder.component)}
        own = encoders.get(component, "")
        return own if own in self.layout.split(" or ") else self.layout

    def source(self, component: str) -> Source:
        """Return the origin of one component."""
        trained = component in (ADAPTER.name, SCORE_HEAD.name)
        trained_on = self.metadata.get("trained_on", "") if trained else ""
        found = fingerprint(self.components[component])
        return Source(self.path.name, self.layout_of(component), found, self.metadata.get("note", ""), trained_on)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Identify weights by 16 hex digits: a hash of names, shapes and 16 to 31 values of every tensor."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].flatten()
        sample = values[:: max(1, len(values) // 16)]
        digest.update(f"{name}{tuple(state[name].shape)}".encode())
        digest.update(sample.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_weights(path: str | Path) -> WeightFile:
    """Read a weight file of any layout of the table above.

    Args:
        path: a .pt, .pth, .bin or .safetensors file, the .index.json of a sharded one, or the folder of either.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or its layout is unknown.
    """
    path = Path(path)
    state, metadata = read_tensors(path)
    layout, components = _components(state)
    if layout == "released":
        tuned = ", refcocog_umd_train" if "refcocog" in path.name else ""  # the authors' files are told by their names
        published = {} if "preset" in metadata else {"trained_on": f"coco_2017_train_panoptic_openworldsam{tuned}"}
        metadata = {**RELEASED_TRAINING, **published, **metadata}
    for component in components.values():
        for name, tensor in component.items():
            check_tensor(path, name, tensor)
    if not components:
        names = shortened(", ".join(list(state)[:3]), 200)
        raise ValueError(
            f"{path} is of {layout} layout (its tensors: {names}, ...); weights/README.md lists readable files"
        )
    return WeightFile(path, layout, components, metadata)


def _components(state: StateDict) -> tuple[str, dict[str, StateDict]]:
    """Name the layout and sort the tensors into components under public names."""

    def has(prefix: str | tuple[str, ...]) -> bool:
        return any(name.startswith(prefix) for name in state)

    if has("image_encoder.backbone."):
        return "the model's internal", {}
    if has(ADAPTER.recognised_by):
        head = {name: tensor for name, tensor in state.items() if name.startswith(SCORE_HEAD.recognised_by)}
        rest = {name: tensor for name, tensor in state.items() if name not in head}
        return ADAPTER.layout, {ADAPTER.name: rest} | ({SCORE_HEAD.name: head} if head else {})
    if has(SCORE_HEAD.recognised_by):
        return SCORE_HEAD.layout, {SCORE_HEAD.name: state}
    if has(SAM2.recognised_by):
        version = "2.1" if "no_obj_embed_spatial" in state else "2.0"
        return f"{SAM2.layout} {version}", {SAM2.name: state}
    declared = {c.name: c for _, encoder in PROMPT_ENCODER_REGISTRY if (c := encoder.component)}
    if found := [c for c in declared.values() if has(c.recognised_by)]:
        # files of two encoders may look alike; a model takes the component that its encoder declares
        layout = " or ".join(dict.fromkeys(c.layout for c in found))
        return layout, {c.name: {n: t for n, t in state.items() if not re.match(c.not_read, n)} for c in found}
    state = _as_released(state)
    encoders = {component: rename(state, ((prefix, ""),)) for component, prefix in RELEASED_PREFIX.items()}
    if not all(encoders.values()):
        return "unknown", {}
    layout = "released" if has((DUPLICATES, "positional_tokens")) else "EVF-SAM2"
    others = (DUPLICATES, *RELEASED_PREFIX.values())
    # a tensor that the adapter does not know keeps its name, so that loading can report it
    adapter = {renamed(n, RELEASED_ADAPTER) or n: t for n, t in state.items() if not n.startswith(others)}
    return layout, encoders | ({ADAPTER.name: adapter} if adapter else {})


def _as_released(state: StateDict) -> StateDict:
    """Undo what saving a released or EVF-SAM2 model again does to the names of its tensors.

    A wrapper puts its name before all of them; safetensors stores shared tensors once, under either of their names;
    transformers renames "gamma" to "weight".
    """
    before = ""
    while wrapper := next((w for w in ("model.", "module.") if state and all(n.startswith(w) for n in state)), ""):
        state, before = rename(state, ((wrapper, ""),)), before + wrapper
    copies = rename(state, [(DUPLICATES + prefix, prefix) for prefix in RELEASED_PREFIX.values()])
    if missing := copies.keys() - state.keys():
        logger.info("%d of the encoders' tensors are read from %s%s*", len(missing), before, DUPLICATES)
    state = {**copies, **state}
    return {re.sub(r"(\.memory_encoder\.fuser\.layers\.\d+)\.weight$", r"\1.gamma", n): t for n, t in state.items()}
