"""Every configuration key of OpenWorldSAM, once: its meaning, unit and default.

The defaults are SAM2 Hiera-L with BEiT-3-L and the preset `paper`. A preset (`configs/presets/*.yaml`) or an
experiment (`configs/*/*.yaml`) states only what differs. Unknown keys are errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

_MAY_BE_NONE = ("WEIGHT_DECAY_BIAS",)
"""Detectron2's keys whose default is None."""


def add_openworldsam_config(cfg: CfgNode) -> None:
    """Add the project's keys with their defaults to a Detectron2 config, in place."""
    # Name of the preset, recorded with every result: paper, released, improved, or a name of your own.
    cfg.PRESET = "paper"

    cfg.INPUT.FORMAT = "RGB"
    # Antialias when an image shrinks. The authors' model was trained without (docs/deviations.md, resizing).
    cfg.INPUT.ANTIALIAS = False

    cfg.MODEL.META_ARCHITECTURE = "OpenWorldSAM"
    # A full checkpoint in the released layout, or an adapter file of ours (then give both encoder files too).
    cfg.MODEL.WEIGHTS = ""
    # Arithmetic of the networks: fp32, bf16 or fp16 (autocast; the frozen matrices are kept in it, the adapter in
    # fp32). Scores come out rounded in half precision (bf16 near 0.7: steps of 0.004), so that thresholds and ties may
    # fall otherwise than in fp32.
    cfg.MODEL.PRECISION = "fp32"
    # torch.compile the networks: the first image of a size takes minutes, later ones less time. Needs a C++ compiler.
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
    """Sizes of the frozen encoders and where their weights lie."""
    cfg.MODEL.SAM2 = CfgNode()
    # SAM2 weights: Meta's .pt (2.0 or 2.1), an EVF-SAM2 file, or the .safetensors that convert_weights.py writes.
    cfg.MODEL.SAM2.WEIGHTS = ""
    # Side of the square input in pixels, a multiple of 32; the image is squashed to it.
    cfg.MODEL.SAM2.IMAGE_SIZE = 1024
    # Hiera trunk. The defaults are Hiera-L; configs/encoders/ has tiny, small and base+.
    cfg.MODEL.SAM2.EMBED_DIM = 144
    cfg.MODEL.SAM2.NUM_HEADS = 2
    cfg.MODEL.SAM2.STAGES = [2, 6, 36, 4]
    cfg.MODEL.SAM2.GLOBAL_ATT_BLOCKS = [23, 33, 43]
    cfg.MODEL.SAM2.WINDOW_SPEC = [8, 4, 16, 8]
    cfg.MODEL.SAM2.POS_EMBED_SIZE = [7, 7]
    # Channels C of the image features, of the adapter and of the mask decoder; a multiple of 16.
    cfg.MODEL.SAM2.WIDTH = 256

    cfg.MODEL.PROMPT_ENCODER = CfgNode()
    # Name in PROMPT_ENCODER_REGISTRY.
    cfg.MODEL.PROMPT_ENCODER.NAME = "BEiT3PromptEncoder"
    # BEiT-3 weights: Microsoft's .pth, an EVF-SAM2 file or folder, or the .safetensors of convert_weights.py.
    cfg.MODEL.PROMPT_ENCODER.WEIGHTS = ""
    # The sentencepiece file beit3.spm.
    cfg.MODEL.PROMPT_ENCODER.TOKENIZER = "weights/beit3.spm"
    # Side of the square input in pixels, a multiple of the patch size.
    cfg.MODEL.PROMPT_ENCODER.IMAGE_SIZE = 224
    cfg.MODEL.PROMPT_ENCODER.PATCH_SIZE = 16
    # Width D of the prompt embedding, number of layers, attention heads, hidden width of the feed-forward net.
    cfg.MODEL.PROMPT_ENCODER.EMBED_DIM = 1024
    cfg.MODEL.PROMPT_ENCODER.NUM_LAYERS = 24
    cfg.MODEL.PROMPT_ENCODER.NUM_HEADS = 16
    cfg.MODEL.PROMPT_ENCODER.FFN_DIM = 4096
    # Rows of the text embedding table.
    cfg.MODEL.PROMPT_ENCODER.VOCAB_SIZE = 64010
    # Longest prompt in tokens, both end tokens included; longer prompts are cut, with a warning. At most 1022.
    cfg.MODEL.PROMPT_ENCODER.MAX_TOKENS = 512
    # False: the text alone is encoded (Table 4, row 3).
    cfg.MODEL.PROMPT_ENCODER.USE_IMAGE = True
    # True: the prompt encoder is trained too (Table 5, E4 and E6).
    cfg.MODEL.PROMPT_ENCODER.TRAINABLE = False
    # Prompts encoded at a time; bounds memory, changes no result.
    cfg.MODEL.PROMPT_ENCODER.CHUNK = 32


