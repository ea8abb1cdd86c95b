"""Benchmark: time, operations, memory and waits of each stage, and the least time that this machine could take.

Measures the forward pass stage by stage, a training step with and without caches, and an evaluation. `--against`
measures a second configuration in turn with the first: a config file, or "plain", the forward pass of the released code
on the same weights. If the config names no weights, they are random, and one query per prompt passes the thresholds.
Writes DIR/benchmark.json, and its tables as DIR/benchmark.md, after every kind of work.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from openworldsam.checkpoint import load_weights
from openworldsam.config import load_config
from openworldsam.modeling import OpenWorldSAM
from openworldsam.parity.rule_weights import save_tokenizer
from openworldsam.speed import machine
from openworldsam.speed.pipeline import Pipeline, encoded_image
from openworldsam.speed.plain import PlainPipeline
from openworldsam.speed.report import markdown
from openworldsam.speed.run import Run
from openworldsam.utils.device import checked_device, keep_freed_memory, usable_device
from openworldsam.utils.files import output_file, save_json, save_text
from openworldsam.utils.launch import user_errors

PLAIN = "plain"
TRAINING_PROMPTS = 6
"""Prompts per image where INPUT.MAX_PROMPTS sets no limit."""
PARTS = ("stages", "training", "evaluation")


Contender = tuple[Pipeline, dict[str, Any]]
"""A configuration: its pipeline and its entry in the report."""


def build(args: argparse.Namespace, path: str, name: str, image: bytes, scratch: Path) -> Contender:
    """Build the model of a config file, in eval mode, on the device.

    A missing tokenizer is replaced by a small one of COCO's class names, written to `scratch`.
    """
    cfg = load_config(path, args.opts)
    device = checked_device(args.device) if args.device else usable_device(cfg.MODEL.DEVICE)
    tokenizer = cfg.MODEL.PROMPT_ENCODER.TOKENIZER
    if not Path(tokenizer).exists():
        tokenizer = "a stand-in made of COCO's class names"
        cfg.MODEL.PROMPT_ENCODER.TOKENIZER = str(scratch / "beit3.spm")
        save_tokenizer(scratch / "beit3.spm")
    torch.manual_seed(cfg.SEED)
    model = OpenWorldSAM(cfg)
    random = not any((cfg.MODEL.WEIGHTS, cfg.MODEL.SAM2.WEIGHTS, cfg.MODEL.PROMPT_ENCODER.WEIGHTS))
    if not random:
        load_weights(model, cfg, need_adapter=False)
    elif device == "cpu":
        keep_freed_memory()
    model.prompt_encoder.prepare()
    about = {
        "name": name,
        "config": path,
        "preset": cfg.PRESET,
        "tokenizer": tokenizer,
        "weights": "random" if random else "of the config",
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return Pipeline(name, cfg, model.to(device).eval(), image, random=random), about


def contenders(args: argparse.Namespace, image: bytes, scratch: Path) -> list[Contender]:
    """Build --config, and --against if it is given."""
    ours, about = build(args, args.config, Path(args.config).stem, image, scratch)
    found = [(ours, about)]
    if args.against == PLAIN:
        plain = PlainPipeline(ours.cfg, ours.model, image, random=ours.random)
        found.append((plain, {**about, "name": PLAIN, "preset": "released, always fp32 and not compiled"}))
    elif args.against:
        name = Path(args.against).stem
        found.append(build(args, args.against, name + " (2)" * (name == ours.name), image, scratch))
    return found


def benchmark(args: argparse.Namespace, scratch: Path) -> None:
    """Measure, print and write what the command line asks for.

    Raises:
        FileNotFoundError, KeyError, ValueError: an argument, a config or a file is wrong.
    """
    if min(*args.num_prompts, args.warmup, args.repeats, args.images) < 1:
        raise ValueError("--num-prompts, --warmup, --repeats and --images are 1 or more")
    table, report = (output_file(args.output / f"benchmark.{suffix}") for suffix in ("json", "md"))
    args.output.mkdir(parents=True, exist_ok=True)  # an error before the work
    pipelines, abouts = zip(*contenders(args, encoded_image(args.image), scratch), strict=True)
    device, load = pipelines[0].model.device, [os.getloadavg()[0]]
    content: dict[str, Any] = machine.describe(device)
    content["machine"]["load"] = load
    content["peaks"] = machine.peaks(device, sorted({"fp32", *args.precision}))
    content |= {"configurations": abouts, "image": args.image or "a random one of 640 x 480 pixels"}
    content |= {"warmup": args.warmup, "repeats": args.repeats}
    run = Run(pipelines, content["peaks"], warmup=args.warmup, repeats=args.repeats)
    for compiled in (False, True) if args.compile else (False,):
        for precision in args.precision:
            run.use(precision, compiled)
            for part in args.parts:
                if part == "stages":
                    run.stages(args.num_prompts)
                elif compiled:  # only the stages are
                    continue
                elif part == "training":
                    run.training(pipelines[0].cfg.INPUT.MAX_PROMPTS or TRAINING_PROMPTS)
                else:
                    run.evaluation(args.images)
                content["machine"]["load"] = [*load, os.getloadavg()[0]]
                content["records"] = list(map(asdict, run.records))
                save_json(table, content, indent=1)
                save_text(report, markdown(content))
    print(report.read_text(encoding="utf-8"))


def run(args: argparse.Namespace) -> None:
    """Run the command line; exit with 2 after a user error, with 130 after Ctrl-C."""
    with user_errors(), tempfile.TemporaryDirectory() as scratch:
        benchmark(args, Path(scratch))
