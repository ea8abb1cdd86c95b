"""Every configuration key of OpenWorldSAM with its meaning, unit and default.

The defaults are the preset `paper` with SAM2 Hiera-L and BEiT-3-L. A preset (`configs/presets/*.yaml`) or an
experiment (`configs/*/*.yaml`) states only its differences. Unknown keys are errors.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import accumulate
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from openworldsam.config_files import (
    MAX_BASES,
    TOKENIZER,
    WEIGHT_KEYS,
    config_contents,
    find_config,
    find_weights,
    flat,
)
from openworldsam.data.preprocessing import MAX_PIXELS, limit_pixels
from openworldsam.utils.device import best_device
from openworldsam.utils.text import brief, shortened

_MAY_BE_NONE = ("SOLVER.WEIGHT_DECAY_BIAS",)
"""Detectron2 keys whose default is None."""

DETECTRON2_KEYS = frozenset(
    (
        *("VERSION", "SEED", "OUTPUT_DIR", "DATASETS.TRAIN", "DATASETS.TEST", "DATALOADER.NUM_WORKERS"),
        *("MODEL.DEVICE", "MODEL.WEIGHTS", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "TEST.EVAL_PERIOD"),
        *("SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY", "SOLVER.WEIGHT_DECAY_NORM", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE"),
        *("SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"),
        # read by Detectron2's build_lr_scheduler
        *("SOLVER.LR_SCHEDULER_NAME", "SOLVER.STEPS", "SOLVER.GAMMA", "SOLVER.BASE_LR_END"),
        *("SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_FACTOR", "SOLVER.WARMUP_METHOD", "SOLVER.RESCALE_INTERVAL"),
    )
)
"""Detectron2's keys that this package, or a function of Detectron2 that it calls, reads; its others have no effect."""
LOCAL_KEYS = frozenset(
    (
        *("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.COMPILE", "DATALOADER.NUM_WORKERS", "SOLVER.INIT_WEIGHTS"),
        *("DATASETS.OWN", "DATASETS.FEATURE_CACHE"),
    )
)
"""Keys that belong to a machine and its folders."""
INSTEAD = {
    "DATALOADER.FILTER_EMPTY": "a training always leaves out images without objects",
    "DATALOADER.": "an epoch has each image once, in an order that follows from SEED",
    "INPUT.CROP": "INPUT.LARGE_SCALE_JITTER crops images",
    "INPUT.FORMAT": "images are RGB",
    "INPUT.MAX_SIZE": "MODEL.SAM2.IMAGE_SIZE is the size of every image",
    "INPUT.MIN_SIZE": "MODEL.SAM2.IMAGE_SIZE is the size of every image",
    "INPUT.RANDOM_FLIP": "INPUT.FLIP mirrors images",
    "SOLVER.AMP": "MODEL.PRECISION is the arithmetic",
    "SOLVER.BIAS_LR_FACTOR": "SOLVER.BASE_LR holds for biases too",
    "SOLVER.CLIP_GRADIENTS": "the norm of all gradients is always clipped, to SOLVER.CLIP_GRADIENTS.CLIP_VALUE",
    "SOLVER.NUM_DECAYS": "SOLVER.STEPS are the iterations at which the learning rate drops",
    "SOLVER.MOMENTUM": "the optimizer is AdamW",
    "SOLVER.NESTEROV": "the optimizer is AdamW",
    "SOLVER.REFERENCE_WORLD_SIZE": "SOLVER.IMS_PER_BATCH counts the images of all processes",
    "SOLVER.WEIGHT_DECAY_BIAS": "SOLVER.WEIGHT_DECAY holds for biases too",
    "TEST.AUG": "an evaluation sees each image once, as it is",
    "TEST.DETECTIONS_PER_IMAGE": "MODEL.INFERENCE.TOP_K limits the instances of an image",
    "VIS_PERIOD": "SOLVER.PICTURE_PERIOD is the period of a training's pictures",
}
"""Advice for the other keys of Detectron2, by the start of the key."""


