"""SAM2's own video predictor at the size of configs/tiny.yaml with random weights, and our model with the same."""

import cv2
import pytest
import torch
from sam2.build_sam import build_sam2_video_predictor

from openworldsam import OpenWorldSAMPredictor

SIZES = {
    "image_size": 128,
    "image_encoder.trunk.embed_dim": 16,
    "image_encoder.trunk.num_heads": 1,
    "image_encoder.trunk.stages": [1, 1, 2, 1],
    "image_encoder.trunk.global_att_blocks": [3],
    "+image_encoder.trunk.window_spec": [8, 4, 4, 4],
    "image_encoder.neck.position_encoding.num_pos_feats": 32,
    "image_encoder.neck.d_model": 32,
    "image_encoder.neck.backbone_channel_list": [128, 64, 32, 16],
    "memory_attention.d_model": 32,
    "memory_attention.layer.d_model": 32,
    "memory_attention.layer.self_attention.embedding_dim": 32,
    "memory_attention.layer.self_attention.feat_sizes": [8, 8],
    "memory_attention.layer.cross_attention.embedding_dim": 32,
    "memory_attention.layer.cross_attention.feat_sizes": [8, 8],
    "memory_attention.layer.cross_attention.kv_in_dim": 8,
    "memory_encoder.out_dim": 8,
    "+memory_encoder.in_dim": 32,
    "memory_encoder.position_encoding.num_pos_feats": 8,
    "+memory_encoder.mask_downsampler.embed_dim": 32,
    "memory_encoder.fuser.layer.dim": 32,
}
"""Where the tiny model differs from SAM2's config."""


@pytest.fixture(scope="session")
def sam2_video(request):
    """SAM2VideoPredictor as SAM2 builds it from a config, by default that of 2.1."""
    config = getattr(request, "param", "sam2.1/sam2.1_hiera_t")
    overrides = [f"{'+' * key.startswith('+')}model.{key.lstrip('+')}={value}" for key, value in SIZES.items()]
    torch.manual_seed(0)
    video = build_sam2_video_predictor(f"configs/{config}.yaml", device="cpu", hydra_overrides_extra=overrides)
    video.fill_hole_area = 0  # filling needs a CUDA extension
    with torch.no_grad():
        for parameter in video.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # norms, biases and zeros too
        video.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.add_(1)
    return video


@pytest.fixture(scope="session")
def write_video():
    """Write BGR frames into a video file."""

    def write(path, frames, codec="mp4v"):
        size = frames[0].shape[1::-1]
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 12.5, size)
        for frame in frames:
            writer.write(frame)
        writer.release()

    return write


@pytest.fixture
def video_predictor(sam2_video, tiny_cfg, tmp_path):
    """The tiny image model with that SAM2, from a full checkpoint; adapter and BEiT-3 are rule-made."""
    full = torch.load(tiny_cfg.MODEL.WEIGHTS, weights_only=True)
    for name, tensor in sam2_video.state_dict().items():
        full["model"][f"visual_model.{name}"] = tensor
    torch.save(full, tmp_path / "model_final.pth")
    return OpenWorldSAMPredictor(tiny_cfg, opts=["MODEL.WEIGHTS", str(tmp_path / "model_final.pth")])
