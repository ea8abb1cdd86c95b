"""Every public layout in its publisher's exact format, small."""

import argparse
import json
import re

import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import save_file
from sam2.build_sam import build_sam2
from torch import nn
from torchscale.architecture.config import EncoderConfig
from torchscale.model.BEiT3 import BEiT3

TINY_TRUNK = {
    "embed_dim": 16,
    "num_heads": 1,
    "stages": [1, 1, 2, 1],
    "global_att_blocks": [3],
    "window_spec": [8, 4, 4, 4],
}


def filled(state, seed):
    """Random values, so that no two tensors are equal."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def sam2_model(version, **trunk):
    """The sam2 package's own model with its video modules, but a small trunk."""
    trunk = {**TINY_TRUNK, **trunk}
    width = trunk["embed_dim"]
    config = {"2.0": "configs/sam2/sam2_hiera_l.yaml", "2.1": "configs/sam2.1/sam2.1_hiera_l.yaml"}[version]
    overrides = [
        "++model.image_size=128",
        "++model.memory_attention.num_layers=1",
        "++model.memory_attention.layer.dim_feedforward=64",
        f"++model.image_encoder.neck.backbone_channel_list={[8 * width, 4 * width, 2 * width, width]}",
        *(f"++model.image_encoder.trunk.{key}={value}" for key, value in trunk.items()),
    ]
    return build_sam2(config, None, device="cpu", hydra_overrides_extra=overrides)


def sam2_state(version, seed=1, **trunk):
    return filled(sam2_model(version, **trunk).state_dict(), seed)


def beit3_model(width=32):
    config = EncoderConfig(
        img_size=32,
        patch_size=16,
        vocab_size=300,
        multiway=True,
        layernorm_embedding=False,
        normalize_output=True,
        no_output_layer=True,
        drop_path_rate=0,
        encoder_embed_dim=width,
        encoder_attention_heads=2,
        encoder_ffn_embed_dim=64,
        encoder_layers=2,
        max_source_positions=1024,
    )
    return BEiT3(config)


def beit3_state(width=32, seed=2):
    return filled(with_prefix("beit3.", beit3_model(width).state_dict()), seed)


def adapter_shapes(embed=32, width=256, queries=4, layers=3):
    """Names and shapes of the released checkpoint's adapter."""
    shapes = {
        "text_hidden_fcs.0.0.weight": (embed, embed),
        "text_hidden_fcs.0.0.bias": (embed,),
        "text_hidden_fcs.0.2.weight": (width, embed),
        "text_hidden_fcs.0.2.bias": (width,),
        "positional_tokens": (queries, width),
    }
    for layer in (f"cross_attention_transformer.layers.{i}." for i in range(layers)):
        for norm in ("self_attn_norm", "cross_attn_norm", "mlp_norm"):
            shapes |= {f"{layer}{norm}.weight": (width,), f"{layer}{norm}.bias": (width,)}
        for attention in ("self_attn", "cross_attn"):
            shapes[f"{layer}{attention}.in_proj_weight"] = (3 * width, width)
            shapes[f"{layer}{attention}.in_proj_bias"] = (3 * width,)
            shapes[f"{layer}{attention}.out_proj.weight"] = (width, width)
            shapes[f"{layer}{attention}.out_proj.bias"] = (width,)
        shapes |= {f"{layer}mlp.0.weight": (4 * width, width), f"{layer}mlp.0.bias": (4 * width,)}
        shapes |= {f"{layer}mlp.3.weight": (width, 4 * width), f"{layer}mlp.3.bias": (width,)}
    return shapes


def released_adapter(seed=3, **sizes):
    return filled({name: torch.empty(shape) for name, shape in adapter_shapes(**sizes).items()}, seed)


def our_adapter(released):
    """The released checkpoint's adapter under our names."""
    state = {}
    for name, tensor in released.items():
        name = name.replace("text_hidden_fcs.0.", "projector.")
        name = name.replace("positional_tokens", "tie_breakers").replace("cross_attention_transformer", "soft_prompt")
        state[f"adapter.{name}"] = tensor
    return state


