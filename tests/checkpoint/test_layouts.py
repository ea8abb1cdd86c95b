"""Weight files read without a model: the public layouts, and files that are broken in every way."""

import json
import math
import os
import pickle
import random
import resource
import tarfile
import zipfile

import pytest
import torch
from published import our_adapter, resaved, write_shards
from safetensors.torch import save_file

from openworldsam.checkpoint import fingerprint, read_weights

EVF = ["pytorch_model.bin", "model.safetensors", "sharded safetensors", "sharded bin", "folder of shards", "snapshot"]
EVF += ["evf_wrapped.safetensors", "evf_parallel.pth"]
SMALL = {"adapter.tie_breakers": torch.arange(6.0).view(2, 3), "adapter.projector.0.bias": torch.arange(3.0)}


@pytest.mark.parametrize(
    ("name", "layout", "components"),
    [
        ("sam2_hiera.pt", "SAM 2.0", {"sam2"}),
        ("sam2.1_hiera.pt", "SAM 2.1", {"sam2"}),
        ("beit3.pth", "BEiT-3", {"beit3"}),
        ("beit3_trained.pth", "BEiT-3", {"beit3"}),
        *((name, "EVF-SAM2", {"sam2", "beit3", "adapter"}) for name in EVF),
        ("model_final.pth", "released", {"sam2", "beit3", "adapter"}),
        ("bare.pth", "released", {"sam2", "beit3", "adapter"}),
        *((name, "released", {"sam2", "beit3", "adapter"}) for name in (*resaved({}), "parallel.pth")),
        ("adapter.safetensors", "adapter", {"adapter"}),
    ],
)
def test_each_layout_is_recognised_and_read_under_public_names(name, layout, components, files, states):
    file = read_weights(files[name])
    assert file.layout == layout
    assert file.components.keys() == components
    expected = {**states, "sam2": states["2.1" if layout == "SAM 2.1" else "2.0"]}
    if layout == "EVF-SAM2":
        expected["adapter"] = our_adapter(states["evf projector"])
    for component, state in file.components.items():
        assert state.keys() == expected[component].keys()
        assert all(torch.equal(tensor, expected[component][n]) for n, tensor in state.items())
        assert file.source(component).fingerprint == fingerprint(expected[component])  # the same in every format


def test_the_fingerprint_ignores_the_order_of_the_tensors():
    state = {"a": torch.arange(3.0), "b": torch.ones(2)}
    assert fingerprint(state) == fingerprint(dict(reversed(state.items())))


