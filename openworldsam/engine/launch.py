"""Start a function on one process or many, by Detectron2's launcher or under torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import launch as spawn
from detectron2.utils import comm


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
    started on this machine. Without a GPU they talk by gloo.

    Args:
        main: what to run.
        args: its arguments.
        num_gpus: processes per machine.
        num_machines, machine_rank, dist_url: of several machines, without torchrun.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        if num_gpus * num_machines == 1:
            return main(*args)
        return spawn(main, num_gpus, num_machines, machine_rank, dist_url, args)
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    comm.create_local_process_group(local_size)
    result = main(*args)
    dist.destroy_process_group()  # not after an error: others may wait within a collective
    return result