def with_prefix(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def evf_projector(seed=4):
    shapes = {name: shape for name, shape in adapter_shapes().items() if name.startswith("text_hidden_fcs")}
    return filled({name: torch.empty(shape) for name, shape in shapes.items()}, seed)


def evf_state(sam2, beit3, projector):
    """EVF-SAM2: both encoders and its own projector, all under its names."""
    return {**with_prefix("visual_model.", sam2), **with_prefix("mm_extractor.", beit3), **projector}


def released_state(sam2, beit3, adapter):
    """As the official code saves it: both encoders twice, and an unused projector."""
    evf = evf_state(sam2, beit3, evf_projector())
    encoders = {name: tensor for name, tensor in evf.items() if not name.startswith("text_hidden_fcs")}
    return {**encoders, **adapter, **with_prefix("evf_sam2.", evf)}


def retrieval_heads():
    """The heads that BEiT-3's published variants add to the backbone."""
    shapes = {"mlm_head.weight": (300, 32), "mlm_head.bias": (300,), "mim_head.weight": (64, 32)}
    shapes |= {"language_head.weight": (32, 32), "vision_head.weight": (32, 32), "logit_scale": ()}
    return filled({name: torch.empty(shape) for name, shape in shapes.items()}, 5)


def write_shards(folder, state, suffix):
    """Two shards and their index, as Hugging Face writes them; returns the index."""
    folder.mkdir()
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    index = {}
    for i, shard in enumerate(names):
        part = {name: tensor for j, (name, tensor) in enumerate(state.items()) if j % 2 == i}
        index |= dict.fromkeys(part, shard)
        (save_file if suffix == "safetensors" else torch.save)(part, folder / shard)
    path = folder / f"{stem}.{suffix}.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return path


def write_with_detectron2(folder, state):
    """By Detectron2's own checkpointer, with an optimizer and a schedule that have run."""

    class Bag(nn.Module):
        def state_dict(self, *args, **kwargs):
            return state

    trained = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    trained(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    checkpointer = DetectionCheckpointer(Bag(), str(folder), optimizer=optimizer, scheduler=schedule)
    checkpointer.save("model_final", iteration=89999)
    return folder / "model_final.pth"


def by_transformers(state):
    """As transformers may save a model within another: all names begin with "model.", and a "gamma" is a weight."""
    return {
        re.sub(r"(fuser\.layers\.\d\.)gamma", r"\1weight", name): tensor
        for name, tensor in with_prefix("model.", state).items()
    }


def resaved(released):
    """The spellings of a released checkpoint that saving it again gives, by name.

    Safetensors stores a tensor of two names once; a wrapper puts its attribute's name before all.
    """
    encoders = ("visual_model.", "mm_extractor.")
    copies = {name: tensor for name, tensor in released.items() if not name.startswith(encoders)}
    own = {name: tensor for name, tensor in released.items() if not name.startswith("evf_sam2.")}
    once = {}
    for number, (name, tensor) in enumerate(own.items()):
        once[f"evf_sam2.{name}" if name.startswith(encoders) and number % 2 else name] = tensor
    return {
        "only copies": copies,
        "own names": own,
        "stored once": once,
        "wrapped": by_transformers(own),
        "wrapped copies": with_prefix("model.", copies),
        "wrapped twice": with_prefix("module.model.", once),
    }


def write_all(folder, states):
    """A file of every layout, by name."""
    arguments = argparse.Namespace(lr=1e-3, model="beit3", betas=[0.9, 0.98], resume=None)
    beit3 = {**states["beit3"], **retrieval_heads()}
    evf = evf_state(states["2.0"], states["beit3"], states["evf projector"])
    released = released_state(states["2.0"], states["beit3"], states["released adapter"])
    for name, content in {
        "sam2_hiera.pt": {"model": states["2.0"]},
        "sam2.1_hiera.pt": {"model": states["2.1"]},
        "beit3.pth": {"model": beit3},
        "beit3_trained.pth": {"model": beit3, "epoch": 3, "args": arguments, "scaler": {"scale": 1024.0}},
        "pytorch_model.bin": evf,
        "evf_parallel.pth": {"state_dict": with_prefix("module.", evf)},
        "bare.pth": released,
    }.items():
        torch.save(content, folder / name)
    (folder / "snapshot").mkdir()
    (folder / "snapshot/config.json").write_text('{"hidden_size": 1024}')
    save_file(evf, folder / "snapshot/model.safetensors")
    save_file(evf, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(by_transformers(evf), folder / "evf_wrapped.safetensors")
    save_file(states["adapter"], folder / "adapter.safetensors")
    paths = {path.name: path for path in folder.iterdir()}
    paths["sharded safetensors"] = write_shards(folder / "sharded_safetensors", evf, "safetensors")
    for name, content in resaved(released).items():
        save_file(
            {name: tensor.clone() for name, tensor in content.items()}, folder / f"{name}.safetensors", {"format": "pt"}
        )
        paths[name] = folder / f"{name}.safetensors"
    torch.save({"model": with_prefix("module.", released)}, folder / "parallel.pth")
    paths["parallel.pth"] = folder / "parallel.pth"
    paths["sharded bin"] = write_shards(folder / "sharded_bin", evf, "bin")
    paths["folder of shards"] = folder / "sharded_bin"
    paths["model_final.pth"] = write_with_detectron2(folder, released)
    return paths
