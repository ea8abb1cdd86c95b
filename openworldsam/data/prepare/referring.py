"""Json files of the referring datasets, from their published references and COCO's `instances.json`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from openworldsam.data.datasets.referring import REFERRING, Counts
from openworldsam.data.prepare.plan import Plan, refuse_or_warn
from openworldsam.data.records.coco_json import by_id, flag, lack
from openworldsam.data.records.referring import image_name, plain_sentences
from openworldsam.data.records.rle import Segmentation, encode_mask, union_mask
from openworldsam.utils.files import read_json, regular_file, save_json
from openworldsam.utils.launch import say

NO_TARGET = -1
"""gRefCOCO's only ann_id of an expression without a target."""


def make_referring(name: str, plan: Plan, *, refs: Path | None, instances: Path | None) -> None:
    """Make the json files of all splits of a benchmark.

    Args:
        name: of `REFERRING`.
        plan: has the folder of all datasets, and whether other counts than the published ones are an error.
        refs: the published references, if they are elsewhere.
        instances: the file `instances.json`, if it is not beside them.

    Raises:
        OSError, ValueError: a file is missing, damaged, of another format or cannot be written; nothing is written.
    """
    benchmark = REFERRING[name]
    refs = refs or plan.root / benchmark.references
    references = read_refs(refs)
    for split, expected in benchmark.splits.items():
        found = count(references, split)
        if any(wanted is not None and wanted != got for wanted, got in zip(expected, found, strict=True)):
            message = f"{refs}, {split}: {found}; published is {expected}"
            refuse_or_warn(message, f". {_advice(refs)}; fetch them again", plan)
    objects = read_json(instances or refs.parent / "instances.json", _advice(refs))
    generalized = benchmark.generalized
    contents = {split: convert(references, objects, split, generalized=generalized) for split in benchmark.splits}
    for split, content in contents.items():
        target = plan.root / benchmark.json_file(split)
        save_json(target, {"info": {"description": f"{target.stem}, by openworldsam prepare {name}"}, **content})
        sentences = sum(len(annotation["sentences"]) for annotation in content["annotations"])
        kind = "expressions" if generalized else "objects"
        sizes = f"{len(content['images'])} images, {len(content['annotations'])} {kind}, {sentences} sentences"
        say(f"{target}: {sizes}")


def _advice(refs: Path) -> str:
    return f"datasets/README.md says where the files of {refs.parent.name} are"