@pytest.mark.parametrize("size", [1, 5, 16, 31, 32, 100, 1000])
def test_the_fingerprint_changes_with_a_sampled_value_a_name_or_a_shape(size):
    state = {"a": torch.arange(float(size))}
    seen = {fingerprint(state)}
    for sampled in range(0, size, max(1, size // 16)):
        changed = state["a"].clone()
        changed[sampled] += 0.5
        seen.add(fingerprint({"a": changed}))
    seen.add(fingerprint({"b": state["a"]}))
    seen.add(fingerprint({"a": state["a"][:, None]}))
    seen.add(fingerprint({**state, "b": torch.zeros(0)}))
    sampled_values = len(range(0, size, max(1, size // 16)))
    assert len(seen) == sampled_values + 4
    assert size < 16 or 16 <= sampled_values <= 31
    assert all(len(digits) == 16 and int(digits, 16) >= 0 for digits in seen)


def test_the_fingerprint_of_a_scalar_and_of_half_precision_exists():
    assert fingerprint({"a": torch.tensor(1.0)}) != fingerprint({"a": torch.tensor(2.0)})
    assert fingerprint({"a": torch.ones(4, dtype=torch.bfloat16)}) == fingerprint({"a": torch.ones(4)})


# ----------------------------------------------------------------------------------------------- broken files


def small_file(path):
    """A file of a few tensors, by its suffix; returns its bytes."""
    if path.suffix == ".safetensors":
        save_file(SMALL, path)
    else:
        content = {"model": SMALL, "iteration": 7}
        torch.save(content, path, _use_new_zipfile_serialization=path.stem != "legacy")
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.safetensors", "a.bin.index.json"])
def test_bytes_that_are_no_checkpoint_are_refused_by_name(name, tmp_path):
    rng = random.Random(0)
    noise = [rng.randbytes(rng.randint(1, 400)) for _ in range(100)]
    for content in (b"", b"<!DOCTYPE html><html>Quota exceeded</html>", b"PK\x03\x04", b"\0" * 64, *noise):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_weights(tmp_path / name)


@pytest.mark.parametrize(("name", "step"), [("a.pt", 41), ("a.safetensors", 41), ("legacy.pth", 1)])
def test_a_file_cut_anywhere_is_refused_by_name(name, step, tmp_path):
    path = tmp_path / name
    whole = small_file(path)
    assert read_weights(path).layout == "adapter"
    for cut in [*range(0, len(whole), step), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=name):
            read_weights(path)


@pytest.mark.parametrize("name", ["wrong.pth", "legacy.pth", "wrong.safetensors"])
def test_a_file_with_wrong_bytes_is_read_or_refused_by_name(name, tmp_path):
    path = tmp_path / name
    whole = small_file(path)
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        changed[rng.randrange(min(len(whole), 600))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            read_weights(path)
        except ValueError as error:
            refused += 1
            assert name in str(error)
    assert refused


class Dangerous:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors", "plain.pth", "legacy.pth"])
def test_code_in_a_pickle_is_refused_and_does_not_run(name, tmp_path):
    trace = tmp_path / "executed"
    content = {"model": {"adapter.tie_breakers": torch.zeros(2)}, "args": Dangerous(trace)}
    if name == "plain.pth":
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=name != "legacy.pth")
    with pytest.raises(ValueError, match=name):
        read_weights(tmp_path / name)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Dangerous(trace))).close()
    assert trace.exists()  # it would have been seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_value_that_is_not_finite_is_named(dtype, suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    for values in ([math.nan], [math.inf], [-math.inf], [math.inf, -math.inf]):
        state = {name: tensor.to(dtype, copy=True) for name, tensor in SMALL.items()}
        state["adapter.tie_breakers"].view(-1)[-len(values) :] = torch.tensor(values)
        if suffix == ".pt":
            torch.save({"model": state}, path)
        else:
            save_file(state, path)
        with pytest.raises(ValueError, match=rf"a{suffix}: tensor adapter\.tie_breakers .* not finite"):
            read_weights(path)


NO_WEIGHTS = {
    "expanded": (lambda: torch.zeros(1).expand(2**40), r"is expanded: \(1099511627776,\) of 4 bytes"),
    "expanded rows": (lambda: torch.zeros(1, 3).expand(2, 3), r"is expanded: \(2, 3\) of 12 bytes"),
    "sparse": (lambda: torch.sparse_coo_tensor([[0]], [1.0], (2**40,)), "is sparse"),
    "without values": (lambda: torch.empty(2**40, device="meta"), "without values"),
    "nested": (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
    "float8": (lambda: torch.zeros(3).to(torch.float8_e4m3fn), "number format float8_e4m3fn"),
    "huge": (lambda: torch.tensor([1.0, -1e30]), r"holds values from -1e\+30 to 1"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "legacy"), [*((kind, False) for kind in NO_WEIGHTS), ("expanded", True), ("huge", True)]
)
def test_a_tensor_that_is_no_weight_is_refused_at_once(kind, legacy, tmp_path):
    make, message = NO_WEIGHTS[kind]
    content = {**SMALL, "adapter.x": make()}
    torch.save({"model": content}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=rf"a\.pth: tensor adapter\.x .*{message}"):
        read_weights(tmp_path / "a.pth")


def test_huge_values_of_safetensors_are_refused_and_empty_tensors_are_not(tmp_path):
    save_file({"adapter.x": torch.full((3,), 1e30)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"adapter\.x holds values from 1e\+30"):
        read_weights(tmp_path / "a.safetensors")
    save_file({"adapter.x": torch.zeros(0, 3)}, tmp_path / "a.safetensors")
    assert read_weights(tmp_path / "a.safetensors").layout == "adapter"


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02Nr\xff\xff\xff\xff.",  # a memo of 2 ** 32 entries
        b"\x80\x02Nr\xff\xff\xff\x7f.",
        b"\x80\x02X\xff\xff\xff\x7f.",  # a text of 2 GB
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00.",
    ],
)
def test_a_pickle_that_announces_much_takes_no_memory(content, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a\.pth is damaged"):
        read_weights(tmp_path / "a.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000  # KB


def test_a_tar_archive_is_refused_without_torchs_advice(tmp_path):
    """The first PyTorch releases wrote such files; torch would advise to run the code in them."""
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            (tmp_path / name).write_bytes(pickle.dumps({}, 2))
            archive.add(tmp_path / name, name)
    with pytest.raises(RuntimeError, match="with `weights_only` set to `False`"):
        torch.load(tmp_path / "a.pth", weights_only=True)
    with pytest.raises(ValueError, match=r"a\.pth is a tar archive .*save its tensors again") as refused:
        read_weights(tmp_path / "a.pth")
    assert "weights_only" not in str(refused.value)


def test_archives_that_grow_are_refused(tmp_path):
    torch.save({"model": SMALL}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    makes_bytes = b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x60\x85R."  # 1.6 GB of them
    for method, content in ((zipfile.ZIP_DEFLATED, bytes(10**8)), (zipfile.ZIP_STORED, makes_bytes)):
        with zipfile.ZipFile(tmp_path / "b.pth", "w", method) as archive:
            for name, data in entries.items():
                archive.writestr(name, content if name.endswith("data.pkl") else data)
        with pytest.raises(ValueError, match=r"b\.pth is damaged .*(its archive is compressed|it makes bytes)"):
            read_weights(tmp_path / "b.pth")
    (tmp_path / "b.pth").write_bytes(makes_bytes)
    with pytest.raises(ValueError, match=r"b\.pth is damaged .*it makes bytes"):
        read_weights(tmp_path / "b.pth")


def test_the_first_half_of_a_checkpoint_is_said_to_be_cut(tmp_path):
    torch.save({"model": {"adapter.x": torch.randn(100, 100)}}, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    for size in (*range(100, len(whole), 1000), len(whole) - 1):
        (tmp_path / "a.pth").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.pth is damaged or not a checkpoint \(its zip archive is cut short\)"):
            read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.bin.index.json"])
def test_a_pipe_is_refused_at_once(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is a pipe"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("content", [[], 3, "text", None, torch.zeros(3), [torch.zeros(3)]])
def test_a_pickle_of_something_else_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt"):
        read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": {}},
        {"model": {"adapter.x": 3}},
        {"model": 3},
        {0: torch.zeros(2)},
        {"model": {("a", 1): torch.zeros(2)}},
        {"backbone.bottom_up.stem.weight": torch.zeros(2)},
        {"image_encoder.blocks.0.norm1.weight": torch.zeros(2)},  # the first Segment Anything
        {"visual_model.no_mem_embed": torch.zeros(2)},
        {"mm_extractor.beit3.x": torch.zeros(2)},
        {"positional_tokens": torch.zeros(2)},
    ],
)
def test_a_file_of_no_known_layout_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt is of unknown layout.*weights/README\.md"):
        read_weights(tmp_path / "a.pt")


def test_a_note_that_is_no_record_is_ignored(tmp_path):
    torch.save({"model": SMALL, "openworldsam": "0.1.0"}, tmp_path / "a.pt")
    assert read_weights(tmp_path / "a.pt").metadata == {}


def test_an_index_whose_shard_is_missing_or_cut_names_the_shard(states, tmp_path):
    index = write_shards(tmp_path / "shards", states["beit3"], "bin")
    shard = index.parent / "pytorch_model-00001-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=shard.name):
        read_weights(index)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=shard.name):
        read_weights(index)


@pytest.mark.parametrize(
    "content",
    [
        *(
            "{}",
            "[]",
            "3",
            "[" * 100_000,
            '{"weight_map": null}',
            '{"weight_map": {"a": 3}}',
            '{"weight_map": ["a.bin"]}',
        ),
        *(json.dumps({"weight_map": {"a": name}}) for name in ("a.bin.index.json", "b.bin.index.json", "../b.bin")),
        *(json.dumps({"weight_map": {"a": name}}) for name in ("/dev/zero", "", ".", "x/b.bin", "b" * 10_000)),
    ],
)
def test_an_index_without_a_map_of_shards_is_refused(content, tmp_path):
    (tmp_path / "a.bin.index.json").write_text(content)
    (tmp_path / "b.bin.index.json").write_text('{"weight_map": {"a": "a.bin.index.json"}}')
    with pytest.raises(ValueError, match=r"a\.bin\.index\.json") as raised:
        read_weights(tmp_path / "a.bin.index.json")
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth", ".pt"])
def test_a_folder_with_two_weight_files_is_refused_with_both_names(suffix, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no weight file in the folder"):
        read_weights(tmp_path)
    for name in ("a", "b"):
        small_file(tmp_path / f"{name}{suffix}")
    with pytest.raises(ValueError, match=rf"several weight files \(a{suffix}, b{suffix}\)"):
        read_weights(tmp_path)
    (tmp_path / f"b{suffix}").unlink()
    assert read_weights(tmp_path).layout == "adapter"