def add_openworldsam_config(cfg: CfgNode) -> None:
    """Add the project's keys with their defaults to a Detectron2 config, in place."""
    # Name of the preset, recorded with every result: paper, released, improved, or any other.
    cfg.PRESET = "paper"

    cfg.INPUT.FORMAT = "RGB"
    # Antialias when an image shrinks. The authors' model was trained without (docs/deviations.md, resizing).
    cfg.INPUT.ANTIALIAS = False

    cfg.MODEL.META_ARCHITECTURE = "OpenWorldSAM"
    # cpu, cuda, cuda:1, mps, ... By default CUDA or MPS where this machine has it, else the CPU.
    cfg.MODEL.DEVICE = best_device()
    # A full checkpoint in the released layout, an EVF-SAM2 file or folder (configs/baselines/evf_sam2.yaml), or an
    # adapter file; the latter needs both encoder files too.
    cfg.MODEL.WEIGHTS = ""
    # Arithmetic of the networks: fp32, bf16 or fp16 (autocast; frozen matrices are stored in it, the adapter in fp32).
    # Half precision rounds scores (bf16: to steps of 0.004 near 0.7), which can change thresholds and ties.
    cfg.MODEL.PRECISION = "fp32"
    # torch.compile the networks: the first image of each size takes minutes, later ones are faster. Needs a C++
    # compiler.
    cfg.MODEL.COMPILE = False
    # SAM2's mean and standard deviation per RGB channel, on the scale 0..255.
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]

    _add_encoder_config(cfg)
    _add_adapter_config(cfg)
    _add_inference_config(cfg)
    _add_training_config(cfg)
    _add_evaluation_config(cfg)
    _add_shapes_config(cfg)


def _add_encoder_config(cfg: CfgNode) -> None:
    """The frozen encoders: sizes and weight files."""
    cfg.MODEL.SAM2 = CfgNode()
    # SAM2 weights: Meta's .pt (2.0 or 2.1), an EVF-SAM2 file, or the .safetensors that convert_weights.py writes.
    cfg.MODEL.SAM2.WEIGHTS = ""
    # Side of the square input in pixels, a multiple of 32; images are resized to it whatever their aspect ratio.
    cfg.MODEL.SAM2.IMAGE_SIZE = 1024
    # Hiera trunk. The defaults are Hiera-L; configs/encoders/ has tiny, small and base+.
    cfg.MODEL.SAM2.EMBED_DIM = 144
    cfg.MODEL.SAM2.NUM_HEADS = 2
    cfg.MODEL.SAM2.STAGES = [2, 6, 36, 4]
    cfg.MODEL.SAM2.GLOBAL_ATT_BLOCKS = [23, 33, 43]
    cfg.MODEL.SAM2.WINDOW_SPEC = [8, 4, 16, 8]
    cfg.MODEL.SAM2.POS_EMBED_SIZE = [7, 7]
    # Channels C of the image features, the adapter and the mask decoder; a multiple of 16.
    cfg.MODEL.SAM2.WIDTH = 256

    cfg.MODEL.PROMPT_ENCODER = CfgNode()
    # Name in PROMPT_ENCODER_REGISTRY (docs/encoders.md); the keys below are those of BEiT-3, other encoders read what
    # they need of them.
    cfg.MODEL.PROMPT_ENCODER.NAME = "BEiT3PromptEncoder"
    # File or folder of its weights. BEiT-3: Microsoft's .pth, an EVF-SAM2 file or folder, or the .safetensors of
    # convert_weights.py.
    cfg.MODEL.PROMPT_ENCODER.WEIGHTS = ""
    # File or folder of its tokenizer. BEiT-3: the sentencepiece file beit3.spm; encoders of libraries: the folder that
    # also has config.json, from which they know their sizes.
    cfg.MODEL.PROMPT_ENCODER.TOKENIZER = TOKENIZER
    # Side of the square input in pixels, a multiple of the patch size.
    cfg.MODEL.PROMPT_ENCODER.IMAGE_SIZE = 224
    cfg.MODEL.PROMPT_ENCODER.PATCH_SIZE = 16
    # Width D of the prompt embedding, layers, attention heads, hidden width of the feed-forward network.
    cfg.MODEL.PROMPT_ENCODER.EMBED_DIM = 1024
    cfg.MODEL.PROMPT_ENCODER.NUM_LAYERS = 24
    cfg.MODEL.PROMPT_ENCODER.NUM_HEADS = 16
    cfg.MODEL.PROMPT_ENCODER.FFN_DIM = 4096
    # Size of the text embedding table.
    cfg.MODEL.PROMPT_ENCODER.VOCAB_SIZE = 64010
    # Longest prompt in tokens, including those that the encoder adds, as start and end; longer prompts are cut with a
    # warning. BEiT-3: 3 to 1022. Others: more than they add; above the places of the library's model, as many as these.
    cfg.MODEL.PROMPT_ENCODER.MAX_TOKENS = 512
    # False: encode the text alone (Table 4, row 3).
    cfg.MODEL.PROMPT_ENCODER.USE_IMAGE = True
    # True: train the prompt encoder too (Table 5, E4 and E6).
    cfg.MODEL.PROMPT_ENCODER.TRAINABLE = False
    # Prompts encoded at a time; bounds memory and changes results by rounding alone, as all chunks do: in fp32 by about
    # 2e-6 of a score or of the largest mask logit.
    cfg.MODEL.PROMPT_ENCODER.CHUNK = 32