def _add_adapter_config(cfg: CfgNode) -> None:
    """The trained part and its loss (paper Sec. 3)."""
    cfg.MODEL.ADAPTER = CfgNode()
    # K of Eq. 1. 0: no tie-breakers, one query per prompt (Table 5, E1).
    cfg.MODEL.ADAPTER.NUM_TIE_BREAKERS = 20
    # Standard deviation of their normal initialisation.
    cfg.MODEL.ADAPTER.TIE_BREAKER_STD = 1.0
    # Layers of the soft-prompt transformer. 0: none (Table 5, E1 to E4).
    cfg.MODEL.ADAPTER.NUM_LAYERS = 3
    cfg.MODEL.ADAPTER.NUM_HEADS = 8
    cfg.MODEL.ADAPTER.DROPOUT = 0.1
    # Decoder tokens of query i, from its input q_i and the transformer's output q'_i:
    # replace {q'_i} (the paper), add {q_i + q'_i}, broadcast {q_i + q'_j for every j it interacts with}
    # (what the released code computes).
    cfg.MODEL.ADAPTER.FUSION = "replace"
    # Queries that attend to each other: those of one prompt, or those of all prompts of an image (released code).
    cfg.MODEL.ADAPTER.INTERACTION = "prompt"
    # Add SAM2's positional encoding to the keys of the cross-attention.
    cfg.MODEL.ADAPTER.KEY_POSITIONS = False

    cfg.MODEL.MASK_DECODER = CfgNode()
    # In inference, when SAM2's single mask is unstable, take the best of its three others instead.
    cfg.MODEL.MASK_DECODER.DYNAMIC_MULTIMASK = True
    # Query rows decoded at a time; bounds memory (about 50 MB per row at 1024 px in fp32), changes no result.
    # Where `broadcast` gives a row more than 512 tokens, fewer rows go together.
    cfg.MODEL.MASK_DECODER.CHUNK = 16

    cfg.MODEL.CRITERION = CfgNode()
    # Weights of the losses and, equally, of the matching costs. A loss of weight 0 is not computed.
    cfg.MODEL.CRITERION.MASK_WEIGHT = 20.0
    cfg.MODEL.CRITERION.DICE_WEIGHT = 0.0
    cfg.MODEL.CRITERION.FOCAL_ALPHA = 0.25
    cfg.MODEL.CRITERION.FOCAL_GAMMA = 2.0
    # A prompt's loss is the sum over its matched pairs divided by: its ground-truth masks (targets) or the
    # pairs (matched). They differ only when a prompt has more than K masks.
    cfg.MODEL.CRITERION.DIVISOR = "targets"


def _add_inference_config(cfg: CfgNode) -> None:
    """From mask logits and scores to results (paper Sec. 3 "Inference", A.2)."""
    cfg.MODEL.INFERENCE = CfgNode()
    # Tasks that the meta-architecture's forward pass answers.
    cfg.MODEL.INFERENCE.TASKS = ["semantic", "instance", "panoptic"]
    # Smallest predicted IoU: >= for instances and two-stage, > for panoptic.
    cfg.MODEL.INFERENCE.SCORE_THRESHOLD = 0.7
    # A mask whose IoU with a better one exceeds this is removed.
    cfg.MODEL.INFERENCE.NMS_THRESHOLD = 0.5
    # Instances: compare masks within a class (mask), or boxes across all classes (box, the released code).
    cfg.MODEL.INFERENCE.INSTANCE_NMS = "mask"
    # Keep at most this many instances of an image before the threshold; 0: all.
    cfg.MODEL.INFERENCE.TOP_K = 0
    # Panoptic: drop a segment of which less than this fraction remains visible.
    cfg.MODEL.INFERENCE.OVERLAP_THRESHOLD = 0.5
    # Weight of a query in the semantic sum: softmax (the released code) or score (its predicted IoU).
    cfg.MODEL.INFERENCE.SEMANTIC_WEIGHT = "score"
    # Feed the masks back as mask prompts and decode once more.
    cfg.MODEL.INFERENCE.TWO_STAGE = False
    # Rows that are refined: confident (score >= SCORE_THRESHOLD; the others vanish) or all.
    cfg.MODEL.INFERENCE.TWO_STAGE_KEEP = "confident"


