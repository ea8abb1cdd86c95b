"""Parity of the full-size model under preset `released`, from the image to the gradients.

The weights are made by rule from the file's seed, written as a checkpoint in the released layout, converted, and loaded
as a user would load them. Shapes: P prompts of the one image, K tie-breakers, R = P x K queries.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openworldsam.checkpoint import convert_released, load_weights
from openworldsam.checkpoint.released import released_name
from openworldsam.config import load_config
from openworldsam.data.preprocessing import read_image, to_tensor
from openworldsam.inference import InferenceOptions, Queries, Question, infer, semantic_scores
from openworldsam.modeling import ImageFeatures, OpenWorldSAM
from openworldsam.modeling.image_encoder import resize_for_sam2
from openworldsam.modeling.prompt_encoders import BEiT3PromptEncoder
from openworldsam.parity.checks import (
    Check,
    Golden,
    close,
    close_in_norm,
    close_to_largest,
    equal,
    read_golden,
    same_areas,
)
from openworldsam.parity.postprocess import (
    NUM_CLASSES,
    check_instances,
    check_panoptic,
    coco_question,
    released_options,
)
from openworldsam.parity.rule_weights import rule_stream, save_rule_checkpoint

logger = logging.getLogger(__name__)

GRADIENT_ROUNDING = 5e-4
"""Relative to the largest value. The recorded gradients are fp32, up to 3.0e-4 from those in float64 (seed 3)."""


def rule_made_model(seed: int, folder: Path) -> OpenWorldSAM:
    """The full-size model of preset `released`, filled through the released layout and the converter.

    Dropout is 0, as in the recorded training step. Writes 7 GB into `folder`.
    """
    cfg = load_config(Path(__file__).parents[2] / "configs/presets/released.yaml")
    cfg.MODEL.ADAPTER.DROPOUT = 0.0
    checkpoint = folder / "model_final.pth"
    save_rule_checkpoint(OpenWorldSAM(cfg), cfg, seed, checkpoint)
    written = convert_released(checkpoint, folder)
    checkpoint.unlink()
    model = OpenWorldSAM(cfg)
    cfg.MODEL.WEIGHTS = str(written["adapter"])
    cfg.MODEL.SAM2.WEIGHTS = str(written["sam2"])
    cfg.MODEL.PROMPT_ENCODER.WEIGHTS = str(written["beit3"])
    load_weights(model, cfg)
    return model.eval()


def check_model(golden_file: str | Path, image: str | Path) -> list[Check]:
    """Compare every quantity of a `model_*.npz` file, which was recorded from this image.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, or the image is of another size.
    """
    golden = read_golden(golden_file)
    pixels = to_tensor(read_image(image))
    size = (int(golden["height"]), int(golden["width"]))
    if tuple(pixels.shape[1:]) != size:
        raise ValueError(f"{image} is {tuple(pixels.shape[1:])}, {golden_file} was recorded from an image of {size}")
    with tempfile.TemporaryDirectory() as folder:
        logger.info("making the weights for seed %d", golden["seed"])
        model = rule_made_model(int(golden["seed"]), Path(folder))
        with torch.no_grad():
            checks, features, embeddings = _check_encoders(model, pixels, golden)
            logger.info("encoders done")
            checks += _check_queries(model, features, embeddings, size, golden)
        logger.info("inference done")
        return checks + _check_training(model, features, embeddings, size, golden)


def _image_index(golden: Golden) -> Tensor:
    return torch.zeros(len(golden["categories"]), dtype=torch.long)


def _check_encoders(model: OpenWorldSAM, pixels: Tensor, golden: Golden) -> tuple[list[Check], ImageFeatures, Tensor]:
    """Preprocessing, both encoders and the projector."""
    sam_image = resize_for_sam2(pixels, model.image_encoder.image_size)
    sam_image = (sam_image - model.pixel_mean) / model.pixel_std
    beit_image = model.prompt_inputs([pixels])
    features = model.encode_images([pixels])
    ids = torch.from_numpy(golden["input_ids"])
    assert isinstance(model.prompt_encoder, BEiT3PromptEncoder)
    embeddings = model.prompt_encoder.encode_tokens(beit_image, ids, _image_index(golden))
    checks = [
        close("sam_image", sam_image[:, ::64, ::64], golden["sam_image_sample"]),
        close("beit_image", beit_image[0, :, ::16, ::16], golden["beit_image_sample"]),
        close("image_embed", features.embed[0, :, ::8, ::8], golden["image_embed_sample"]),
        close("high_res0", features.high_res[0][0, :, ::32, ::32], golden["high_res0_sample"]),
        close("high_res1", features.high_res[1][0, :, ::16, ::16], golden["high_res1_sample"]),
        close("cls", embeddings, golden["cls"]),
        close("projected", model.adapter.projector(embeddings), golden["projected"]),
    ]
    return checks, features, embeddings


def _check_queries(
    model: OpenWorldSAM, features: ImageFeatures, embeddings: Tensor, size: tuple[int, int], golden: Golden
) -> list[Check]:
    """Adapter, decoder, the four tasks and two-stage inference."""
    options = released_options(golden)
    index = _image_index(golden)
    tokens = model.decoder_tokens(features, embeddings, index)
    assert tokens.shared is not None  # the preset's fusion is broadcast
    queries = model.queries(features, embeddings)
    refined = model.refine(features, queries, options)
    confident = torch.nonzero(queries.scores >= options.score_threshold)[:, 0]
    question = coco_question(golden["categories"], size)
    return [
        close_in_norm("soft_prompt", tokens.shared, golden["soft_prompt"]),
        close("low_res", queries.logits[:, ::16, ::16], golden["low_res_sample"]),
        close("low_res_mean", queries.logits.mean(dim=(1, 2)), golden["low_res_mean"]),
        close("low_res_std", queries.logits.std(dim=(1, 2)), golden["low_res_std"]),
        close("iou", queries.predicted_iou, golden["iou"]),
        *_check_tasks(queries, question, options, golden),
        equal("two_stage_rows", confident, golden["two_stage_rows"]),
        close("two_stage_low_res", refined.logits[:, ::16, ::16], golden["two_stage_low_res_sample"]),
        close("two_stage_iou", refined.predicted_iou, golden["two_stage_iou"]),
        *check_instances("two_stage", refined, question, options, golden),
    ]


def _check_tasks(queries: Queries, question: Question, options: InferenceOptions, golden: Golden) -> list[Check]:
    """Semantic, panoptic, referring and instance segmentation."""
    pixels = question.size[0] * question.size[1]
    labels, scores = semantic_scores(queries, question, options)
    in_prompt_order = torch.searchsorted(labels, torch.from_numpy(golden["categories"]))
    results = infer([queries], ("semantic", "referring"), question, options)
    counts = torch.bincount(results["semantic"].map.flatten(), minlength=NUM_CLASSES)
    best, by_class = results["referring"], question.class_ids.argsort()  # the order of the recorded grounding
    return [
        close("sem_seg", scores[in_prompt_order, ::16, ::16], golden["sem_seg_sample"]),
        same_areas("sem_seg_argmax_counts", counts, golden["sem_seg_argmax_counts"], pixels),
        *check_panoptic(queries, question, options, golden),
        same_areas("grounding_area", best.masks.sum(dim=(1, 2))[by_class], golden["grounding_area"], pixels),
        close("grounding_score", best.scores[by_class], golden["grounding_score"]),
        *check_instances("instance", queries, question, options, golden),
    ]


def disc_targets(discs: np.ndarray, num_prompts: int, size: tuple[int, int]) -> list[Tensor]:
    """Ground truth made of discs.

    Args:
        discs: [N, 4], prompt, centre x and y as fractions of width and height, radius as one of the shorter side.
        num_prompts, size: P, (H, W).

    Returns:
        bool [N_p, H, W] for each prompt p.
    """
    height, width = size
    y, x = np.mgrid[:height, :width]
    prompt, cx, cy, r = np.reshape(discs, (-1, 4)).T[..., None, None]
    masks = (x - cx * width) ** 2 + (y - cy * height) ** 2 < (r * min(size)) ** 2
    return [torch.from_numpy(masks[prompt[:, 0, 0] == p]) for p in range(num_prompts)]


def _check_training(
    model: OpenWorldSAM, features: ImageFeatures, embeddings: Tensor, size: tuple[int, int], golden: Golden
) -> list[Check]:
    """One training step: matching, loss and the gradient of each trained tensor."""
    model.train()
    index = _image_index(golden)
    targets = disc_targets(golden["gt_discs"], len(index), size)
    with torch.no_grad():
        tokens = model.decoder_tokens(features, embeddings, index)
        logits = model.mask_decoder(features, tokens, single_mask=True)[0].unflatten(0, (len(targets), -1))
        costs, matches = model.criterion.costs(logits, targets), model.criterion.match(logits, targets)
        loss = model.losses(features, embeddings, index, targets)["loss_mask"]
    gradients = _exact_gradients(model, features, targets, golden)
    names = golden["grad_names"].tolist()
    missing = np.zeros(1)
    norms = np.array([np.linalg.norm(gradients.get(n, missing)) for n in names])
    projections = np.array(
        [np.vdot(rule_stream(f"grad:{n}", gradients[n].shape, 0).astype(np.float64), gradients[n]) for n in names]
    )
    return [
        close_to_largest("match_cost", torch.cat([c.flatten() for c in costs]), golden["match_cost"]),
        equal("match_query", matches.query, golden["match_query"]),
        equal("match_target", matches.target, golden["match_target"]),
        close_to_largest("loss_mask", loss.reshape(1), golden["loss_mask"].reshape(1)),
        equal("trained tensors", np.array([len(gradients)]), np.array([len(names)])),
        close_to_largest("grad_norms", norms, golden["grad_norms"], GRADIENT_ROUNDING),
        close_to_largest("grad_projections", projections, golden["grad_projections"], GRADIENT_ROUNDING),
    ]


def _exact_gradients(
    model: OpenWorldSAM, features: ImageFeatures, targets: list[Tensor], golden: Golden
) -> dict[str, np.ndarray]:
    """Compute the gradients in float64 from the recorded embeddings, by released name; leaves the model in float64.

    In fp32 they also depend on how the processor and its threads round: a unit of the projector is 2e-7 from the kink
    of its ReLU and may fall on either side.
    """
    model.adapter.double()
    model.mask_decoder.double()
    model.mask_decoder.prompt_encoder.pe_layer.float()  # SAM2 makes its coordinates in fp32
    precise = ImageFeatures(features.embed.double(), (features.high_res[0].double(), features.high_res[1].double()))
    embeddings = torch.from_numpy(golden["cls"]).double()
    model.losses(precise, embeddings, _image_index(golden), targets)["loss_mask"].backward()
    return {
        released_name(f"adapter.{name}"): parameter.grad.numpy()
        for name, parameter in model.adapter.named_parameters()
        if parameter.grad is not None
    }
