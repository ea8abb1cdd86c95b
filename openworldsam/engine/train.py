"""The command `openworldsam train`, and a training with its hooks and results."""

from __future__ import annotations

import argparse
import contextlib
import logging
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter

from openworldsam.checkpoint import read_weights, save_component, save_trained
from openworldsam.config import load_config
from openworldsam.engine.checks import check_training
from openworldsam.engine.dry_run import describe_training
from openworldsam.engine.hooks import ProgressLine, training_picture
from openworldsam.engine.trainer import Trainer
from openworldsam.engine.training_state import METRICS, forget_metrics, newest_state, resume, save_state
from openworldsam.evaluation.benchmark import evaluate
from openworldsam.evaluation.summary import scalars
from openworldsam.utils.device import usable_device
from openworldsam.utils.files import save_png, save_text
from openworldsam.utils.launch import launch_command, log_to, say, user_errors
from openworldsam.utils.locking import lock


def train(args: argparse.Namespace) -> None:
    """Train, or describe the training; runs on every process."""
    cfg = load_config(args.config, args.opts)
    check_training(cfg)
    if args.dry_run:
        if comm.is_main_process():
            say(*describe_training(cfg).splitlines())
        return
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    folder = Path(cfg.OUTPUT_DIR)
    alone = lock(folder / ".lock", f"another training is writing to {folder}; use another OUTPUT_DIR")
    with alone if comm.is_main_process() else contextlib.nullcontext():
        if not args.resume and newest_state(folder):
            raise ValueError(f"{folder} already holds a training: give --resume, or another OUTPUT_DIR")
        log_to(folder)
        for name in cfg.DATASETS.TEST if cfg.TEST.EVAL_PERIOD else ():
            DatasetCatalog.get(name)  # missing files are an error now, not at the first evaluation
        trainer = Trainer(cfg)
        if args.resume:
            resume(trainer)
        if comm.is_main_process():
            save_text(folder / "config.yaml", cfg.dump())
        run_training(trainer)


def run_training(trainer: Trainer) -> None:
    """Train from the start iteration to SOLVER.MAX_ITER; every process calls it.

    OUTPUT_DIR gets states, logs and pictures as the config says, and in the end adapter.safetensors, or the score head
    if that alone is trained; with MODEL.PROMPT_ENCODER.TRAINABLE also the prompt encoder's weights.
    """
    trainer.folder.mkdir(parents=True, exist_ok=True)
    if comm.is_main_process():
        forget_metrics(trainer.folder / METRICS, trainer.start_iter)
    trainer.register_hooks(_hooks(trainer))
    trainer.train(trainer.start_iter, trainer.max_iter)
    if not comm.is_main_process():
        return
    if trainer.model.train_prompt_encoder and (component := trainer.model.prompt_encoder.component):
        path = trainer.folder / f"{component.name}.safetensors"
        save_component(trainer.model, component.name, path, note="trained together with the adapter")
        trainer.sources[component.name] = read_weights(path).source(component.name)
    save_trained(trainer.model, trainer.folder, trainer.cfg, trainer.sources)


def _hooks(trainer: Trainer) -> list[HookBase]:
    """Actions around each step, in their order; the state is saved first, so that no later failure loses the step."""
    cfg, model, folder = trainer.cfg, trainer.model, trainer.folder

    def after_step(_: object) -> None:
        done, period = trainer.iter + 1, cfg.SOLVER.PICTURE_PERIOD
        if done % cfg.SOLVER.CHECKPOINT_PERIOD == 0 or done == trainer.max_iter:
            save_state(trainer)
        if period and done % period == 0 and comm.is_main_process():
            save_png(folder / "pictures" / f"{done:07d}.png", training_picture(model, trainer.last_image))

    around: list[HookBase] = [hooks.IterationTimer(), hooks.CallbackHook(after_step=after_step)]
    if cfg.TEST.EVAL_PERIOD:
        around.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, lambda: scalars(evaluate(cfg, model))))
    if comm.is_main_process():
        writers = [
            ProgressLine(trainer.max_iter, cfg.SOLVER.IMS_PER_BATCH),
            JSONWriter(str(folder / METRICS)),
            TensorboardXWriter(str(folder)),
        ]
        around.append(hooks.PeriodicWriter(writers, period=cfg.SOLVER.LOG_PERIOD))
    return around


def run(args: argparse.Namespace) -> None:
    """Run the command; exits with 2 after a user error."""
    logging.captureWarnings(True)
    # Detectron2 logs the traceback of any error in the loop, which launch_command prints in a line
    loop = logging.getLogger("detectron2.engine.train_loop")
    loop.addHandler(logging.NullHandler())
    loop.propagate = False
    where = {name: getattr(args, name) for name in ("num_machines", "machine_rank", "dist_url")}
    stopped = "stopped; --resume continues from the last state in OUTPUT_DIR"
    if args.processes > 1:
        with user_errors():  # what all of them would say is said once
            cfg = load_config(args.config, args.opts)
            check_training(cfg)
            for name in () if args.dry_run else cfg.DATASETS.TRAIN:
                DatasetCatalog.get(name)
    launch_command(train, stopped=stopped, args=(args,), num_gpus=args.processes, **where)
