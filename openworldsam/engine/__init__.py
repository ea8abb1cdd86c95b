"""Training: the loop, its checkpoints, and starting it on one process or many."""

from openworldsam.engine.trainer import Trainer

__all__ = ["Trainer"]
