"""The command `openworldsam` and its subcommands; imports only what parsing needs, so that --help comes at once.

That takes no package: weights/download.py runs where none is installed.

`COMMANDS` names each subcommand's module; its `run(args)` does the work. `tools/*.py` call the same.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from openworldsam.cli import files, research, use
from openworldsam.cli.options import Parser, nearest, stated_overrides
from openworldsam.preflight import check_weights
from openworldsam.utils.launch import print_error, user_errors

COMMANDS = {**use.COMMANDS, **research.COMMANDS, **files.COMMANDS}
GROUPS = {"Use": use.COMMANDS, "Train and evaluate": research.COMMANDS, "Files and machine": files.COMMANDS}


def main(argv: Sequence[str] | None = None) -> None:
    """Run `openworldsam COMMAND ...`; exits with 2 after a user error."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
    elif words[0] in ("-V", "--version"):
        print(f"openworldsam {import_module('openworldsam').__version__}")
    elif words[0] not in COMMANDS:
        near = nearest(words[0], COMMANDS)
        print_error(ValueError(f"there is no command {words[0]}{near}; openworldsam --help lists them"))
        sys.exit(2)
    else:
        run(words[0], words[1:])


def overview() -> str:
    """The text of `openworldsam --help`."""
    lines = ["usage: openworldsam COMMAND [--help] ...", "", "SAM2 segments what a text names."]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<16}{command.summary}" for name, command in commands.items())]
    return "\n".join(
        [
            *lines,
            "",
            "Examples:",
            "  openworldsam segment --scene 152 --output output",
            "  openworldsam download openworldsam_coco beit3_tokenizer",
            '  openworldsam segment --input photo.jpg --prompts "zebra" "grass" --output output',
            "  openworldsam doctor",
        ]
    )


def parse(name: str, argv: Sequence[str] | None = None) -> Any:
    """Parse the words after a subcommand.

    Returns:
        a namespace with the options and `command`, the command line as it can be pasted; where the subcommand takes a
        config, also `opts`, the KEY VALUE pairs, with those that --weights, --threshold and --device stand for.
    """
    command, words = COMMANDS[name], list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog=f"openworldsam {name}", description=command.description, epilog=command.examples)
    command.add(parser)
    try:
        own, overrides = parser.split_overrides(words) if parser.takes_config else (words, [])
    except ValueError as error:
        parser.error(str(error))
    args = parser.parse_args(own)
    args.command = shlex.join(["openworldsam", name, *words])
    if parser.takes_config:
        args.opts = [*stated_overrides(args), *overrides]
    if command.check:
        command.check(parser, args)
    return args


def run(name: str, argv: Sequence[str] | None = None) -> None:
    """Run a subcommand, given the words after it."""
    command = COMMANDS[name]
    module, _, function = command.target.partition(":")
    args = parse(name, argv)
    with user_errors():
        if command.weights and not any(getattr(args, option, False) for option in ("dry_run", "verify")):
            check_weights(args.config, args.opts, training=name in ("train", "cache"))
    getattr(import_module(module), function)(args)


def command(name: str) -> Callable[[Sequence[str] | None], None]:
    """The function of a subcommand, which takes the words after its name."""
    return partial(run, name)


segment, annotate, video, app = map(command, ("segment", "annotate", "video", "app"))