def _add_adapter_config(cfg: CfgNode) -> None:
    """The trained part and its loss (paper Sec. 3)."""
    cfg.MODEL.ADAPTER = CfgNode()
    # K of Eq. 1; 0: none, one query per prompt (Table 5, E1). Where this is more than an adapter's file has, the others
    # are drawn from the distribution of the learned ones.
    cfg.MODEL.ADAPTER.NUM_TIE_BREAKERS = 20
    # Standard deviation of their normal initialisation.
    cfg.MODEL.ADAPTER.TIE_BREAKER_STD = 1.0
    # Layers of the soft-prompt transformer; 0: no transformer (Table 5, E1 to E4).
    cfg.MODEL.ADAPTER.NUM_LAYERS = 3
    cfg.MODEL.ADAPTER.NUM_HEADS = 8
    cfg.MODEL.ADAPTER.DROPOUT = 0.1
    # Decoder tokens of query i, from its input q_i and the transformer's output q'_i:
    # replace {q'_i} (paper), add {q_i + q'_i}, broadcast {q_i + q'_j for every j it interacts with} (released code).
    cfg.MODEL.ADAPTER.FUSION = "replace"
    # Queries that attend to each other: those of one prompt, or those of all prompts of an image (released code).
    cfg.MODEL.ADAPTER.INTERACTION = "prompt"
    # Add SAM2's positional encoding to the keys of the cross-attention.
    cfg.MODEL.ADAPTER.KEY_POSITIONS = False
    # Layers of a cross-attention from the prompt embedding to SAM2's image tokens, before the projector: for encoders
    # that do not see the image (paper E.1, which has 2; docs/encoders.md). 0: none.
    cfg.MODEL.ADAPTER.IMAGE_LAYERS = 0
    # False: train the score head alone.
    cfg.MODEL.ADAPTER.TRAINABLE = True

    cfg.MODEL.MASK_DECODER = CfgNode()
    # In inference, replace SAM2's single mask by the best of its three others where it is unstable.
    cfg.MODEL.MASK_DECODER.DYNAMIC_MULTIMASK = True
    # Queries decoded at a time; bounds memory (about 50 MB per query at 1024 px in fp32); only rounding
    # differs. Fewer go together where `broadcast` gives a query more than 512 tokens.
    cfg.MODEL.MASK_DECODER.CHUNK = 16

    cfg.MODEL.SCORE_HEAD = CfgNode()
    # Width of the two hidden layers of the head that gives the match score (docs/score.md); 0: no head.
    cfg.MODEL.SCORE_HEAD.HIDDEN = 0
    cfg.MODEL.SCORE_HEAD.DROPOUT = 0.1
    # File of its weights, in place of those that MODEL.WEIGHTS may hold.
    cfg.MODEL.SCORE_HEAD.WEIGHTS = ""

    cfg.MODEL.CRITERION = CfgNode()
    # Weights of the losses and of the matching costs. A loss of weight 0 is not computed.
    cfg.MODEL.CRITERION.MASK_WEIGHT = 20.0
    cfg.MODEL.CRITERION.DICE_WEIGHT = 0.0
    # Weight of the score head's loss: binary cross-entropy of the match score of all queries against their largest IoU
    # with a mask of their prompt.
    cfg.MODEL.CRITERION.SCORE_WEIGHT = 0.0
    cfg.MODEL.CRITERION.FOCAL_ALPHA = 0.25
    cfg.MODEL.CRITERION.FOCAL_GAMMA = 2.0
    # A prompt's loss is the sum over its matched pairs, divided by the number of its ground-truth masks (targets) or
    # of the pairs (matched). They differ only if a prompt has more than K masks.
    cfg.MODEL.CRITERION.DIVISOR = "targets"