def _add_training_config(cfg: CfgNode) -> None:
    """Data and schedule (paper Sec. 4, A.1)."""
    # Seed of the adapter's initialisation, the order of images and all that is drawn.
    cfg.SEED = 42
    # Most classes that an image is asked about in a visit; 0: all.
    cfg.INPUT.MAX_PROMPTS = 6
    # Augmentations; the paper trains without.
    cfg.INPUT.FLIP = False
    cfg.INPUT.LARGE_SCALE_JITTER = False
    # Folder that tools/cache_features.py has filled for DATASETS.TRAIN: the prompt encoder is then not loaded.
    cfg.DATASETS.FEATURE_CACHE = ""
    cfg.DATASETS.TRAIN = ["coco_2017_train_panoptic_openworldsam"]
    # YAML or JSON files, each of which describes a dataset of your own; datasets/README.md, "Your own data".
    cfg.DATASETS.OWN = []
    # Largest share of images that may turn out unreadable; the first 20 are forgiven.
    cfg.DATALOADER.MAX_SKIPPED = 0.01
    # What a training starts from, if not from MODEL.WEIGHTS, which evaluation uses: an adapter file, or fresh.
    cfg.SOLVER.INIT_WEIGHTS = ""
    # AdamW, no warm-up; norms without weight decay; the global gradient norm is clipped to CLIP_VALUE.
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.005
    # Images of a step, over all processes and accumulated parts.
    cfg.SOLVER.IMS_PER_BATCH = 8
    # Parts into which each process divides its images of a step; the gradients are the same, memory is less.
    cfg.SOLVER.ACCUMULATE = 1
    # 25 epochs of 104,000 images in batches of 8; drops by 10 at 89 % and 96 %.
    cfg.SOLVER.MAX_ITER = 325_000
    cfg.SOLVER.STEPS = [289_250, 312_000]
    cfg.SOLVER.GAMMA = 0.1
    cfg.SOLVER.WARMUP_ITERS = 0
    # In steps: the training state is saved, a line of log written, a picture of ground truth and prediction drawn
    # (0: never). TEST.EVAL_PERIOD evaluates on DATASETS.TEST.
    cfg.SOLVER.CHECKPOINT_PERIOD = 5_000
    cfg.SOLVER.LOG_PERIOD = 20
    cfg.SOLVER.PICTURE_PERIOD = 0


def _add_evaluation_config(cfg: CfgNode) -> None:
    """What evaluation asks about each image of DATASETS.TEST; every result says which protocol it is of."""
    # Classes that an image is asked about: oracle (those that it has, the paper), global (the whole vocabulary), or
    # present+absent (those that it has and some that it has not, with the false-positive rate of the latter).
    cfg.TEST.PROTOCOL = "oracle"
    # Absent classes per image under present+absent; 0: as many as it is asked of those that it has.
    cfg.TEST.NUM_ABSENT = 0
    # True: never more of an image's own classes than the released code asks, drawn with its seed: 20 of COCO and
    # ADE20K-150, 18 of ScanNet panoptic. What is there and not asked is missed.
    cfg.TEST.PROMPT_CAPS = False
    # Text that asks for a class; {name} is its name.
    cfg.TEST.TEMPLATE = "{name}"
    # True: of a name that is a list, such as ADE20K's "road, route", the first alone.
    cfg.TEST.FIRST_SYNONYM = False
    # True: "potted plant" for VOC's "pottedplant"; evaluation/prompt_text.py has the list.
    cfg.TEST.READABLE_NAMES = False
    # Sentences of each object of a referring dataset: first (the released code) or all, those of an image jointly;
    # first_alone or all_alone: each by itself, which differs with INTERACTION `image`.
    cfg.TEST.SENTENCES = "first"
    # Images of a forward pass, per process.
    cfg.TEST.IMS_PER_BATCH = 1
    # An image with more prompts than this is decoded so many at a time, so that memory does not grow with the
    # vocabulary; changes no result. 0: all at once, as always with INTERACTION `image` and two-stage `confident`.
    cfg.TEST.PROMPT_CHUNK = 32
    # Evaluate on the first so many images of each dataset; 0: on all.
    cfg.TEST.MAX_IMAGES = 0


