"""Options that several commands share, under the same name and form everywhere."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from openworldsam.utils.launch import print_error

TASKS = ("semantic", "instance", "panoptic", "referring")
DTYPES = ("fp32", "bf16", "fp16")
_KEY = re.compile(r"([A-Z][A-Z0-9_]+)(\.[A-Z0-9_]{2,})+|OUTPUT_DIR|PRESET|SEED")
"""A word that is a config key, or would be if it were spelt right, unless it belongs to an option."""
SECTIONS = ("MODEL", "INPUT", "DATASETS", "DATALOADER", "SOLVER", "TEST")
"""Sections of a config: a key that begins with one, such as MODEL.DEVICE, ends the words of an option."""


class Command(NamedTuple):
    """A subcommand: what it does in a line, "module:function" of its work, and what adds its options.

    `check` may call `parser.error`. With `weights` the command is refused if a weight file of its config is missing.
    """

    summary: str
    target: str
    add: Callable[[Parser], None]
    examples: str = ""
    details: str = ""
    check: Callable[[Parser, argparse.Namespace], None] | None = None
    weights: bool = False

    @property
    def description(self) -> str:
        """The text above the options."""
        return f"{self.summary[:1].upper()}{self.summary[1:]}.\n\n{self.details}".rstrip()


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a line, with the nearest word for an option or choice that does not exist."""

    def __init__(self, *, prog: str, description: str, epilog: str = "") -> None:
        form = argparse.RawDescriptionHelpFormatter
        examples = f"Examples:\n{epilog}" if epilog else None
        super().__init__(prog=prog, description=description, epilog=examples, formatter_class=form)
        self.takes_config = False

    def parse_known_args(self, words: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse words, as `parse_args` and subparsers do; a misspelt option is the first error to be reported."""
        known = self._option_string_actions
        for word in () if self._subparsers else words:
            if (match := re.match(r"--[a-z][\w-]*", word)) and not any(option.startswith(match[0]) for option in known):
                self.error(f"there is no option {match[0]}{nearest(match[0], known)}")
        return super().parse_known_args(words, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += nearest(str(value), map(str, action.choices or ()))
            raise

    def split_overrides(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Split a command line into its own words and the KEY VALUE pairs of a config, which may stand anywhere.

        All words after -o or --opts up to the next option are pairs; elsewhere a key and the next word. A word that an
        option takes, such as a prompt or file, is a key only if the option takes several and it begins with a section.

        Raises:
            ValueError: an option, or nothing, is where the value of a key should be.
        """
        own: list[str] = []
        pairs: list[str] = []
        within = False  # after -o
        takes = 0.0  # words of the option before
        position = 0
        while position < len(words):
            word = words[position]
            if word in ("-o", "--opts"):
                within = True
            elif word.startswith("--"):
                within, takes = False, self._takes(word)
                own.append(word)
            elif within or _is_key(word, takes):
                position += 1
                if position == len(words) or words[position] == "-o" or words[position].startswith("--"):
                    found = words[position] if position < len(words) else "nothing"
                    raise ValueError(f"config key {word} needs a value, got {found}")
                pairs += [word, words[position]]
            else:
                own.append(word)
                takes = max(0, takes - 1)
            position += 1
        return own, pairs

    def _takes(self, option: str) -> float:
        """How many words an option takes after it."""
        known = self._option_string_actions
        action = known.get(option) or next((known[name] for name in known if name.startswith(option)), None)
        if action is None or action.nargs in ("+", "*"):
            return math.inf if action else 0
        return 1 if action.nargs is None else int(action.nargs)

    def error(self, message: str) -> NoReturn:
        """Exit with 2 after one line, as after any other user error."""
        print_error(ValueError(f"{message} ({self.prog} --help)"))
        self.exit(2)


def _is_key(word: str, takes: float) -> bool:
    """Whether a word is a config key if the option before it still takes so many words."""
    if not (match := _KEY.fullmatch(word)) or takes == 0:
        return match is not None
    return takes == math.inf and bool(match[1]) and bool(difflib.get_close_matches(match[1], SECTIONS, 1, cutoff=0.8))


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a word that is unknown: "; did you mean --prompts?", or nothing."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def stated_overrides(args: argparse.Namespace) -> list[str]:
    """The KEY VALUE pairs that --weights, --threshold and --device stand for."""
    pairs: list[str] = []
    if weights := getattr(args, "weights", None):
        pairs += ["MODEL.WEIGHTS", weights]
    if (threshold := getattr(args, "threshold", None)) is not None:  # of whichever score the config ranks by
        match = threshold if float(threshold) else "1e-9"  # 0 stands for the threshold stored with the weights
        pairs += ["MODEL.INFERENCE.SCORE_THRESHOLD", threshold, "MODEL.INFERENCE.MATCH_THRESHOLD", match]
    if device := getattr(args, "device", None):
        pairs += ["MODEL.DEVICE", device]
    return pairs


def add_config(parser: Parser, default: str | None = None, *, choose: str = "") -> None:
    """Add --config, --weights, --device and -o KEY VALUE.

    Args:
        choose: describes the default that the command chooses itself.
    """
    parser.takes_config = True
    add = parser.add_argument
    shown = f" (default: {choose or default})" if choose or default else ""
    names = f'YAML file, saved model, or name such as "released", "shapes", "coco"{shown}'
    required = default is None and not choose
    add("--config", "--config-file", metavar="CONFIG", default=default, required=required, help=names)
    add("--weights", metavar="FILE", help="MODEL.WEIGHTS: a full checkpoint or an adapter")
    add("--device", help="cpu, cuda or mps (default: MODEL.DEVICE, or what this machine has)")
    pairs = "override config keys. A pair may stand alone, after texts and files if it is like MODEL.DEVICE cpu"
    add("-o", "--opts", nargs=2, metavar=("KEY", "VALUE"), help=pairs)


def add_threshold(parser: Parser) -> None:
    """Add --threshold."""
    text = "lowest score of a mask, 0 to 1 (default: the config's)"
    parser.add_argument("--threshold", type=_fraction, metavar="T", help=text)


def add_prompts(parser: Parser, help: str = "texts, or @FILE with one per line", *, required: bool = True) -> None:
    """Add --prompts. Texts are no keys unless they begin with a section: `Parser.split_overrides`."""
    parser.add_argument("--prompts", nargs="+", required=required, metavar="TEXT", help=help)


def add_processes(parser: Parser, default: int | None = 1, help: str = "processes on this machine") -> None:
    """Add --processes."""
    spellings = ("--processes", "--num-gpus", "--num-processes")
    parser.add_argument(*spellings, type=int, default=default, metavar="N", help=help)


def add_output(parser: Parser, help: str = "folder of the results", metavar: str = "DIR") -> None:
    """Add --output."""
    parser.add_argument("--output", required=True, type=given_path, metavar=metavar, help=help)


def given_path(text: str) -> Path:
    """A path; raises ArgumentTypeError for an empty word, as an unset shell variable leaves it."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a name is needed, got an empty one")
    return Path(text)


def _fraction(text: str) -> str:
    """A number from 0 to 1 as the text of a float, as a config takes no 0 or 1 for one; else ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return str(float(text))
    raise argparse.ArgumentTypeError(f"a number from 0 to 1 is needed, got {text}")