def _add_inference_config(cfg: CfgNode) -> None:
    """Rules and thresholds from queries to results (paper Sec. 3 "Inference", A.2)."""
    cfg.MODEL.INFERENCE = CfgNode()
    # Tasks of the forward pass: semantic, instance, panoptic, referring.
    cfg.MODEL.INFERENCE.TASKS = ["semantic", "instance", "panoptic"]
    # Score of a query: SAM2's predicted IoU, which knows no name (iou, paper), the match score of MODEL.SCORE_HEAD
    # (match), or their product.
    cfg.MODEL.INFERENCE.SCORE = "iou"
    # Smallest predicted IoU: at least this for instances and two-stage inference, above it for panoptic.
    cfg.MODEL.INFERENCE.SCORE_THRESHOLD = 0.7
    # The same for the other scores; 0: the threshold stored with the weights (openworldsam calibrate), or 0.5.
    cfg.MODEL.INFERENCE.MATCH_THRESHOLD = 0.0
    # Remove a mask whose IoU with a better one exceeds this.
    cfg.MODEL.INFERENCE.NMS_THRESHOLD = 0.5
    # Instances: compare masks within a class (mask), or boxes across all classes (box, released code).
    cfg.MODEL.INFERENCE.INSTANCE_NMS = "mask"
    # Instances of an image kept before the threshold, best first; 0: all.
    cfg.MODEL.INFERENCE.TOP_K = 0
    # Panoptic: drop a segment of which less than this fraction remains visible.
    cfg.MODEL.INFERENCE.OVERLAP_THRESHOLD = 0.5
    # Weight of a query in the semantic sum: score or softmax (released code).
    cfg.MODEL.INFERENCE.SEMANTIC_WEIGHT = "score"
    # Feed the masks back as mask prompts and decode again.
    cfg.MODEL.INFERENCE.TWO_STAGE = False
    # Queries that are refined: confident (score >= SCORE_THRESHOLD; the others are dropped), all, or all_expressions:
    # all of referring expressions, confident in other tasks (released code, whose threshold for the former is 0).
    cfg.MODEL.INFERENCE.TWO_STAGE_KEEP = "confident"


