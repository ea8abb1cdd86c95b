"""SAM2's video modules (memory attention, memory encoder, object pointers) around the weights of an image model.

Image encoder, SAM2 prompt encoder and mask decoder share their tensors with the `OpenWorldSAM`. A clip here has one
object: SAM2's masks of an object do not depend on other objects.

Shapes: B clips, C width, S feature side, M = 4S mask side, H, W size of the video.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from detectron2.config import CfgNode
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.transformer import RoPEAttention
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor
from torch.nn import functional as F

from openworldsam.checkpoint.layouts import WeightFile, read_weights
from openworldsam.checkpoint.loading import misfits
from openworldsam.checkpoint.writing import public_state
from openworldsam.modeling import ImageFeatures, OpenWorldSAM
from openworldsam.modeling.components import SAM2, SAM2_VIDEO, StateDict
from openworldsam.modeling.image_encoder import STRIDE
from openworldsam.modeling.mask_decoder import STABILITY_DELTA, STABILITY_THRESHOLD

ObjectMemory = dict[str, dict[int, dict[str, Any]]]
"""SAM2's memory of an object, in SAM2's layout: the frame where its mask was given, and the last frames."""
OPTIONS: dict[str, Any] = {
    "sigmoid_scale_for_mem_enc": 20.0,
    "sigmoid_bias_for_mem_enc": -10.0,
    "binarize_mask_from_pts_for_mem_enc": True,
    "use_mask_input_as_output_without_sam": True,
    "directly_add_no_mem_embed": True,
    "use_high_res_features_in_sam": True,
    "multimask_output_in_sam": True,
    "multimask_output_for_tracking": True,
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 1,
    "use_multimask_token_for_obj_ptr": True,
    "iou_prediction_use_sigmoid": True,
    "use_obj_ptrs_in_encoder": True,
    "only_obj_ptrs_in_the_past_for_eval": True,
    "use_mlp_for_obj_ptr_proj": True,
    "pred_obj_scores": True,
    "pred_obj_scores_mlp": True,
    "fixed_no_obj_ptr": True,
}
"""Arguments of `SAM2Base` that all public SAM2 video models share."""


class SAM2Memory(SAM2Base):
    """Carries the mask of an object from frame to frame, as the public SAM 2.0 and 2.1 video models do.

    The video modules, of SAM 2.1 or 2.0, are random; `from_file` fills them. The model, on its final
    device already, lends its encoder and decoder.
    """

    def __init__(self, model: OpenWorldSAM, *, is_2_1: bool = True) -> None:
        width, side = model.image_encoder.width, model.image_encoder.feature_side
        super().__init__(
            image_encoder=model.image_encoder.backbone,
            memory_attention=_memory_attention(width, side),
            memory_encoder=_memory_encoder(width),
            image_size=model.image_encoder.image_size,
            backbone_stride=STRIDE,
            **OPTIONS,
            no_obj_embed_spatial=is_2_1,
            add_tpos_enc_to_obj_ptrs=is_2_1,
            proj_tpos_enc_in_obj_ptrs=is_2_1,
            use_signed_tpos_enc_to_obj_ptrs=is_2_1,
            sam_mask_decoder_extra_args={
                "dynamic_multimask_via_stability": model.mask_decoder.dynamic_multimask,
                "dynamic_multimask_stability_delta": STABILITY_DELTA,
                "dynamic_multimask_stability_thresh": STABILITY_THRESHOLD,
            },
        )
        self.sam_prompt_encoder = model.mask_decoder.prompt_encoder
        self.to(model.device)
        self.load_state_dict(_decoder_state(model), strict=False, assign=True)
        self._autocast = model.autocast
        self._kept = torch.float16 if model.precision == "fp16" else torch.bfloat16
        empty = torch.empty(1, self.mem_dim, side, side, device=model.device)
        self._memory_positions = self.memory_encoder.position_encoding(empty)
        self.requires_grad_(False).eval()

    @classmethod
    def from_file(cls, model: OpenWorldSAM, file: WeightFile) -> SAM2Memory:
        """Build the memory from a SAM2 checkpoint; its weights tell 2.0 from 2.1.

        Raises:
            ValueError: the file has no video modules, or they do not fit the model.
        """
        weights = {name: t.float() for name, t in file.components["sam2"].items() if name.startswith(SAM2_VIDEO)}
        if not weights:
            raise ValueError(
                f"{file.path} has no video memory (memory_attention.*, ...): give SAM2's own checkpoint in "
                "MODEL.SAM2.WEIGHTS, or use --tracker detection"
            )
        memory = cls(model, is_2_1="no_obj_embed_spatial" in weights)
        shared = ("image_encoder.", "sam_prompt_encoder.")  # modules of the image model itself
        expected = {name: tensor for name, tensor in memory.state_dict().items() if not name.startswith(shared)}
        if problems := misfits({**_decoder_state(model), **weights}, expected):
            raise ValueError(f"the video memory of {file.path} does not fit the configured sam2: {problems}")
        memory.load_state_dict(weights, strict=False)
        return memory

    def video_state(self) -> StateDict:
        """Tensors of the video modules, which the image model does not have."""
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(SAM2_VIDEO)}

    def begin(self, frame: int, features: ImageFeatures, masks: Tensor) -> ObjectMemory:
        """Start the memory of one object in each of B clips, given its mask bool [B, H, W] in frame number `frame`."""
        size = (self.image_size, self.image_size)
        given = F.interpolate(masks[:, None].float(), size, mode="bilinear", align_corners=False, antialias=True)
        with self._autocast():
            seen = self._seen(features)
            out = self.track_step(
                **seen,
                frame_idx=frame,
                is_init_cond_frame=True,
                point_inputs=None,
                mask_inputs=(given >= 0.5).float(),
                output_dict={},
                num_frames=sys.maxsize,
                run_mem_encoder=False,
            )
            # like SAM2's predictor, encode the mask at the resolution of the decoder's masks
            out["maskmem_features"], _ = self._encode_new_memory(
                current_vision_feats=seen["current_vision_feats"],
                feat_sizes=seen["feat_sizes"],
                pred_masks_high_res=F.interpolate(out["pred_masks"], size, mode="bilinear", align_corners=False),
                object_score_logits=out["object_score_logits"],
                is_mask_from_pts=True,
            )
        return {"cond_frame_outputs": {frame: self._compact(out)}, "non_cond_frame_outputs": {}}

    def carry_on(self, frame: int, features: ImageFeatures, memory: ObjectMemory) -> tuple[Tensor, Tensor]:
        """Find the objects in frame number `frame`; their memory gains it and loses what SAM2 will not read again.

        Returns:
            mask logits [B, M, M], -1024 where an object is absent, and the logits of their presence [B].
        """
        with self._autocast():
            out = self.track_step(
                **self._seen(features),
                frame_idx=frame,
                is_init_cond_frame=False,
                point_inputs=None,
                mask_inputs=None,
                output_dict=memory,
                num_frames=sys.maxsize,
            )
        recent = memory["non_cond_frame_outputs"]
        recent[frame] = self._compact(out)
        # SAM2 reads the memories of the last num_maskmem - 1 frames, and the pointers of more
        recent.get(frame - self.num_maskmem + 1, {}).pop("maskmem_features", None)
        recent.pop(frame - self.max_obj_ptrs_in_encoder + 1, None)
        return out["pred_masks"][:, 0].float(), out["object_score_logits"][:, 0].float()

    def _seen(self, features: ImageFeatures) -> dict[str, Any]:
        """Convert features to the arguments of SAM2's video model, each level [h * w, 1, c]."""
        raw = features.embed - self.no_mem_embed.permute(2, 0, 1)  # which marks a still image
        levels = [*features.high_res, raw]
        positions = self.image_encoder.neck.position_encoding(raw)
        return {
            "current_vision_feats": [level.flatten(2).permute(2, 0, 1) for level in levels],
            "current_vision_pos_embeds": [positions.flatten(2).permute(2, 0, 1)],
            "feat_sizes": [tuple(level.shape[-2:]) for level in levels],
        }

    def _compact(self, out: dict[str, Any]) -> dict[str, Any]:
        """Select what is kept of a frame; the memory in half precision, as in SAM2's predictor."""
        return {
            "maskmem_features": out["maskmem_features"].to(self._kept),
            "maskmem_pos_enc": [self._memory_positions.expand(len(out["obj_ptr"]), -1, -1, -1)],
            "obj_ptr": out["obj_ptr"],
        }


