import pytest
import torch
from hydra import compose
from hydra.utils import instantiate
from sam2.build_sam import build_sam2  # noqa: F401  (initialises the package's configs)

from openworldsam.modeling.image_encoder import SAM2ImageEncoder
from openworldsam.modeling.prompt_encoders import BEiT3PromptEncoder

TINY_TRUNK = {
    "embed_dim": 16,
    "num_heads": 1,
    "stages": (1, 1, 2, 1),
    "global_att_blocks": (3,),
    "window_spec": (8, 4, 4, 4),
}


@torch.no_grad()
def test_the_image_encoder_equals_the_sam2_package():
    torch.manual_seed(0)
    overrides = [
        f"++model.image_encoder.trunk.{k}={str(list(v)) if isinstance(v, tuple) else v}" for k, v in TINY_TRUNK.items()
    ]
    overrides += ["++model.image_encoder.neck.backbone_channel_list=[128,64,32,16]", "++model.image_size=128"]
    theirs = instantiate(compose("configs/sam2/sam2_hiera_l.yaml", overrides=overrides).model).eval()
    ours = SAM2ImageEncoder(image_size=128, **TINY_TRUNK).eval()
    ours.backbone.load_state_dict(theirs.image_encoder.state_dict())
    ours.conv_s0.load_state_dict(theirs.sam_mask_decoder.conv_s0.state_dict())
    ours.conv_s1.load_state_dict(theirs.sam_mask_decoder.conv_s1.state_dict())
    ours.no_mem_embed.data = theirs.no_mem_embed.data
    images = torch.randn(2, 3, 128, 128)
    features = ours(images)
    level0, level1, level2 = theirs.forward_image(images)["backbone_fpn"]
    torch.testing.assert_close(features.high_res[0], level0)
    torch.testing.assert_close(features.high_res[1], level1)
    torch.testing.assert_close(features.embed, level2 + theirs.no_mem_embed.view(1, -1, 1, 1))
    assert ours.feature_side == 8 and features.embed.shape == (2, 256, 8, 8)


def encoder(**options):
    torch.manual_seed(0)
    module = BEiT3PromptEncoder(
        image_size=32, embed_dim=32, num_layers=2, num_heads=2, ffn_dim=64, vocab_size=100, **options
    ).eval()
    torch.nn.init.normal_(module.beit3.vision_embed.cls_token)
    return module


@torch.no_grad()
def test_the_embedding_depends_on_text_and_image_but_text_alone_does_not_see_the_image():
    images = torch.randn(2, 3, 32, 32)
    same_text = torch.tensor([[0, 7, 2], [0, 7, 2]])
    joint = encoder().encode_tokens(images, same_text, torch.tensor([0, 1]))
    assert (joint[0] - joint[1]).abs().max() > 1e-3
    text_only = encoder(use_image=False).encode_tokens(images, same_text, torch.tensor([0, 1]))
    torch.testing.assert_close(text_only[0], text_only[1])
    other = encoder(use_image=False).encode_tokens(images, torch.tensor([[0, 8, 2]]), torch.tensor([0]))
    assert (text_only[0] - other[0]).abs().max() > 1e-3


def test_an_id_beyond_the_table_is_an_error():
    with pytest.raises(ValueError, match="token id 100 is beyond the 100 entries"):
        encoder().encode_tokens(torch.randn(1, 3, 32, 32), torch.tensor([[0, 100, 2]]), torch.tensor([0]))