def _add_training_config(cfg: CfgNode) -> None:
    """Training data and schedule (paper Sec. 4, A.1)."""
    # Seed of the adapter's initialisation, the order of images and all random choices.
    cfg.SEED = 42
    # Most classes per image and visit; 0: all.
    cfg.INPUT.MAX_PROMPTS = 6
    # Absent prompts per image and visit, which only the match score learns from (MODEL.CRITERION.SCORE_WEIGHT): classes
    # that the image does not have, or expressions without a target. They are chosen by what the model confuses.
    cfg.INPUT.NEGATIVES = 0
    # Augmentations; the paper trains without.
    cfg.INPUT.FLIP = False
    cfg.INPUT.LARGE_SCALE_JITTER = False
    # Folder that openworldsam cache has filled for DATASETS.TRAIN; replaces the prompt encoder.
    cfg.DATASETS.FEATURE_CACHE = ""
    cfg.DATASETS.TRAIN = ["coco_2017_train_panoptic_openworldsam"]
    # Images of each training set to use, from the first; 0: all. Fewer fit a small feature cache.
    cfg.DATASETS.TRAIN_IMAGES = 0
    # Datasets on which openworldsam calibrate compares scores with the quality of masks and chooses the thresholds.
    cfg.DATASETS.HELD_OUT = ["coco_2017_train_panoptic_held_out"]
    # YAML or JSON files, each of which describes a custom dataset (datasets/README.md, "Custom datasets").
    cfg.DATASETS.OWN = []
    # Largest share of unreadable images, beyond the first 20, before training stops.
    cfg.DATALOADER.MAX_SKIPPED = 0.01
    # Pixels of an image or mask beyond which it is refused before it is decoded, in every command. Annotating an image
    # of so many with three masks took 3 GB.
    cfg.DATALOADER.MAX_PIXELS = MAX_PIXELS
    # Start of a training if it is not MODEL.WEIGHTS, which evaluation uses: an adapter file, or fresh.
    cfg.SOLVER.INIT_WEIGHTS = ""
    # AdamW without warm-up, no weight decay on norms, global gradient norm clipped to CLIP_VALUE.
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.005
    # Images of a step, over all processes and micro-batches.
    cfg.SOLVER.IMS_PER_BATCH = 8
    # Micro-batches into which each process divides its images of a step: the same gradients in less memory.
    cfg.SOLVER.ACCUMULATE = 1
    # 25 epochs of 104,000 images in batches of 8; drops by 10 at 89 % and 96 %.
    cfg.SOLVER.MAX_ITER = 325_000
    cfg.SOLVER.STEPS = [289_250, 312_000]
    cfg.SOLVER.GAMMA = 0.1
    cfg.SOLVER.WARMUP_ITERS = 0
    # Steps between training states, between log lines, and between pictures of ground truth and prediction (0: no
    # pictures). TEST.EVAL_PERIOD: steps between evaluations on DATASETS.TEST.
    cfg.SOLVER.CHECKPOINT_PERIOD = 5_000
    cfg.SOLVER.LOG_PERIOD = 20
    cfg.SOLVER.PICTURE_PERIOD = 0


def _add_evaluation_config(cfg: CfgNode) -> None:
    """Prompts of an evaluation on DATASETS.TEST; every result records its protocol."""
    # Prompts of an image: the classes that it has (oracle, paper), the whole vocabulary (global), or the classes that
    # it has and some others, whose false-positive rate is measured (present+absent).
    cfg.TEST.PROTOCOL = "oracle"
    # Absent classes per image under present+absent; 0: as many as present ones, one where there are no objects.
    cfg.TEST.NUM_ABSENT = 0
    # True: at most as many present classes per image as in the released code, drawn with its seed: 20 for COCO and
    # ADE20K-150, 18 for ScanNet panoptic. The other classes of the image count as missed.
    cfg.TEST.PROMPT_CAPS = False
    # Prompt for a class; {name} is its name.
    cfg.TEST.TEMPLATE = "{name}"
    # True: use only the first name of a list such as ADE20K's "road, route".
    cfg.TEST.FIRST_SYNONYM = False
    # True: correct names such as VOC's "pottedplant" to "potted plant"; evaluation/prompt_text.py lists them.
    cfg.TEST.READABLE_NAMES = False
    # Sentences of each object in a referring dataset: first (released code) or all, with those of an image together;
    # first_alone or all_alone: each on its own, which only differs with INTERACTION `image`.
    cfg.TEST.SENTENCES = "first"
    # Images per forward pass and process.
    cfg.TEST.IMS_PER_BATCH = 1
    # Prompts of an image decoded at a time; bounds memory for large vocabularies; only rounding differs. 0: all
    # at once, as always with INTERACTION `image` and with two-stage `confident`.
    cfg.TEST.PROMPT_CHUNK = 32
    # Images of each dataset to evaluate on, from the first; 0: all.
    cfg.TEST.MAX_IMAGES = 0


