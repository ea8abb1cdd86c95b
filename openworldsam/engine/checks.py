"""Checks at the start of a command: registers the datasets of a config and refuses settings that cannot work.

`check_training` or `check_evaluation` is called once, by the command, or by whoever trains or evaluates from Python.
The rest of the package relies on it.
"""

from __future__ import annotations

import logging
import math

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from openworldsam.config import check_keys, config_value
from openworldsam.data.datasets import register_datasets
from openworldsam.data.datasets.catalog import check_registered, one_class_remark
from openworldsam.evaluation.examples import PROTOCOLS, SENTENCES
from openworldsam.evaluation.prompt_text import PromptText
from openworldsam.modeling.prompt_encoders import prompt_encoder_class

logger = logging.getLogger(__name__)

SMALLEST = {
    1: (
        "SOLVER.MAX_ITER",
        "SOLVER.IMS_PER_BATCH",
        "SOLVER.ACCUMULATE",
        "SOLVER.CHECKPOINT_PERIOD",
        "SOLVER.LOG_PERIOD",
    ),
    0: (
        *("SEED", "SOLVER.PICTURE_PERIOD", "TEST.EVAL_PERIOD", "SOLVER.WARMUP_ITERS", "DATALOADER.NUM_WORKERS"),
        *("DATALOADER.MAX_SKIPPED", "INPUT.MAX_PROMPTS", "SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM"),
        "DATASETS.TRAIN_IMAGES",
        *("SOLVER.GAMMA", "MODEL.CRITERION.MASK_WEIGHT", "MODEL.CRITERION.DICE_WEIGHT"),
        *("MODEL.CRITERION.SCORE_WEIGHT", "MODEL.SCORE_HEAD.HIDDEN", "INPUT.NEGATIVES"),
    ),
}
"""Keys of a training by their smallest value."""
CHOICES = {
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
}
"""Keys of a training by their choices. Detectron2's third scheduler fails at the end of a training."""
POSITIVE = ("SOLVER.BASE_LR", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE")


def check_training(cfg: CfgNode) -> None:
    """Register the datasets of a config, and check its settings for a training; every process calls it.

    Raises:
        FileNotFoundError: a file of DATASETS.OWN is missing.
        ValueError: a setting is wrong; names it.
    """
    if not cfg.OUTPUT_DIR:
        raise ValueError("OUTPUT_DIR is empty; name a folder for the results")
    for low, keys in SMALLEST.items():
        for key in keys:
            if not low <= (value := config_value(cfg, key)) < math.inf:
                raise ValueError(f"{key} must be at least {low}, got {value}")
    for key in POSITIVE:
        if not 0 < (value := config_value(cfg, key)) < math.inf:
            raise ValueError(f"{key} must be above 0, got {value}")
    for key, choices in CHOICES.items():
        if (value := config_value(cfg, key)) not in choices:
            raise ValueError(f"{key} is one of {', '.join(choices)}, got {value!r}")
    for key, most in (("SOLVER.BASE_LR_END", cfg.SOLVER.BASE_LR), ("SOLVER.WARMUP_FACTOR", 1)):
        if not 0 <= (value := config_value(cfg, key)) <= most:
            raise ValueError(f"{key} is from 0 to {most:g}, got {value}")
    check_keys(cfg)
    divisor = comm.get_world_size() * cfg.SOLVER.ACCUMULATE
    if cfg.SOLVER.IMS_PER_BATCH % divisor:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is not divisible by {comm.get_world_size()} processes x "
            f"{cfg.SOLVER.ACCUMULATE} micro-batches"
        )
    steps, last = list(cfg.SOLVER.STEPS or ()), cfg.SOLVER.MAX_ITER
    if not all(isinstance(step, int) for step in steps) or steps != sorted({s for s in steps if 0 < s < last}):
        raise ValueError(f"SOLVER.STEPS {steps} must ascend and lie within SOLVER.MAX_ITER {last}; [] is none")
    if prompt_encoder_class(cfg).component is None and cfg.MODEL.PROMPT_ENCODER.TRAINABLE:
        raise ValueError(
            f"MODEL.PROMPT_ENCODER.TRAINABLE must be False: {cfg.MODEL.PROMPT_ENCODER.NAME} declares no weight file "
            "(component) for its trained weights"
        )
    _check_trained(cfg)
    if len(set(cfg.DATASETS.TRAIN)) < len(cfg.DATASETS.TRAIN):
        raise ValueError(f"DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)} names a dataset twice")
    register_datasets(cfg)
    check_registered((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    if cfg.TEST.EVAL_PERIOD:
        _check_test(cfg)
        if cfg.DATASETS.FEATURE_CACHE:
            raise ValueError(
                "TEST.EVAL_PERIOD needs the prompt encoder, which a training with DATASETS.FEATURE_CACHE does not "
                "load; set it to 0 and evaluate the adapter afterwards"
            )


def _check_trained(cfg: CfgNode) -> None:
    """Raise ValueError unless adapter and score head each have a loss exactly if they are trained."""
    model, weights, hidden = cfg.MODEL, cfg.MODEL.CRITERION, cfg.MODEL.SCORE_HEAD.HIDDEN
    of_masks = weights.MASK_WEIGHT or weights.DICE_WEIGHT
    if bool(hidden) != bool(weights.SCORE_WEIGHT):
        raise ValueError(
            f"MODEL.SCORE_HEAD.HIDDEN is {hidden} and MODEL.CRITERION.SCORE_WEIGHT {weights.SCORE_WEIGHT:g}: a "
            "training needs both, or neither"
        )
    if cfg.INPUT.NEGATIVES and not hidden:
        raise ValueError(
            f"INPUT.NEGATIVES {cfg.INPUT.NEGATIVES} needs a score head, which alone learns from absent prompts: set "
            "MODEL.SCORE_HEAD.HIDDEN and MODEL.CRITERION.SCORE_WEIGHT"
        )
    if not model.ADAPTER.TRAINABLE and (of_masks or not hidden or model.PROMPT_ENCODER.TRAINABLE):
        raise ValueError(
            "MODEL.ADAPTER.TRAINABLE False trains a score head alone: set MODEL.SCORE_HEAD.HIDDEN, "
            "MODEL.CRITERION.SCORE_WEIGHT, MASK_WEIGHT 0 and DICE_WEIGHT 0, and no MODEL.PROMPT_ENCODER.TRAINABLE"
        )
    if model.ADAPTER.TRAINABLE and not of_masks:
        raise ValueError(
            "MODEL.CRITERION.MASK_WEIGHT and DICE_WEIGHT are 0, so masks would get worse: set one, or "
            "MODEL.ADAPTER.TRAINABLE False to train the score head alone"
        )


def check_evaluation(cfg: CfgNode) -> None:
    """Register the datasets of a config, and check its settings for an evaluation; errors as for `check_training`."""
    check_keys(cfg)
    register_datasets(cfg)
    check_registered(cfg.DATASETS.TEST)
    _check_test(cfg)


def _check_test(cfg: CfgNode) -> None:
    """Raise ValueError if the registered datasets of DATASETS.TEST cannot be evaluated as TEST says."""
    if not cfg.DATASETS.TEST:
        raise ValueError("nothing to evaluate: DATASETS.TEST is empty (openworldsam evaluate also takes --benchmarks)")
    for name in cfg.DATASETS.TEST:
        if not getattr(MetadataCatalog.get(name), "tasks", ()):
            raise ValueError(f"{name} cannot be evaluated: its metadata have no tasks")
        if remark := one_class_remark(name):
            logger.warning(remark)
    for key, choices in (("PROTOCOL", PROTOCOLS), ("SENTENCES", SENTENCES)):
        if cfg.TEST[key] not in choices:
            raise ValueError(f"TEST.{key} is one of {choices}, got {cfg.TEST[key]!r}")
    PromptText.from_config(cfg)
    from_zero = ("MAX_IMAGES", "PROMPT_CHUNK", "NUM_ABSENT")
    if cfg.TEST.IMS_PER_BATCH < 1 or min(cfg.DATALOADER.NUM_WORKERS, *(cfg.TEST[key] for key in from_zero)) < 0:
        others = ", ".join(f"TEST.{key}" for key in from_zero)
        raise ValueError(f"TEST.IMS_PER_BATCH is 1 or more; {others} and DATALOADER.NUM_WORKERS are 0 or more")