def _add_shapes_config(cfg: CfgNode) -> None:
    """The datasets shapes_*: `openworldsam.data.shapes.World`, a world made by formula; the defaults are the hardest.

    Names are as in a World. Sizes are in pixels; what is said to be a probability or a fraction lies in 0..1.
    """
    # Every split draws scenes of its own from this seed; another one gives splits that nobody has seen.
    cfg.DATASETS.SHAPES_SEED = 0
    cfg.DATASETS.SHAPES = CfgNode()
    # Side of a scene.
    cfg.DATASETS.SHAPES.SIZE = 256
    # Fewest and most things, and regions of stuff, of a scene.
    cfg.DATASETS.SHAPES.NUM_THINGS = [1, 10]
    cfg.DATASETS.SHAPES.NUM_STUFF = [2, 5]
    # What there is. Of the splits, only shapes_novel_val has hearts, hourglasses and some pairs of colour and shape.
    cfg.DATASETS.SHAPES.SHAPES = ["circle", "ellipse", "square", "triangle", "star", "ring", "cross", "arrow"]
    cfg.DATASETS.SHAPES.SHAPES += ["crescent", "drop", "heart", "hourglass"]
    cfg.DATASETS.SHAPES.COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"]
    cfg.DATASETS.SHAPES.COLOURS += ["white", "black"]
    cfg.DATASETS.SHAPES.TEXTURES = ["grass", "water", "sand", "sky", "brick", "snow", "stone", "wood"]
    # Smallest and largest diameter of a thing, from 6 to SIZE.
    cfg.DATASETS.SHAPES.THING_SIZE = [12, 128]
    # Largest fraction of a thing that others may hide.
    cfg.DATASETS.SHAPES.MAX_HIDDEN = 0.6
    # Probability that a thing repeats an earlier one's shape, that it touches one, that a large one is slender.
    cfg.DATASETS.SHAPES.SAME_KIND = 0.4
    cfg.DATASETS.SHAPES.TOUCHING = 0.4
    cfg.DATASETS.SHAPES.THIN = 0.2
    # Probability that regions of stuff are parted by a band that is void.
    cfg.DATASETS.SHAPES.VOID = 0.3
    # Largest relative change of brightness over a scene, and standard deviation of blur (pixels) and noise (0..255).
    cfg.DATASETS.SHAPES.LIGHTING = 0.3
    cfg.DATASETS.SHAPES.BLUR = 0.8
    cfg.DATASETS.SHAPES.NOISE = 9.0


def load_config(path: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Read a YAML config with the project's keys.

    Args:
        path: the YAML file; its `_BASE_` entries are read relative to it.
        opts: KEY VALUE pairs that override it, as on a command line.

    Raises:
        FileNotFoundError: there is no such file.
        KeyError: a key that does not exist.
        ValueError: a value of the wrong type, or an odd number of `opts`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"config file {path} not found; the configs that ship are under configs/")
    cfg = get_cfg()
    add_openworldsam_config(cfg)
    try:
        cfg.merge_from_file(str(path))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path} is not a config file: {error}") from error
    merge_options(cfg, opts)
    return cfg


def config_value(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key, such as "MODEL.SAM2.WEIGHTS"."""
    return reduce(getattr, key.split("."), cfg)


def merge_options(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Override keys of a config, in place.

    Args:
        cfg: the config.
        opts: KEY VALUE pairs, as on a command line.

    Raises:
        KeyError: a key that does not exist.
        ValueError: a value of the wrong type, or an odd number of words.
    """
    if len(opts) % 2:
        raise ValueError(f"options come in pairs KEY VALUE, got {len(opts)} words: {' '.join(map(str, opts))}")
    try:
        cfg.merge_from_list(list(opts))
    except AssertionError as error:  # yacs asserts on an unknown key of a list
        raise KeyError(f"{error}; openworldsam/config.py lists the keys") from None
    _check_values(cfg)


def _check_values(cfg: CfgNode, before: str = "") -> None:
    """Raise ValueError for a key without a value, or one that is NaN or infinite, which yacs lets pass."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            _check_values(value, f"{before}{key}.")
        elif (value is None and key not in _MAY_BE_NONE) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{before}{key} has no usable value, got {value}")
