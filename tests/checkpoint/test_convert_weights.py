"""Conversion from and to the released layout, by function and by command."""

import json
import logging
import resource
from pathlib import Path

import pytest
import torch
from processes import run_script
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from openworldsam import cli
from openworldsam.checkpoint import (
    Source,
    convert_released,
    convert_to_released,
    load_weights,
    read_weights,
    save_trained,
)
from openworldsam.config import load_config
from openworldsam.modeling import OpenWorldSAM
from openworldsam.parity.rule_weights import save_rule_checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "tiny.yaml"
SCRIPT = ROOT / "tools" / "convert_weights.py"
COMPONENTS = ("sam2", "beit3", "adapter")
VIDEO = {"maskmem_tpos_enc": (7, 1, 1, 4), "memory_encoder.out_proj.weight": (4, 32, 1, 1), "no_obj_ptr": (1, 32)}
UNUSED = {"evf_sam2.text_hidden_fcs.0.0.weight": (32, 32), "evf_sam2.text_hidden_fcs.0.0.bias": (32,)}


def make_cfg(*opts):
    return load_config(CONFIG, [str(word) for word in opts])


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A full checkpoint with video modules, the duplicates, the unused projector and training state."""
    path = tmp_path_factory.mktemp("released") / "model_final.pth"
    save_rule_checkpoint(OpenWorldSAM(make_cfg()), make_cfg(), 7, path)
    state = torch.load(path)["model"]
    for name, shape in VIDEO.items():
        state[f"visual_model.{name}"] = state[f"evf_sam2.visual_model.{name}"] = torch.randn(shape)
    state.update({name: torch.randn(shape) for name, shape in UNUSED.items()})
    torch.save({"model": state, "optimizer": {"state": {}}, "iteration": 99}, path)
    return path


@pytest.fixture(scope="module")
def parts(released, tmp_path_factory):
    return convert_released(released, tmp_path_factory.mktemp("parts") / "new" / "coco")


def load_state(path):
    return torch.load(path)["model"]


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def join(parts, path):
    convert_to_released(parts["adapter"], parts["sam2"], parts["beit3"], path)
    return path


def assert_is_whole(path, released):
    """A joined checkpoint has all of the released one that anything reads."""
    joined, whole = load_state(path), load_state(released)
    assert whole.keys() - joined.keys() == UNUSED.keys() and joined.keys() <= whole.keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in joined.items())


def test_split_writes_three_files_under_public_names(released, parts):
    assert {c: p.name for c, p in parts.items()} == {c: f"{c}.safetensors" for c in COMPONENTS}
    assert sorted(p.name for p in parts["sam2"].parent.iterdir()) == sorted(f"{c}.safetensors" for c in COMPONENTS)
    whole = load_state(released)
    for component, prefix in (("sam2", "visual_model."), ("beit3", "mm_extractor.")):
        expected = {n.removeprefix(prefix): t for n, t in whole.items() if n.startswith(prefix)}
        part = load_file(parts[component])
        assert part.keys() == expected.keys()
        assert all(torch.equal(part[n], t) for n, t in expected.items())
    assert VIDEO.keys() <= load_file(parts["sam2"]).keys()
    adapter = load_file(parts["adapter"])
    assert len(adapter) == 59
    assert torch.equal(adapter["adapter.tie_breakers"], whole["positional_tokens"])
    assert torch.equal(adapter["adapter.projector.2.bias"], whole["text_hidden_fcs.0.2.bias"])
    ours, theirs = "adapter.soft_prompt.layers.1.mlp.0.weight", "cross_attention_transformer.layers.1.mlp.0.weight"
    assert torch.equal(adapter[ours], whole[theirs])


def test_split_records_how_the_released_code_trains_and_with_what(released, parts):
    metadata = metadata_of(parts["adapter"])
    assert metadata["preset"] == "released"
    assert (metadata["ADAPTER.FUSION"], metadata["ADAPTER.INTERACTION"], metadata["ADAPTER.KEY_POSITIONS"]) == (
        "broadcast",
        "image",
        "False",
    )
    for component in ("sam2", "beit3"):
        source = json.loads(metadata[component])
        assert (source["file"], source["layout"]) == ("model_final.pth", "released")
        assert source["fingerprint"] == read_weights(parts[component]).source(component).fingerprint


def test_the_parts_load_like_the_whole_without_a_warning(released, parts, caplog):
    as_released = ("MODEL.ADAPTER.FUSION", "broadcast", "MODEL.ADAPTER.INTERACTION", "image")
    whole_cfg = make_cfg("MODEL.WEIGHTS", released, *as_released)
    whole = OpenWorldSAM(whole_cfg)
    load_weights(whole, whole_cfg)
    keys = ["MODEL.WEIGHTS", parts["adapter"], "MODEL.SAM2.WEIGHTS", parts["sam2"]]
    keys += ["MODEL.PROMPT_ENCODER.WEIGHTS", parts["beit3"]]
    cfg = make_cfg(*keys, *as_released)
    model = OpenWorldSAM(cfg)
    with caplog.at_level(logging.WARNING):
        load_weights(model, cfg)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_join_gives_back_what_was_split(released, parts, tmp_path):
    assert_is_whole(join(parts, tmp_path / "new" / "joined.pth"), released)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["joined.pth"]


def test_join_stores_the_duplicates_in_the_same_memory(parts, tmp_path):
    path = join(parts, tmp_path / "joined.pth")
    state = load_state(path)
    duplicates = [name for name in state if name.startswith("evf_sam2.")]
    assert duplicates
    for name in duplicates:
        assert state[name].data_ptr() == state[name.removeprefix("evf_sam2.")].data_ptr()
    assert path.stat().st_size < 1.2 * sum(part.stat().st_size for part in parts.values())


def test_split_join_split_gives_back_the_same_parts(parts, tmp_path):
    again = convert_released(join(parts, tmp_path / "joined.pth"), tmp_path / "again")
    for component, path in parts.items():
        first, second = load_file(path), load_file(again[component])
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_join_takes_a_component_out_of_any_file_and_may_replace_it(released, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(released.read_bytes())
    convert_to_released(path, path, path, path)
    assert_is_whole(path, released)


def test_split_and_join_keep_half_precision(released, tmp_path):
    half = {name: tensor.bfloat16() for name, tensor in load_state(released).items()}
    torch.save(half, tmp_path / "half.pth")
    parts = convert_released(tmp_path / "half.pth", tmp_path / "parts")
    joined = load_state(join(parts, tmp_path / "joined.pth"))
    assert {tensor.dtype for tensor in joined.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, half[name]) for name, tensor in joined.items())


def test_the_origin_of_rule_made_weights_survives_split_and_join(tmp_path):
    path = tmp_path / "model_final.pth"
    save_rule_checkpoint(OpenWorldSAM(make_cfg()), make_cfg(), 7, path)
    note = read_weights(path).source("sam2").note
    assert "rule-made" in note and "seed 7" in note
    parts = convert_released(path, tmp_path / "parts")
    joined = read_weights(join(parts, tmp_path / "joined.pth"))
    for component in COMPONENTS:
        assert read_weights(parts[component]).source(component).note == note
        assert joined.source(component).note == note


def trained_adapter(parts, folder, *opts):
    """An adapter as training writes it: fusion replace, interaction prompt."""
    cfg = make_cfg(*opts)
    sources = {c: read_weights(parts[c]).source(c) for c in ("sam2", "beit3")}
    save_trained(OpenWorldSAM(cfg), folder, cfg, sources)
    return folder / "adapter.safetensors"


def test_a_full_checkpoint_used_otherwise_than_the_released_code_is_told(released, caplog):
    cfg = make_cfg("MODEL.WEIGHTS", released)  # fusion replace, interaction prompt
    with caplog.at_level(logging.WARNING, logger="openworldsam"):
        load_weights(OpenWorldSAM(cfg), cfg)
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "MODEL.ADAPTER.FUSION" in told and "MODEL.ADAPTER.INTERACTION" in told


def test_how_an_adapter_was_trained_survives_join_and_split(parts, tmp_path):
    ours = trained_adapter(parts, tmp_path)
    again = convert_released(join({**parts, "adapter": ours}, tmp_path / "joined.pth"), tmp_path / "again")
    for key in ("ADAPTER.FUSION", "ADAPTER.INTERACTION", "ADAPTER.KEY_POSITIONS"):
        assert metadata_of(again["adapter"])[key] == metadata_of(ours)[key]


@pytest.mark.parametrize("layers", [0, 3])
def test_an_adapter_without_tie_breakers_survives_join(layers, parts, tmp_path):
    sizes = ("MODEL.ADAPTER.NUM_TIE_BREAKERS", 0, "MODEL.ADAPTER.NUM_LAYERS", layers)
    ours = trained_adapter(parts, tmp_path, *sizes)
    joined = read_weights(join({**parts, "adapter": ours}, tmp_path / "joined.pth"))
    assert joined.components.keys() == set(COMPONENTS)
    assert joined.source("adapter").fingerprint == read_weights(ours).source("adapter").fingerprint


def other_layout(name, released, parts, folder):
    if name in parts:
        return parts[name]
    state = load_state(released)
    kept = {n: t for n, t in state.items() if n.startswith(("visual_model.", "mm_extractor.", "text_hidden_fcs."))}
    save_file(kept, folder / "evf.safetensors")
    return folder / "evf.safetensors"


@pytest.mark.parametrize(
    ("name", "layout"), [("sam2", "SAM 2.0"), ("beit3", "BEiT-3"), ("adapter", "adapter"), ("evf", "EVF-SAM2")]
)
def test_split_refuses_other_layouts(name, layout, released, parts, tmp_path):
    path = other_layout(name, released, parts, tmp_path)
    with pytest.raises(ValueError, match=f"of the layout {layout}"):
        convert_released(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("component", "given"), [("adapter", "sam2"), ("sam2", "beit3"), ("beit3", "adapter")])
def test_join_refuses_a_file_without_the_component(component, given, parts, tmp_path):
    with pytest.raises(ValueError, match=rf"{given}\.safetensors .* holds no {component} weights"):
        join({**parts, component: parts[given]}, tmp_path / "joined.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_split_that_fails_leaves_the_old_parts(released, parts, tmp_path, monkeypatch):
    for path in parts.values():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def half(tensors, target, metadata):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("openworldsam.checkpoint.writing.save_file", half)
    with pytest.raises(OSError, match="No space"):
        convert_released(released, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in parts.values()}


def test_a_join_that_fails_leaves_the_old_checkpoint(parts, tmp_path, monkeypatch):
    (tmp_path / "joined.pth").write_text("old")

    def half(content, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space"):
        join(parts, tmp_path / "joined.pth")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("joined.pth", "old")]


def test_the_whole_folder_of_parts_is_no_weight_file(parts):
    with pytest.raises(ValueError, match=r"adapter\.safetensors, beit3\.safetensors, sam2\.safetensors"):
        read_weights(parts["sam2"].parent)


def test_a_source_compares_by_its_fields(parts, released):
    whole, part = read_weights(released).source("sam2"), read_weights(parts["sam2"]).source("sam2")
    assert part == Source("sam2.safetensors", "SAM 2.0", whole.fingerprint, "from model_final.pth (released)")


# ----------------------------------------------------------------------------------------------- the command


def run(*words):
    """The command in this process; starting Python with torch takes seconds."""
    try:
        cli.run("convert", [*map(str, words)])
    except SystemExit as exited:
        return exited.code
    return 0


def test_the_command_splits_and_joins(released, parts, tmp_path, monkeypatch, capsys):
    assert run("split", released, "--output", tmp_path / "parts") == 0
    made = [tmp_path / "parts" / f"{component}.safetensors" for component in COMPONENTS]
    assert sorted(capsys.readouterr().out.split()) == sorted(map(str, made))
    for path in made:  # in which order the metadata lie in a file is chance
        first, second = load_file(path), load_file(parts[path.stem])
        assert first.keys() == second.keys() and metadata_of(path) == metadata_of(parts[path.stem])
        assert all(torch.equal(first[name], second[name]) for name in first)
    options = [word for path in made for word in (f"--{path.stem}", path)]
    assert run("join", *options, "--output", tmp_path / "joined.pth") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'joined.pth'}\n"
    assert_is_whole(tmp_path / "joined.pth", released)


@pytest.mark.parametrize("case", ["missing", "wrong layout", "damaged", "output is a file", "not its component"])
def test_the_command_reports_errors_in_one_line(case, released, parts, tmp_path, monkeypatch, capsys):
    (tmp_path / "damaged.pth").write_bytes(released.read_bytes()[:5000])
    (tmp_path / "a file").write_text("")
    words = {
        "missing": ("split", tmp_path / "nowhere.pth"),
        "wrong layout": ("split", parts["sam2"]),
        "damaged": ("split", tmp_path / "damaged.pth"),
        "output is a file": ("split", released),
        "not its component": (
            "join",
            *("--adapter", parts["sam2"]),
            "--sam2",
            parts["sam2"],
            "--beit3",
            parts["beit3"],
        ),
    }[case]
    output = tmp_path / ("a file" if case == "output is a file" else "out")
    assert run(*words, "--output", output) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a file", "damaged.pth"]


def test_the_command_ends_with_2_and_no_traceback(processes, tmp_path):
    done = processes.script(SCRIPT, "split", tmp_path / "nowhere.pth", "--output", tmp_path)
    assert done.status == 2
    assert "error: " in done.stderr and "nowhere.pth not found" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def run_with_small_files(*words):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    run_script(str(SCRIPT), *map(str, words))


@pytest.mark.parametrize("verb", ["split", "join"])
def test_the_command_reports_a_full_disk(verb, processes, released, parts, tmp_path):
    given = [word for component, path in parts.items() for word in (f"--{component}", path)]
    words = ["split", released] if verb == "split" else ["join", *given]
    (done,) = processes(run_with_small_files, *words, "--output", tmp_path / "out")
    assert list(tmp_path.rglob("*.part")) == []
    assert "Traceback" not in done.stderr
    assert done.status == 2
