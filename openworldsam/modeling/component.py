"""The parts of a model that weight files fill, with their names in a file and in the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

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


def renamed(name: str, prefixes: Sequence[tuple[str, str]]) -> str | None:
    """The name with the first prefix that fits replaced; None if none fits."""
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return None


def rename(state: Mapping[str, Tensor], prefixes: Sequence[tuple[str, str]]) -> StateDict:
    """The tensors whose name has one of the prefixes, under their new names."""
    return {new: tensor for name, tensor in state.items() if (new := renamed(name, prefixes)) is not None}
