"""Every encoder of a library (the CASES of case_*.py) equals the library, and works wherever BEiT-3 does."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from case import ROOT, transformers
from safetensors.torch import load_file, save_file
from trainings import assert_same, make_dataset, run, training_cfg

from openworldsam import OpenWorldSAMPredictor, cli
from openworldsam.checkpoint import load_weights, read_weights
from openworldsam.config import load_config
from openworldsam.download import names_of
from openworldsam.engine.cache_features import build_cache
from openworldsam.engine.dry_run import describe_training
from openworldsam.modeling import OpenWorldSAM
from openworldsam.modeling.components import rename
from openworldsam.modeling.prompt_encoders import build_prompt_encoder, prompt_encoder_class
from openworldsam.predictor.image_session import ImageSession
from openworldsam.speed.waits import WaitCounter
from openworldsam.utils.device import DTYPES

PROMPTS = ["cat", "a dog and a cat on the grass", "x", "the dog"]
IMAGE_INDEX = torch.tensor([0, 1, 1, 0])


def loaded(cfg):
    """The prompt encoder of a model with its weights."""
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg, need_adapter=False)
    return model.eval().prompt_encoder


@pytest.fixture
def make_cfg(case, folder, tiny_weights):
    """Make the config of a short training with this encoder."""

    def make(data, output, *opts, read=folder):
        words = ["MODEL.WEIGHTS", "", "MODEL.SAM2.WEIGHTS", str(tiny_weights / "model_final.pth")]
        words += ["MODEL.PROMPT_ENCODER.NAME", case.name, "MODEL.PROMPT_ENCODER.EMBED_DIM", case.width]
        words += ["MODEL.PROMPT_ENCODER.WEIGHTS", str(read), "MODEL.PROMPT_ENCODER.TOKENIZER", str(read)]
        return training_cfg(data, tiny_weights, output, *words, "SOLVER.STEPS", [], *opts)

    return make


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("encoder_rectangles"), 3)


@pytest.fixture
def cfg(make_cfg, data, tmp_path):
    return make_cfg(data, tmp_path / "out", "MODEL.PROMPT_ENCODER.CHUNK", 3)


@pytest.fixture
def encoder(cfg):
    return loaded(cfg)


def embed(encoder, pictures, prompts, image_index):
    with torch.no_grad():
        images = encoder.encode_images(torch.stack([encoder.preprocess(picture) for picture in pictures]))
        return encoder(images, prompts, image_index)


def test_it_gives_the_vector_of_the_library_and_a_prompt_depends_on_no_other(case, folder, encoder, pictures):
    found = embed(encoder, pictures, PROMPTS, IMAGE_INDEX)
    assert found.shape == (4, case.width) == (4, encoder.embed_dim)
    with torch.no_grad():
        expected = [case.expected(folder, pictures[i], text) for i, text in zip(IMAGE_INDEX, PROMPTS, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    for index, text in enumerate(PROMPTS):
        alone = embed(encoder, [pictures[IMAGE_INDEX[index]]], [text], torch.tensor([0]))
        torch.testing.assert_close(found[index], alone[0], rtol=1e-4, atol=1e-5)


def test_it_depends_on_the_text_and_where_it_says_so_on_the_image(case, encoder, pictures):
    a, b, other = embed(encoder, pictures, ["cat", "cat", "dog"], torch.tensor([0, 1, 1]))
    assert (b - other).abs().max() > 1e-3
    assert ((a - b).abs().max() > 1e-4) == case.reads_image


def test_images_are_encoded_once_and_prompts_in_chunks(encoder, pictures, monkeypatch):
    calls, chunks = [], []
    whole = encoder.encode_images, encoder.encode_texts
    monkeypatch.setattr(encoder, "encode_images", lambda x: calls.append(len(x)) or whole[0](x))
    monkeypatch.setattr(encoder, "encode_texts", lambda *x: chunks.append(len(x[1])) or whole[1](*x))
    embed(encoder, pictures, [*PROMPTS, *PROMPTS], IMAGE_INDEX.repeat(2))
    assert (calls, chunks) == ([2], [3, 3, 2])


def test_questions_about_one_image_encode_it_once(cfg, pictures, monkeypatch):
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg, need_adapter=False)
    calls, encode = [], model.eval().prompt_encoder.encode_images
    monkeypatch.setattr(model.prompt_encoder, "encode_images", lambda x: calls.append(len(x)) or encode(x))
    session = ImageSession(model, pictures[0].permute(1, 2, 0).numpy())
    assert not calls  # clicks need no prompt's image
    for prompts in (["cat"], ["dog", "cat"], ["the dog"]):
        session.queries(prompts, model.inference)
    assert calls == [1]


def test_a_copy_in_another_process_gives_the_same(encoder, pictures):
    copy = pickle.loads(pickle.dumps(encoder))
    found, again = (embed(each, pictures, PROMPTS, IMAGE_INDEX) for each in (encoder, copy))
    torch.testing.assert_close(found, again, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_host_waits_for_no_result(encoder, pictures):
    on_device = [*encoder.parameters(), *encoder.buffers(), *pictures]
    with WaitCounter(on_device) as counter:
        inputs = torch.stack([encoder.preprocess(picture) for picture in pictures])
    with WaitCounter([*on_device, inputs]) as encoding:
        encoder(encoder.encode_images(inputs), PROMPTS, IMAGE_INDEX)
    assert counter.waits + counter.uploads + encoding.waits + encoding.uploads == []


def test_its_images_are_those_of_the_librarys_processor(case, folder, encoder):
    sizes = [(60, 90), (75, 50), (24, 24), (10, 200), (24, 31), (34, 24)]
    for size in sizes if case.reads_image else ():
        picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8))
        theirs = getattr(transformers, encoder.image_processor).from_pretrained(folder)(picture, return_tensors="pt")
        pixels, (_, height, width) = encoder.preprocess(picture), theirs["pixel_values"][0].shape
        torch.testing.assert_close(pixels[:, :height, :width], theirs["pixel_values"][0], rtol=0, atol=1e-5)
        assert pixels.isfinite().sum() == 3 * height * width  # what remains of a canvas is NaN


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_the_vector_is_nearly_the_same(make_cfg, data, tmp_path, pictures, encoder, precision):
    cfg = make_cfg(data, tmp_path / "half", "MODEL.PRECISION", precision, "MODEL.PROMPT_ENCODER.CHUNK", 3)
    model = OpenWorldSAM(cfg)
    load_weights(model, cfg, need_adapter=False)
    half = model.eval().encode_prompts(model.prompt_inputs(pictures), PROMPTS, IMAGE_INDEX)
    with model.autocast():  # of weights that are kept in fp32
        assert torch.equal(half, embed(encoder, pictures, PROMPTS, IMAGE_INDEX))
    whole = embed(encoder, pictures, PROMPTS, IMAGE_INDEX)
    assert torch.cosine_similarity(half.float(), whole).min() > 0.99
    assert any(p.dtype == DTYPES[precision] for p in model.prompt_encoder.parameters())


def test_it_trains_and_resumes_from_a_cache_without_its_files(make_cfg, data, folder, tmp_path):
    one = ["SOLVER.IMS_PER_BATCH", 1]
    whole = run(make_cfg(data, tmp_path / "whole", *one))
    half = make_cfg(data, tmp_path / "parts", *one, "SOLVER.MAX_ITER", 3)
    run(half)
    build_cache(half, tmp_path / "cache", dtype="fp32")
    rest = make_cfg(data, tmp_path / "parts", *one, "DATASETS.FEATURE_CACHE", str(tmp_path / "cache"))
    rest.MODEL.PROMPT_ENCODER.WEIGHTS = rest.MODEL.PROMPT_ENCODER.TOKENIZER = str(tmp_path / "absent")
    assert "not there" not in describe_training(rest)
    resumed = run(rest, resume=True)
    for key in whole:
        torch.testing.assert_close(resumed[key], whole[key], rtol=1e-3, atol=1e-4)
    name = prompt_encoder_class(rest).component.name
    recorded = read_weights(tmp_path / "parts/adapter.safetensors").recorded(name)
    assert recorded.fingerprint == read_weights(folder).source(name).fingerprint


def test_a_dry_run_needs_no_folder(make_cfg, data, folder, tmp_path):
    cfg = make_cfg(data, tmp_path / "out")
    whole = describe_training(cfg)
    cfg.MODEL.PROMPT_ENCODER.WEIGHTS = cfg.MODEL.PROMPT_ENCODER.TOKENIZER = str(tmp_path / "absent")
    absent = describe_training(cfg)
    assert f"not there: {tmp_path / 'absent'} (" in absent
    same = ("trained ", "adapter ", "schedule ")
    assert [x for x in whole.splitlines() if x.startswith(same)] == [
        x for x in absent.splitlines() if x.startswith(same)
    ]
    assert "frozen weights without the prompt encoder" in absent and "without" not in whole


def test_it_is_trained_too(make_cfg, data, folder, tmp_path, monkeypatch, caplog):
    cfg = make_cfg(data, tmp_path / "out", "SOLVER.MAX_ITER", 2, "MODEL.PROMPT_ENCODER.TRAINABLE", True)
    monkeypatch.setattr("openworldsam.modeling.adapter.BUDGET", 1)
    caplog.set_level("INFO", "openworldsam")
    run(cfg)
    assert "above the 1 of the paper's Table 10" in caplog.text
    component = prompt_encoder_class(cfg).component
    cfg.MODEL.PROMPT_ENCODER.WEIGHTS = str(tmp_path / f"out/{component.name}.safetensors")
    prefixes = [(public, inside.removeprefix("prompt_encoder.")) for public, inside in component.prefixes]
    trained, before = loaded(cfg).state_dict(), rename(read_weights(folder).components[component.name], prefixes)
    assert trained.keys() == before.keys()
    assert any((trained[key] != before[key]).any() for key in trained)


def test_it_is_saved_loaded_and_evaluated(case, make_cfg, folder, data, tmp_path, photograph):
    published = shutil.copytree(folder, tmp_path / "copy")
    cfg = make_cfg(data, tmp_path / "out", "SOLVER.MAX_ITER", 2, read=published)
    run(cfg)
    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/adapter.safetensors"
    predictor = OpenWorldSAMPredictor(cfg)
    predictor.set_image(photograph)
    expected = predictor.predict(["cat", "grass"], "referring").scores
    predictor.save_pretrained(tmp_path / "saved")
    shutil.rmtree(published)
    saved = OpenWorldSAMPredictor.from_pretrained(tmp_path / "saved")
    saved.set_image(photograph)
    assert np.allclose(saved.predict(["cat", "grass"], "referring").scores, expected, atol=1e-5)
    assert str(tmp_path) not in (tmp_path / "saved/config.json").read_text()

    small = ["DATASETS.SHAPES.SIZE", "64", "DATASETS.SHAPES.THING_SIZE", "[10, 40]", "TEST.MAX_IMAGES", "1"]
    words = ["--config", str(tmp_path / "saved"), "--benchmarks", "shapes_val", "--output", str(tmp_path / "eval")]
    cli.command("evaluate")([*words, *small, "DATALOADER.NUM_WORKERS", "0"])
    results = json.loads((tmp_path / "eval/results.json").read_text())
    assert results["versions"]["transformers"] == transformers.__version__
    assert {name: source["fingerprint"] for name, source in results["weights"].items()} == {
        name: source.fingerprint for name, source in predictor.sources.items()
    }


def test_sharded_weights_are_the_same(case, folder, make_cfg, data, tmp_path, encoder):
    sharded = shutil.copytree(folder, tmp_path / "sharded")
    state = load_file(sharded / case.weights)
    (sharded / case.weights).unlink()
    places = {name: f"model-0000{number % 2}-of-00002.safetensors" for number, name in enumerate(state)}
    for shard in set(places.values()):
        save_file({name: tensor for name, tensor in state.items() if places[name] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(loaded(make_cfg(data, tmp_path / "out", read=sharded)).state_dict(), encoder.state_dict())
    component = encoder.component
    assert read_weights(sharded).source(component.name).layout == component.layout
    read = [path.name for path in encoder.tokenizer_files(sharded)]
    assert case.config_file in read and "model.safetensors.index.json" not in read


def test_the_images_part_of_a_newer_folder_is_read(case, folder, make_cfg, data, tmp_path, encoder, pictures):
    newer = shutil.copytree(folder, tmp_path / "newer")
    if not case.reads_image:
        pytest.skip("it reads no image")
    part = json.loads((newer / "preprocessor_config.json").read_text())
    (newer / "preprocessor_config.json").unlink()
    (newer / "processor_config.json").write_text(json.dumps({"image_processor": part}))
    found = loaded(make_cfg(data, tmp_path / "out", read=newer)).preprocess(pictures[0])
    assert torch.equal(found.nan_to_num(), encoder.preprocess(pictures[0]).nan_to_num())


def test_a_wrong_or_incomplete_folder_gives_one_line(case, folder, make_cfg, data, tmp_path):
    def error(change):
        changed = shutil.copytree(folder, tmp_path / "changed", dirs_exist_ok=True)
        change(changed)
        cfg = make_cfg(data, tmp_path / "out", read=changed)
        with pytest.raises((ValueError, FileNotFoundError)) as raised:
            loaded(cfg).prepare()
        shutil.rmtree(changed)
        message = str(raised.value)
        assert "\n" not in message and len(message) < 1000 and "changed" in message
        return message

    needless = ["generation_config.json", "special_tokens_map.json", "tokenizer_config.json"]
    needless += [] if case.reads_image else ["preprocessor_config.json"]
    for file in {path.name for path in folder.iterdir()} - set(needless):
        assert file in error(lambda changed, file=file: (changed / file).unlink()) or file == case.weights
    for text in ("{", "[]", "{}", '{"model_type": "other"}'):
        assert case.config_file in error(lambda changed, text=text: (changed / case.config_file).write_text(text))

    def drop_one(changed):
        state = load_file(changed / case.weights)
        state.pop(next(name for name in state if name.startswith(case.needed)))
        save_file(state, changed / case.weights)

    assert "missing prompt_encoder." in error(drop_one)


def test_only_without_weights_it_starts_at_random(cfg, encoder):
    state = torch.get_rng_state()
    build_prompt_encoder(cfg)
    assert torch.equal(state, torch.get_rng_state())
    cfg.MODEL.PROMPT_ENCODER.WEIGHTS = ""
    begun = build_prompt_encoder(cfg).state_dict()
    assert not torch.equal(state, torch.get_rng_state()) and begun.keys() == encoder.state_dict().keys()
    assert all(tensor.isfinite().all() and tensor.abs().max() < 100 for tensor in begun.values())


def test_the_config_names_it_and_its_width_is_checked(case, make_cfg, data, tmp_path):
    shipped = load_config(ROOT / "configs/encoders" / f"{case.config}.yaml").MODEL.PROMPT_ENCODER
    assert case.name == shipped.NAME
    assert names_of([shipped.WEIGHTS]) and shipped.WEIGHTS == shipped.TOKENIZER
    with pytest.raises(ValueError, match=f"width {case.width}: set MODEL.PROMPT_ENCODER.EMBED_DIM"):
        OpenWorldSAM(make_cfg(data, tmp_path / "out", "MODEL.PROMPT_ENCODER.EMBED_DIM", case.width + 8))
    with pytest.raises(ValueError, match="USE_IMAGE False is for BEiT-3"):
        OpenWorldSAM(make_cfg(data, tmp_path / "out", "MODEL.PROMPT_ENCODER.USE_IMAGE", False))


def test_prompts_that_are_long_or_empty(case, encoder, pictures, caplog):
    long = embed(encoder, pictures, ["cat " * 600], torch.tensor([0]))
    assert "tokens; only the first" in caplog.text and long.isfinite().all()
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        embed(encoder, pictures, ["cat", " "], torch.tensor([0, 0]))


def test_a_long_prompt_is_cut_and_not_its_template(encoder, cfg):
    cut, whole = ("x" + " cat" * number for number in (600, 3))
    ids, lengths = encoder.tokenize([whole, cut])
    (wanted,) = encoder.token_ids([encoder.template.format(whole)])
    short, long = (row[: lengths[i]].tolist() for i, row in enumerate(ids))
    assert short[: len(wanted)] == wanted and len(long) == encoder.max_tokens
    end = encoder.template.partition("{}")[2]
    (theirs,) = encoder.token_ids([end]) if end else [[wanted[-1]]]
    theirs = theirs[-len(theirs) + encoder.adds_special_tokens * bool(end) :]
    assert long[-len(theirs) :] == wanted[-len(theirs) :] == theirs
    assert long[: len(wanted) - len(theirs)] == wanted[: -len(theirs)]

    cfg.MODEL.PROMPT_ENCODER.MAX_TOKENS = len(encoder.bare)
    with pytest.raises(ValueError, match=f"MAX_TOKENS is more than the {len(encoder.bare)} tokens around a prompt"):
        loaded(cfg).prepare()
    cfg.MODEL.PROMPT_ENCODER.MAX_TOKENS += 1
    assert loaded(cfg).tokenize(["cat"])[1].tolist() == [len(encoder.bare) + 1]


def test_a_prompt_that_spells_a_special_token_is_refused(encoder, pictures):
    tokenizer = encoder.tokenizer
    if hasattr(tokenizer, "add_tokens"):  # not special, as some of PaliGemma's and Kosmos-2's
        spaces = ["\u2581\u2581", "\n\n"]
        tokenizer.add_tokens(["<loc0001>", *spaces])
        assert not encoder.special.intersection(tokenizer.convert_tokens_to_ids(spaces))
    ids = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", ())}
    words = {word for token in ids if (word := tokenizer.decode([token])).strip("\u2581 \n")}
    words -= {"[UNK]", "<unk>"}  # for an unknown word
    assert words
    for word in words:
        with pytest.raises(ValueError, match="prompt 1 holds what the tokenizer reads as a special token"):
            embed(encoder, pictures, ["cat", f"dog {word} cat"], torch.tensor([0, 0]))


def test_a_prompt_without_a_known_word_is_refused(encoder):
    if "\u732b" in encoder.tokenizer.decode(encoder.token_ids(["\u732b"])[0]):
        pytest.skip("a tokenizer of bytes knows all words")
    with pytest.raises(ValueError, match="prompt 1 is empty, or has no word"):
        encoder.tokenize(["cat", "\u732b"])


def test_a_score_head_reads_the_mean_of_its_words(case, encoder):
    words = encoder.word_embeddings(["cat", "cat dog"])
    assert words.shape == (2, case.width)
    ids = torch.tensor([i for i in encoder.token_ids(["cat dog"])[0] if i not in encoder.tokenizer.all_special_ids])
    expected = encoder.table.weight[ids].mean(dim=0)
    torch.testing.assert_close(words[1, : len(expected)], expected)
    assert not words[1, len(expected) :].any()
    torch.testing.assert_close(words[0], encoder.word_embeddings(["cat"])[0])


def test_nothing_of_a_library_is_imported_for_other_encoders():
    program = (
        "import sys; from openworldsam.modeling import OpenWorldSAM; from openworldsam.config import load_config\n"
        f"OpenWorldSAM(load_config({str(ROOT / 'configs/tiny.yaml')!r}))\n"
        "assert not {'transformers', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_missing_package_names_the_extra(cfg, monkeypatch):
    name = prompt_encoder_class(cfg).library
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"needs the package {name} .*pip install 'openworldsam\[encoders\]'"):
        OpenWorldSAM(cfg)
    monkeypatch.setattr("importlib.import_module", lambda name: exec("raise ImportError('two\\nlines')"))
    with pytest.raises(ValueError, match=rf"needs the package {name} \(two lines\): pip install"):
        OpenWorldSAM(cfg)
