"""The command tools/eval_net.py."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from openworldsam.checkpoint import load_weights, provenance, score_rule
from openworldsam.checkpoint.layouts import Source
from openworldsam.config import add_openworldsam_config, load_config
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
IRRELEVANT = ("WEIGHTS", "DEVICE", "CHUNK")
"""Keys of MODEL and its sections that change no prediction: paths of weights, the device, sizes of chunks."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; argparse takes overrides that follow the names of benchmarks for more names."""
    parser = argparse.ArgumentParser(description="Evaluate a model on registered datasets.")
    parser.add_argument("--config-file", required=True)
    named = "datasets, in place of DATASETS.TEST; table1 stands for all of the paper's Table 1, and so on"
    parser.add_argument("--benchmarks", nargs="+", metavar="NAME", help=named)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help=f"gets {RESULTS} and log.txt")
    saving = f"write DIR/{PREDICTIONS}, also of the ground truth; images that are there already are not predicted again"
    parser.add_argument("--save-predictions", action="store_true", help=saving)
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.add_argument("opts", nargs="*", default=[], metavar="KEY VALUE", help="override config keys")
    args = parser.parse_args(argv)
    add_openworldsam_config(cfg := get_cfg())
    names = args.benchmarks or []
    end = next((index for index, word in enumerate(names) if word.split(".")[0] in cfg), len(names))
    args.benchmarks, args.opts = names[:end], [*names[end:], *args.opts]
    return args


def evaluate_benchmarks(args: argparse.Namespace, command: str) -> None:
    """Evaluate as the command line says, on every process; the first writes the results.

    Raises:
        FileNotFoundError: benchmarks are missing or damaged, after the others have been evaluated and written.
    """
    start = time.monotonic()
    cfg = load_config(args.config_file, args.opts)
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
        "command": command,
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
    weights = {component: source.fingerprint for component, source in sources.items()}
    threshold = model.inference.score_threshold
    return {"weights": weights, "sentences": cfg.TEST.SENTENCES, **config, "threshold": threshold}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exits with 2 after a user error."""
    args = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "tools/eval_net.py", *words])
    launch_command(evaluate_benchmarks, args=(args, command), num_gpus=args.num_gpus)
