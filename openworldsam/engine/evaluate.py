"""The command `openworldsam evaluate`."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from openworldsam.checkpoint import load_weights, provenance, score_rule
from openworldsam.checkpoint.layouts import Source
from openworldsam.config import load_config
from openworldsam.data.feature_cache import tokenizer_fingerprint
from openworldsam.engine.checks import check_evaluation
from openworldsam.evaluation.benchmark import evaluate
from openworldsam.evaluation.comparison import comparison
from openworldsam.evaluation.exposure import exposure
from openworldsam.evaluation.paper_tables import with_tables
from openworldsam.evaluation.saved import Saving
from openworldsam.evaluation.summary import remarks, score_line, table
from openworldsam.modeling import OpenWorldSAM
from openworldsam.utils.device import usable_device
from openworldsam.utils.files import output_file, save_json
from openworldsam.utils.launch import launch_command, log_to, say
from openworldsam.utils.versions import versions

logger = logging.getLogger(__name__)

RESULTS = "results.json"
PREDICTIONS = "predictions"
ASKED = ("SENTENCES", "NUM_ABSENT", "PROMPT_CAPS", "TEMPLATE", "FIRST_SYNONYM", "READABLE_NAMES")
"""Keys of TEST that are written into the results, besides the protocol."""
IRRELEVANT = ("WEIGHTS", "TOKENIZER", "DEVICE", "CHUNK")
"""Keys of MODEL and its sections that change no prediction: paths, the device, sizes of chunks."""


def evaluate_benchmarks(args: argparse.Namespace) -> None:
    """Evaluate as the command line says, on every process; the first writes the results.

    Raises:
        FileNotFoundError: benchmarks are missing or damaged, after the others have been evaluated and written.
    """
    start = time.monotonic()
    cfg = load_config(args.config, args.opts)
    cfg.DATASETS.TEST = with_tables(args.benchmarks) or cfg.DATASETS.TEST
    check_evaluation(cfg)
    path = output_file(args.output / RESULTS)
    cfg.MODEL.DEVICE = usable_device(cfg.MODEL.DEVICE)
    log_to(args.output)
    missing = missing_benchmarks(cfg.DATASETS.TEST)
    cfg.DATASETS.TEST = [name for name in cfg.DATASETS.TEST if name not in missing]
    lack = " ".join(f"{name} is left out: {reason}" for name, reason in missing.items())
    if not cfg.DATASETS.TEST:
        raise FileNotFoundError(lack)
    model = OpenWorldSAM(cfg)
    model.prompt_encoder.prepare()
    sources = load_weights(model, cfg)
    saving = Saving(args.output / PREDICTIONS, identity(cfg, model, sources)) if args.save_predictions else None
    results = evaluate(cfg, model.to(cfg.MODEL.DEVICE).eval(), saving)
    if not comm.is_main_process():
        return
    paper = comparison(cfg, sources)
    content = {
        "benchmarks": results,
        **provenance(cfg, sources),
        "missing": missing,
        "protocol": cfg.TEST.PROTOCOL,
        **{key.lower(): cfg.TEST[key] for key in ASKED},
        "score": score_rule(model, cfg),
        "paper": paper._asdict(),
        "versions": versions(),
        "command": args.command,
        "seconds": round(time.monotonic() - start, 1),
    }
    save_json(path, content, indent=1)
    notes = [score_line(content["score"]), *exposure(content["weights"], results), *remarks(results, paper)]
    say(*table(results, paper).splitlines(), *notes, path)
    if missing:
        raise FileNotFoundError(lack)


def missing_benchmarks(names: Sequence[str]) -> dict[str, str]:
    """Find registered datasets whose files are missing or damaged: the reason by name, with what to do about it."""
    missing = {}
    for name in names:
        try:
            DatasetCatalog.get(name)
        except (OSError, ValueError) as error:
            missing[name] = str(error)
            logger.warning("%s is left out: %s", name, error)
    return missing


def identity(cfg: CfgNode, model: OpenWorldSAM, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Everything that predictions depend on, as JSON: the weights, the threshold, which may come from them, and the
    config without `IRRELEVANT` keys."""
    config = {key: yaml.safe_load(cfg[key].dump()) for key in ("MODEL", "INPUT")}
    keys = config["MODEL"]
    for part in (keys, *(value for value in keys.values() if isinstance(value, dict))):
        for key in IRRELEVANT:
            part.pop(key, None)
    weights = {component: source.fingerprint for component, source in sources.items()} | tokenizer_fingerprint(cfg)
    threshold = model.inference.score_threshold
    return {"weights": weights, "sentences": cfg.TEST.SENTENCES, **config, "threshold": threshold}


def run(args: argparse.Namespace) -> None:
    """Run the command; exits with 2 after a user error."""
    launch_command(evaluate_benchmarks, args=(args,), num_gpus=args.processes)
