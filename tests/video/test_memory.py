"""The memory, frame by frame, equals SAM2's own video predictor on the whole clip."""

import numpy as np
import pytest
import torch
from hydra import compose
from hydra.utils import instantiate
from PIL import Image
from torch.nn import functional as F

from openworldsam.checkpoint import read_weights
from openworldsam.data.preprocessing import to_tensor
from openworldsam.modeling.image_encoder import resize_for_sam2
from openworldsam.video.memory import SAM2Memory, _memory_attention, _memory_encoder, read_video_weights

SIZE = (96, 160)
ABSENT = range(8, 11)


def frames(count):
    rng, (y, x) = np.random.default_rng(0), np.mgrid[: SIZE[0], : SIZE[1]]
    for number in range(count):
        frame = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        frame[disk(y, x, number)] = (255, 0, 0)
        yield frame


def disk(y, x, number):
    return (y - 40) ** 2 + (x - 30 - 3 * number) ** 2 < 400


def bias_of_presence(sam2):
    return sam2.sam_mask_decoder.pred_obj_score_head.layers[-1].bias


@pytest.mark.parametrize("sam2_video", ["sam2/sam2_hiera_t", "sam2.1/sam2.1_hiera_t"], indirect=True)
@torch.no_grad()
def test_it_equals_sam2s_own_predictor(video_predictor, sam2_video, tmp_path):
    """A clip longer than any memory, with an absence: the same mask logits, though we forget what SAM2 keeps."""
    model, clip = video_predictor.model, list(frames(20))
    for number, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / f"{number}.jpg")
    ours = SAM2Memory.from_file(model, read_video_weights(video_predictor.cfg))
    state = sam2_video.init_state(str(tmp_path))
    normalised = [(resize_for_sam2(to_tensor(f), 128) - model.pixel_mean) / model.pixel_std for f in clip]
    state.update(images=torch.stack(normalised), cached_features={})  # resized as ours, without JPEG's losses
    mask = disk(*np.mgrid[: SIZE[0], : SIZE[1]], 0)
    sam2_video.add_new_mask(state, 0, 1, mask)
    theirs = sam2_video.propagate_in_video(state)
    next(theirs)
    video_predictor.set_image(clip[0])
    memory = ours.begin(0, video_predictor.features, torch.from_numpy(mask)[None])
    for number in range(1, len(clip)):
        shift = {ABSENT.start: -5, ABSENT.stop: 5}.get(number, 0)
        for sam2 in (ours, sam2_video):
            bias_of_presence(sam2).add_(shift)
        video_predictor.set_image(clip[number])
        logits, presence = ours.carry_on(number, video_predictor.features, memory)
        _, _, expected = next(theirs)
        full = F.interpolate(logits[:, None], SIZE, mode="bilinear", align_corners=False)
        torch.testing.assert_close(full, expected, rtol=0, atol=1e-4)
        assert torch.equal(full > 0, expected > 0)
        assert (presence > 0) == (number not in ABSENT) == (full > 0).any()
    assert min(memory["non_cond_frame_outputs"]) == len(clip) - 15
    assert sum("maskmem_features" in kept for kept in memory["non_cond_frame_outputs"].values()) == 6


@torch.no_grad()
def test_what_is_remembered_counts(video_predictor):
    ours = SAM2Memory.from_file(video_predictor.model, read_video_weights(video_predictor.cfg))
    left, right = torch.zeros(2, *SIZE, dtype=torch.bool)
    left[:, :40], right[:, -40:] = True, True
    video_predictor.set_image(next(frames(1)))
    features = video_predictor.features
    (one, _), (other, _) = (ours.carry_on(1, features, ours.begin(0, features, mask[None])) for mask in (left, right))
    assert (one - other).abs().max() > 1e-3


def test_full_size_is_that_of_sam2s_configs():
    config = compose("configs/sam2.1/sam2.1_hiera_l.yaml").model
    for ours, theirs in (
        (_memory_attention(256, 64), config.memory_attention),
        (_memory_encoder(256), config.memory_encoder),
    ):
        shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in instantiate(theirs).state_dict().items()}


def test_the_image_model_is_shared_and_untouched(video_predictor):
    model = video_predictor.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours = SAM2Memory.from_file(model, read_video_weights(video_predictor.cfg))
    shared = {
        p.data_ptr() for name, p in ours.named_parameters() if name.startswith(("image_enc", "sam_", "no_mem_embed"))
    }
    assert shared <= {p.data_ptr() for p in model.parameters()}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(p.requires_grad for p in ours.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@torch.no_grad()
def test_half_precision(video_predictor, precision):
    cfg = video_predictor.cfg
    half = type(video_predictor)(cfg, opts=["MODEL.PRECISION", precision])
    logits = []
    for predictor in (video_predictor, half):
        ours = SAM2Memory.from_file(predictor.model, read_video_weights(cfg))
        mask = torch.from_numpy(disk(*np.mgrid[: SIZE[0], : SIZE[1]], 0))
        for number, frame in enumerate(frames(2)):
            predictor.set_image(frame)
            if number == 0:
                memory = ours.begin(0, predictor.features, mask[None])
        logits.append(ours.carry_on(1, predictor.features, memory)[0])
    assert ((logits[0] > 0) == (logits[1] > 0)).float().mean() > 0.9


def test_a_file_without_or_with_other_video_modules_is_named(predictor, video_predictor):
    with pytest.raises(ValueError, match=r"model_final\.pth has no video memory.*--tracker detection"):
        SAM2Memory.from_file(predictor.model, read_video_weights(predictor.cfg))
    file = read_weights(video_predictor.cfg.MODEL.WEIGHTS)
    state = file.components["sam2"]
    del state["memory_encoder.out_proj.bias"]
    state["maskmem_tpos_enc"] = state["maskmem_tpos_enc"][:5]
    with pytest.raises(
        ValueError, match=r"maskmem_tpos_enc is \(5, 1, 1, 8\).*; missing memory_encoder\.out_proj\.bias"
    ):
        SAM2Memory.from_file(video_predictor.model, file)
