"""Training data exposure: where a result is not zero-shot, from the provenance of its weights.

Exposure is counted by dataset, whichever split: weights trained on ADE20K's training images have seen ADE20K.
docs/evaluation.md shows the tables.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LABELS, UNKNOWN, NONE_KNOWN = "images and labels", "unknown", "none known"

DATASETS = {
    "COCO": "coco_2017_",
    "RefCOCO": "refcoco_unc_",
    "RefCOCO+": "refcoco_plus_unc_",
    "RefCOCOg": "refcocog_umd_",
    "gRefCOCO": "grefcoco_",
    "ADE20K": "ade20k_",
    "PASCAL VOC": "pascal_voc_",
    "PASCAL Context": "pascal_context_",
    "SUN RGB-D": "sun_rgbd_",
    "ScanNet": "scannet_",
    "Cityscapes": "cityscapes_",
    "BDD10K": "bdd10k_",
    "Shapes": "shapes_",
}
"""Datasets of the benchmarks, with the prefix of the registered names."""

_REFERRING = ("RefCOCO", "RefCOCO+", "RefCOCOg", "gRefCOCO")  # on images of COCO's train2014, which are in train2017

SHARED: dict[str, Mapping[str, str]] = {
    **{name: {} for name in DATASETS},
    "COCO": dict.fromkeys(_REFERRING, "images with class labels"),
    **{name: dict.fromkeys(("COCO", *_REFERRING), "images with expressions") for name in _REFERRING},
    "COCO and Visual Genome captions": dict.fromkeys(("COCO", *_REFERRING), "images with captions"),
    "LLaVA-Instruct": dict.fromkeys(("COCO", *_REFERRING), "images with dialogues"),
    "PASCAL VOC": {"PASCAL Context": "images with other labels"},  # VOC 2010, whose images are in VOC 2012
    "PASCAL Context": {"PASCAL VOC": "images with other labels"},
    "PASCAL-Part": dict.fromkeys(("PASCAL VOC", "PASCAL Context"), "images with labels of parts"),
    **{name: {} for name in ("SA-1B", "SA-V", "licensed videos", "Objects365", "PartImageNet")},
}
"""Exposure of other datasets by training on one. By training data that is not listed it is unknown."""

_WEB = "web images"
_EVF = ("evf-sam2", "evf-sam2-multitask")
_RELEASED = ("model_final", "model_final_refcocog")
_EXPRESSIONS = ("RefCOCO", "RefCOCO+", "RefCOCOg")
_MULTITASK = (*_EXPRESSIONS, "ADE20K", "PASCAL-Part", "Objects365", "PartImageNet", "human-parsing data")
_SIZES = ("tiny", "small", "base_plus", "large")


class Weights(NamedTuple):
    """The training data of a component of public weight files.

    Attributes:
        name: as messages call it.
        component: "sam2", "adapter" or the prompt encoder's; several are joined by " or ".
        files: names of the files, or of their folders, without suffix.
        trained_on: training data; see `SHARED`.
        source: who says so.
    """

    name: str
    component: str
    files: tuple[str, ...]
    trained_on: tuple[str, ...]
    source: str


PUBLIC = (
    Weights(
        "SAM2",
        "sam2",
        (*(f"{version}_hiera_{size}" for version in ("sam2", "sam2.1") for size in _SIZES), *_EVF, *_RELEASED),
        ("SA-1B", "SA-V", "licensed videos"),
        "SAM 2 paper, appendix on training; EVF-SAM issue 47: frozen there",
    ),
    Weights(
        "BEiT-3",
        "beit3",
        ("beit3_base_patch16_224", "beit3_large_patch16_224"),
        (_WEB,),
        "unilm's README: ImageNet-21k, LAION-400M, LAION-2B, COYO-700M, CC15M",
    ),
    Weights(
        "BEiT-3 indomain",
        "beit3",
        ("beit3_large_indomain_patch16_224",),
        (_WEB, "COCO and Visual Genome captions"),
        "unilm's README; unilm issue 1097: COCO's training images only",
    ),
    Weights(
        "BEiT-3 ITC",
        "beit3",
        ("beit3_large_itc_patch16_224",),
        (_WEB, "unnamed image-text pairs"),
        "unilm's README, which does not name the pairs",
    ),
    Weights(
        "EVF-SAM2's BEiT-3",
        "beit3",
        ("evf-sam2",),
        (_WEB, *_EXPRESSIONS),
        "EVF-SAM's README lists more for multitask only; issue 36: starts from BEiT-3",
    ),
    Weights(
        "EVF-SAM2-multitask's BEiT-3",
        "beit3",
        ("evf-sam2-multitask",),
        (_WEB, *_MULTITASK),
        "EVF-SAM issue 45; its README also names COCO",
    ),
    Weights(
        "EVF-SAM2's projector",
        "adapter",
        ("evf-sam2",),
        _EXPRESSIONS,
        "EVF-SAM issue 20: trained with its BEiT-3",
    ),
    Weights(
        "EVF-SAM2-multitask's projector",
        "adapter",
        ("evf-sam2-multitask",),
        _MULTITASK,
        "EVF-SAM issues 20 and 45",
    ),
    Weights(
        "the released BEiT-3 (taken for EVF-SAM2-multitask's)",
        "beit3",
        _RELEASED,
        (_WEB, *_MULTITASK),
        "inferred: the released code starts from that file; the tensors were not compared",
    ),
    Weights(
        "CLIP",
        "clip_text or clip",
        ("clip-vit-large-patch14",),
        (_WEB,),
        "CLIP's paper: 400 million pairs from the web; from memory",
    ),
    Weights(
        "ViLT",
        "vilt",
        ("vilt-b32-mlm",),
        (_WEB, "COCO and Visual Genome captions"),
        "ViLT's paper: also Conceptual Captions and SBU captions; from memory",
    ),
    Weights(
        "SigLIP 2",
        "siglip2",
        ("siglip2-base-patch16-224",),
        (_WEB,),
        "SigLIP 2's paper: WebLI, 10 billion images; from memory",
    ),
    Weights(
        "EVA-CLIP",
        "eva_clip",
        ("eva02_large_patch14_clip_224",),
        (_WEB,),
        "EVA-CLIP's paper: LAION-2B and COYO-700M (Merged-2B); from memory",
    ),
    Weights(
        "CoCa",
        "coca",
        ("CoCa-ViT-L-14-laion2B-s13B-b90k",),
        (_WEB,),
        "its page: LAION-2B; from memory",
    ),
    Weights(
        "Florence-2",
        "florence2",
        ("Florence-2-base",),
        ("FLD-5B",),
        "Florence-2's paper: 126 million images, among them ImageNet-22k, Objects365, Open Images and web images; "
        "from memory",
    ),
    Weights(
        "BLIP-2",
        "blip2",
        ("blip2-itm-vit-g",),
        (_WEB, "COCO and Visual Genome captions"),
        "BLIP-2's paper: 129 million images, LAION-400M, Conceptual Captions and SBU captions among them; from memory",
    ),
    Weights(
        "Kosmos-2",
        "kosmos2",
        ("kosmos-2-patch14-224",),
        (_WEB, "LLaVA-Instruct"),
        "Kosmos-2's paper: GRIT, from LAION-2B and COYO-700M, and LLaVA-Instruct, on COCO's images; from memory",
    ),
    Weights(
        "PaliGemma",
        "paligemma",
        ("paligemma-3b-pt-224",),
        (_WEB,),
        "PaliGemma's page: WebLI, CC3M-35L, VQ2A, Open Images and WIT; from memory",
    ),
    Weights("the released adapter", "adapter", ("model_final",), ("COCO",), "paper, Sec. 4"),
    Weights(
        "the released adapter for RefCOCOg",
        "adapter",
        ("model_final_refcocog",),
        ("COCO", "RefCOCOg"),
        "paper, A.3; the released README trains from scratch",
    ),
)
"""The files of weights/README.md, recognised by their names."""


def exposure(weights: Mapping[str, Mapping[str, Any]], benchmarks: Iterable[str]) -> list[str]:
    """Say which components of a model have seen the datasets of its benchmarks, or that this is unknown.

    Args:
        weights: the `Source` of each component as a dict, from `checkpoint.provenance`; entries may be missing.
        benchmarks: names of datasets. Of Shapes there is nothing to say.
    """
    found = {name: dataset_of(name) for name in benchmarks}
    datasets = [dataset for dataset in DATASETS if dataset in found.values() and dataset != "Shapes"]
    seen: dict[tuple[str, str], list[str]] = defaultdict(list)
    unknown: dict[str, list[str]] = defaultdict(list)
    for component, source in weights.items():
        name, trained_on = _training(component, source)
        shown: dict[str, list[str]] = defaultdict(list)
        for dataset in datasets:
            shown[exposed(trained_on, dataset)].append(dataset)
        for what, which in shown.items():
            if what == UNKNOWN:
                unnamed = ", ".join(each for each in trained_on if each not in SHARED)
                record = ", ".join(filter(None, (name, source.get("file"), source.get("note"))))
                reason = f"{name} was trained on {unnamed}" if unnamed else f"training data not known ({record})"
                unknown[", ".join(which)].append(reason)
            elif what != NONE_KNOWN:
                seen[", ".join(which), what].append(name)
    lines = [
        f"{' and '.join(names)} {'have' if names[1:] else 'has'} seen {which} {what}: not zero-shot"
        for (which, what), names in seen.items()
    ]
    lines += [f"exposure to {which} is unknown: {'; '.join(reasons)}" for which, reasons in unknown.items()]
    if custom := ", ".join(name for name, dataset in found.items() if not dataset):
        lines.append(f"exposure to {custom} is unknown: not a public benchmark")
    return lines


def exposed(trained_on: Sequence[str], dataset: str) -> str:
    """Return what training data shows of a dataset: images and labels, images with others, unknown, or none known."""
    shared = [LABELS if each == dataset else SHARED.get(each, {}).get(dataset, "") for each in trained_on]
    known = LABELS if LABELS in shared else next(filter(None, shared), "")
    return known or (NONE_KNOWN if trained_on and SHARED.keys() >= set(trained_on) else UNKNOWN)


def dataset_of(name: str) -> str:
    """Return the dataset of a registered name; empty for a custom one."""
    return next((dataset for dataset, prefix in DATASETS.items() if name.startswith(prefix)), "")


def _training(component: str, source: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return a component's name for messages and its training data, empty if that is unknown."""
    name = component.replace("_", " ")
    if source.get("trained_on"):
        return f"the {name}", tuple(dataset_of(each) or each for each in source["trained_on"].split(", "))
    file, note = source.get("file", ""), source.get("note", "")
    if split := re.fullmatch(r"from (.+) \(.+\)", note):  # `save_components` wrote it to a file of its own
        file, note = split[1], ""
    for public in PUBLIC:
        if component in public.component.split(" or ") and Path(file).stem in public.files and not note:
            return public.name, public.trained_on
    return name, ()