class _Dtype:
    """NumPy's dtype in a pickle: its constructor's code, such as "i8", and the byte order of its state."""

    def __init__(self, code: str, *flags: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = state[1]


def _number(dtype: _Dtype, data: bytes | str) -> Any:
    """Return a NumPy number as a plain one."""
    known = np.dtype(dtype.order + dtype.code)
    if known.kind not in "biuf":
        raise pickle.UnpicklingError(f"it has a NumPy {known}, which is no number")
    return np.frombuffer(_bytes(data), known)[0].item()


def _bytes(data: bytes | str, encoding: str = "utf-8") -> bytes:
    """Return the bytes that Python 2 called a text, or that Python 3 wrote as one."""
    return data if isinstance(data, bytes) else data.encode(encoding, "surrogateescape")


class _PlainUnpickler(pickle._Unpickler):
    """Reads lists, tuples, dicts, numbers and texts; refuses imports, by which a pickle can run code.

    The functions that make NumPy's numbers are replaced by those above. It is Python's own, since that of C makes room
    for as many objects as a pickle of nine bytes announces.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    del dispatch[pickle.BYTEARRAY8[0]]  # which fills as many bytes

    REPLACED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "scalar"): _number,
        ("numpy._core.multiarray", "scalar"): _number,
        ("_codecs", "encode"): _bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.REPLACED:
            message = f"it asks for {module}.{name}; only lists, dicts, numbers and texts are allowed"
            raise pickle.UnpicklingError(message)
        return self.REPLACED[module, name]


def read_refs(path: str | Path) -> list[dict[str, Any]]:
    """Read published references, a pickle of Python 2 or 3 or a json, without running code from it.

    Returns:
        one dict per reference, with ann_id (of gRefCOCO a list), image_id, split and sentences.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not of plain data, or not a list of references.
    """
    path = regular_file(path, _advice(Path(path)))
    is_json = path.suffix == ".json"
    try:
        with path.open("rb") as file:
            unpickler = _PlainUnpickler(file, encoding="utf-8", errors="surrogateescape")
            refs = json.load(file) if is_json else _with_texts(unpickler.load(), {})
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path} is not trusted or is damaged: {error}. {_advice(path)}") from error
    keys = {"ann_id": list if is_json else int, "image_id": int, "split": str, "sentences": list}
    if not isinstance(refs, list) or not all(
        isinstance(ref, dict) and all(isinstance(ref.get(key), kind) for key, kind in keys.items()) for ref in refs
    ):
        raise ValueError(f"{path} has no references: it is not a list of dicts with {', '.join(sorted(keys))}")
    return refs


def _with_texts(value: Any, done: dict[int, Any]) -> Any:
    """Return plain data with each text of Python 2 that is no UTF-8, and so has surrogates, read as Latin-1.

    done: results by the id of their list or dict, which a pickle of a few bytes may repeat without end.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return _bytes(value).decode("latin-1")
    if not isinstance(value, (list, tuple, dict)):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            found: Any = {_with_texts(key, done): _with_texts(content, done) for key, content in value.items()}
        else:
            found = type(value)(_with_texts(each, done) for each in value)
        done[id(value)] = found
    return done[id(value)]


def convert(
    refs: Sequence[Mapping[str, Any]], instances: Mapping[str, Any], split: str, *, generalized: bool = False
) -> dict[str, Any]:
    """Convert one split to a json like COCO's instances, with "sentences", lower-cased and without blank ones.

    Each object occurs once, with the sentences of all its references; if generalized, each reference, with the union of
    its targets. Images have their names of COCO 2017.

    Args:
        refs: from `read_refs`.
        instances: content of the published instances.json.
        split: such as "train" or "testA".
        generalized: ann_id is a list, [-1] for no target.

    Raises:
        ValueError: instances.json is in another format or lacks an object or image of the references.
    """
    chosen = [ref for ref in refs if ref["split"] == split]
    try:
        objects = {annotation["id"]: annotation for annotation in instances["annotations"]}
        targets = {i for ref in chosen for i in (_targets(ref) if generalized else [ref["ann_id"]])}
        if lacking := targets - objects.keys():
            raise ValueError(f"instances.json lacks {len(lacking)} objects of {split}, such as {min(lacking)}")
        images = by_id(instances["images"])
        annotations = _expressions(chosen, objects, images) if generalized else _objects(chosen, objects)
        shown = [images[i] for i in dict.fromkeys(annotation["image_id"] for annotation in annotations)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the references and instances.json do not fit together: {lack(error)}") from error
    sizes = [{key: image[key] for key in ("id", "height", "width")} for image in shown]
    return {
        "images": [{"file_name": image_name(size["id"]), **size} for size in sizes],
        "annotations": annotations,
        "categories": instances.get("categories", []),
    }


def _objects(refs: Sequence[Mapping[str, Any]], objects: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    sentences: dict[int, list[str]] = {}
    for ref in refs:
        sentences.setdefault(ref["ann_id"], []).extend(plain_sentences(ref["sentences"], ref["ann_id"]))
    kept = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")
    return [{**{key: objects[i][key] for key in kept}, "sentences": texts} for i, texts in sentences.items()]


def _expressions(
    refs: Sequence[Mapping[str, Any]], objects: Mapping[int, Mapping[str, Any]], images: Mapping[Any, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    expressions = []
    for ref in refs:
        parts = [objects[i]["segmentation"] for i in _targets(ref)]
        union: Segmentation = [polygon for part in parts for polygon in part]
        if not all(isinstance(part, list) for part in parts):  # a crowd is an RLE
            size = [images[ref["image_id"]][side] for side in ("height", "width")]
            union = encode_mask(np.any([union_mask(part, *size) for part in parts], axis=0))
        named = {"id": ref["ref_id"], "image_id": ref["image_id"], "ann_ids": _targets(ref), "no_target": not parts}
        sentences = plain_sentences(ref["sentences"], ref["ref_id"])
        expressions.append({**named, "segmentation": union, "sentences": sentences})
    return expressions


def _targets(ref: Mapping[str, Any]) -> list[int]:
    """Return the objects that an expression of gRefCOCO refers to."""
    return [] if flag(ref, "no_target") else [i for i in ref["ann_id"] if i != NO_TARGET]


def count(refs: Iterable[Mapping[str, Any]], split: str) -> Counts:
    """Count a split's images, references and sentences, blank ones included."""
    chosen = [ref for ref in refs if ref["split"] == split]
    images = {ref["image_id"] for ref in chosen}
    return Counts(len(images), len(chosen), sum(len(ref["sentences"]) for ref in chosen))
