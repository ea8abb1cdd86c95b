"""Entry of a command: one process or many, with or without torchrun; user errors in one line.

Torch is imported where processes start: an error on the command line is there to be read before. Importing this module
takes nothing that must be installed, as weights/download.py does without.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from openworldsam.utils.text import PrintableRecord, printable, shortened


def launch(
    main: Callable[..., Any],
    *,
    args: tuple[Any, ...] = (),
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> Any:
    """Run `main(*args)` on every process.

    Under torchrun (RANK and WORLD_SIZE are set) this process is one of them; otherwise `num_gpus` processes are
    started on this machine, which import `main` by name. Without a GPU they communicate by gloo.

    Args:
        num_machines, machine_rank, dist_url: number of machines, this one's number, address of the first.

    Raises:
        ValueError: there are too few GPUs, or several machines have no common address.
    """
    import torch
    import torch.distributed as dist
    from detectron2.engine import launch as spawn
    from detectron2.utils import comm

    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        if num_gpus < 1 or num_machines < 1:
            raise ValueError(f"need at least one process and one machine, got {num_gpus} and {num_machines}")
        if torch.cuda.is_available() and num_gpus > torch.cuda.device_count():
            raise ValueError(f"{num_gpus} processes need a GPU each, but this machine has {torch.cuda.device_count()}")
        if not 0 <= machine_rank < num_machines:
            raise ValueError(f"--machine-rank is 0 to {num_machines - 1}, got {machine_rank}")
        if num_machines > 1 and dist_url == "auto":
            raise ValueError("several machines need --dist-url tcp://FIRST_MACHINE:PORT, the same on all of them")
        if num_gpus * num_machines == 1:
            return main(*args)
        signal.signal(signal.SIGTERM, _end_children)
        return spawn(main, num_gpus, num_machines, machine_rank, dist_url, args)
    if missing := [name for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR") if name not in os.environ]:
        raise ValueError(f"RANK and WORLD_SIZE are set, as by torchrun, but {', '.join(missing)} are not")
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    comm.create_local_process_group(local_size)
    result = main(*args)
    dist.destroy_process_group()  # not after an error: others may wait within a collective
    return result


def _end_children(signum: int, _: object) -> None:
    """Terminate the processes that were started here before this one ends."""
    for child in multiprocessing.active_children():
        child.terminate()
    sys.exit(128 + signum)


def launch_command(main: Callable[..., None], *, stopped: str = "stopped", **where: Any) -> None:
    """`launch(main, **where)` for a command line: a user's error, on whichever process, is one line and exit status 2.

    Args:
        stopped: printed after Ctrl-C; the exit status is then 130.
    """
    from torch.multiprocessing import ProcessExitedException

    with user_errors(stopped):
        try:
            launch(_guarded, **{**where, "args": (main, *where.get("args", ()))})
        except ProcessExitedException as error:  # the process has printed the reason
            sys.exit(error.exit_code)


def _guarded(main: Callable[..., None], *args: Any) -> None:
    with user_errors(stopped=None):
        main(*args)


@contextlib.contextmanager
def user_errors(stopped: str | None = "stopped") -> Iterator[None]:
    """Turn an error that the user can correct into one line on stderr and exit status 2.

    From here on log records are printable, and a character that the terminal or pipe cannot show is escaped.

    Args:
        stopped: printed after Ctrl-C, with exit status 130; None leaves that to the process that started this one.
    """
    logging.setLogRecordFactory(PrintableRecord)
    logging.raiseExceptions = False  # a log on a full disk takes no tracebacks along
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except KeyboardInterrupt:
        if stopped is None:
            raise
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, KeyError, FloatingPointError) as error:
        print_error(error)
        sys.exit(2)


def log_to(folder: Path) -> None:
    """Log to the terminal and to the folder's log.txt; other processes than the first only to a log of their own."""
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from openworldsam.utils.files import output_file

    output_file(folder / "log.txt")  # Detectron2 would wait for a pipe's reader
    setup_logger(str(folder), comm.get_rank(), name="openworldsam")


def print_error(error: Exception) -> None:
    """Print an error to stderr as a user should read it: one line, without a traceback or a class name."""
    say(f"error: {error_text(error)}", file=sys.stderr)


def error_text(error: Exception) -> str:
    """Return what an error says, without a traceback."""
    message = str(error) or type(error).__name__
    if isinstance(error, KeyError) and error.args:
        message = str(error.args[0])
    elif isinstance(error, OSError) and error.filename and error.strerror:  # the system's own words
        lost = isinstance(error, FileExistsError) and not os.path.exists(error.filename)
        message = f"cannot use {error.filename}: {'it is a link to nothing' if lost else error.strerror.lower()}"
    if message.startswith("Caught "):  # raised in a DataLoader worker; its traceback comes first
        message = message.rpartition(f"{message.split()[1]}: ")[2].strip()
    return shortened(message)


def item_error(error: Exception, name: object = "") -> str:
    """Return why one item of many, such as an image of a folder, is passed over: a line with its name.

    Raises:
        OSError: the error itself, if it comes from a disk that takes no file, as every other item would fail too.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise error
    message = error_text(error)
    if isinstance(error, RuntimeError):  # of another library, maybe with a page of advice
        message = message.splitlines()[0]
    return message if str(name) in message else f"{name}: {message}"


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print lines that may hold file names or prompts, to stdout by default: each stays one line.

    A reader that leaves, such as `head`, does not end the work.
    """
    try:
        print(*map(printable, lines), sep="\n", file=file, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), (file or sys.stdout).fileno())