def _add_shapes_config(cfg: CfgNode) -> None:
    """The rendered datasets shapes_*: the fields of an `openworldsam.data.shapes.World`; the defaults are the hardest.

    Sizes are in pixels, probabilities and fractions in 0..1.
    """
    # Seed of all splits, each of which draws scenes of its own; another seed gives unseen splits.
    cfg.DATASETS.SHAPES_SEED = 0
    cfg.DATASETS.SHAPES = CfgNode()
    # Side of the square scene.
    cfg.DATASETS.SHAPES.SIZE = 256
    # Smallest and largest number of things, and of stuff regions, per scene.
    cfg.DATASETS.SHAPES.NUM_THINGS = [1, 10]
    cfg.DATASETS.SHAPES.NUM_STUFF = [2, 5]
    # Vocabulary. Only the split shapes_novel_val has hearts, hourglasses and some pairs of colour and shape.
    cfg.DATASETS.SHAPES.SHAPES = ["circle", "ellipse", "square", "triangle", "star", "ring", "cross", "arrow"]
    cfg.DATASETS.SHAPES.SHAPES += ["crescent", "drop", "heart", "hourglass"]
    cfg.DATASETS.SHAPES.COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"]
    cfg.DATASETS.SHAPES.COLOURS += ["white", "black"]
    cfg.DATASETS.SHAPES.TEXTURES = ["grass", "water", "sand", "sky", "brick", "snow", "stone", "wood"]
    # Smallest and largest diameter of a thing, from 6 to SIZE.
    cfg.DATASETS.SHAPES.THING_SIZE = [12, 128]
    # Largest hidden fraction of a thing.
    cfg.DATASETS.SHAPES.MAX_HIDDEN = 0.6
    # Probability that a thing repeats an earlier one's shape, that it touches one, that a large thing is slender.
    cfg.DATASETS.SHAPES.SAME_KIND = 0.4
    cfg.DATASETS.SHAPES.TOUCHING = 0.4
    cfg.DATASETS.SHAPES.THIN = 0.2
    # Probability that a void band separates stuff regions.
    cfg.DATASETS.SHAPES.VOID = 0.3
    # Largest relative change of brightness over a scene; standard deviation of blur (pixels) and of noise (0..255).
    cfg.DATASETS.SHAPES.LIGHTING = 0.3
    cfg.DATASETS.SHAPES.BLUR = 0.8
    cfg.DATASETS.SHAPES.NOISE = 9.0