def _decoder_state(model: OpenWorldSAM) -> StateDict:
    """Tensors of the image model that SAM2's video model uses besides the encoders; not copies."""
    shared = public_state(model, SAM2).items()
    return {name: tensor for name, tensor in shared if name.startswith(("no_mem_embed", "sam_mask_decoder."))}


def read_video_weights(cfg: CfgNode) -> WeightFile:
    """Read the file of the model's SAM2 weights again, for the video modules that images do not need.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    files = (read_weights(path) for path in (cfg.MODEL.WEIGHTS, cfg.MODEL.SAM2.WEIGHTS) if path)
    return next(file for file in files if "sam2" in file.components)


def _memory_attention(width: int, side: int) -> MemoryAttention:
    """Build the four layers that fuse a frame with the memory."""
    common = {"embedding_dim": width, "num_heads": 1, "downsample_rate": 1, "dropout": 0.1, "feat_sizes": (side, side)}
    layer = MemoryAttentionLayer(
        activation="relu",
        d_model=width,
        dim_feedforward=2048,
        dropout=0.1,
        pos_enc_at_attn=False,
        pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False,
        self_attention=RoPEAttention(**common),
        cross_attention=RoPEAttention(**common, rope_k_repeat=True, kv_in_dim=width // 4),
    )
    return MemoryAttention(d_model=width, pos_enc_at_input=True, layer=layer, num_layers=4)


def _memory_encoder(width: int) -> MemoryEncoder:
    """Build the encoder from a frame's features and a mask to a memory of C/4 channels."""
    return MemoryEncoder(
        in_dim=width,
        out_dim=width // 4,
        position_encoding=PositionEmbeddingSine(width // 4, warmup_cache=False),
        mask_downsampler=MaskDownSampler(embed_dim=width, kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(dim=width), num_layers=2),
    )