def load_config(config: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config and override it by KEY VALUE pairs.

    Args:
        config: a YAML file, a folder that `save_pretrained` wrote, or the name of a config that ships, such as
            "shapes"; `config_files` tells where it and the weights that it names are looked for.

    Raises:
        FileNotFoundError: there is no such config.
        KeyError: a key that does not exist.
        ValueError: it is no config file, its `_BASE_` entries have no end, a value is of the wrong type, or there is an
            odd number of `opts`.
    """
    path = find_config(config)
    cfg = get_cfg()
    add_openworldsam_config(cfg)
    for number, (file, content) in enumerate(config_contents(path)):
        if number > MAX_BASES:
            raise ValueError(f"{path}: its _BASE_ lead to more than {MAX_BASES} files")
        with _in_a_line(file):
            cfg.merge_from_other_cfg(CfgNode(content))
    merge_options(cfg, opts)
    for key, value in flat(cfg).items():
        section, _, name = key.rpartition(".")
        if name in WEIGHT_KEYS:
            config_value(cfg, section)[name] = find_weights(value)
    return cfg


@contextlib.contextmanager
def _in_a_line(source: object) -> Iterator[None]:
    """Turn what Detectron2 raises for a wrong key or value into a KeyError or ValueError of bounded length."""
    try:
        yield
    except KeyError as error:
        raise KeyError(f"{source}: {shortened(str(error.args[0]))}{_nearest_key(str(error.args[0]))}") from None
    except (ValueError, TypeError, AttributeError, AssertionError, RecursionError, MemoryError) as error:
        reason = shortened(" ".join(str(error).split())) or "it is nested too deeply"
        raise ValueError(f"{source}: {reason}") from None


def _nearest_key(message: str) -> str:
    """The end of a message about a key that does not exist, "Non-existent ... key: NAME"."""
    add_openworldsam_config(cfg := get_cfg())
    known = {key for name in flat(cfg) for key in accumulate(name.split("."), "{}.{}".format)}
    near = difflib.get_close_matches(message.rpartition(" ")[2].upper(), known, 1)
    return f"; did you mean {near[0]}?" if near else "; openworldsam/config.py lists the keys"


def config_value(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key, such as "MODEL.SAM2.WEIGHTS"."""
    return reduce(getattr, key.split("."), cfg)


def arguments(section: CfgNode, *skip: str) -> dict[str, Any]:
    """The keys of a config section as keyword arguments, in lower case; without those to skip."""
    return {key.lower(): value for key, value in section.items() if key not in skip}


def merge_options(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Override keys of a config by KEY VALUE pairs, in place; errors as for `load_config`."""
    if len(opts) % 2:
        raise ValueError(f"options come in pairs KEY VALUE, got {len(opts)} words: {' '.join(map(str, opts))}")
    with _in_a_line("the options KEY VALUE"):
        try:
            cfg.merge_from_list(list(opts))
        except AssertionError as error:  # yacs asserts on an unknown key of a list
            raise KeyError(str(error)) from None
    if cfg.VERSION != 2:
        raise ValueError(f"VERSION is that of Detectron2's keys, 2, got {brief(cfg.VERSION)}")
    _check_values(cfg)
    check_keys(cfg)
    limit_pixels(cfg.DATALOADER.MAX_PIXELS)


def check_keys(cfg: CfgNode) -> None:
    """Raise ValueError if a key of Detectron2 that has no effect differs from its default."""
    default = get_cfg()
    others = sorted(flat(default).keys() - DETECTRON2_KEYS)
    add_openworldsam_config(default)
    expected, got = flat(default), flat(cfg)
    for key in others:
        if key in got and json.dumps(got[key]) != json.dumps(expected[key]):  # tuples are read back as lists
            instead = "".join([f": {hint}" for start, hint in INSTEAD.items() if key.startswith(start)][:1])
            raise ValueError(
                f"{key} is Detectron2's and has no effect here, got {brief(got[key])}; leave it out{instead}"
            )


def portable(cfg: CfgNode) -> dict[str, Any]:
    """The sections of a config, as JSON, with the keys that have an effect here, except those of `LOCAL_KEYS`."""
    unread = flat(get_cfg()).keys() - DETECTRON2_KEYS
    sections: dict[str, Any] = {}
    for key, value in flat(cfg).items():
        if key not in unread and key not in LOCAL_KEYS:
            *path, name = key.split(".")
            reduce(lambda section, part: section.setdefault(part, {}), path, sections)[name] = value
    return sections


def starting_config(cfg: CfgNode) -> CfgNode:
    """The config with SOLVER.INIT_WEIGHTS in the place of MODEL.WEIGHTS."""
    if cfg.SOLVER.INIT_WEIGHTS:
        cfg = cfg.clone()
        cfg.MODEL.WEIGHTS = "" if cfg.SOLVER.INIT_WEIGHTS == "fresh" else cfg.SOLVER.INIT_WEIGHTS
    return cfg


def _check_values(cfg: CfgNode) -> None:
    """Raise ValueError for a key without a value, or one that is NaN or infinite, which yacs lets pass."""
    for key, value in flat(cfg).items():
        if (value is None and key not in _MAY_BE_NONE) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{key} has no usable value, got {value}")
