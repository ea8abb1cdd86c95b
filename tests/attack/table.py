"""Bad inputs: command -> exit status (2 if none is given), and below it name: (input, expected line).

An input is the content of the file {bad}, the files of the folder {bad} by name, a part of the world with a change, or
further words of the command. The line is a pattern. {w} is the world (world.py), {out} a folder with another file.
"""

import json
import os

import torch
from inputs import (
    Code,
    Spoiled,
    aliases,
    bomb,
    dangling,
    fifo,
    folder,
    half,
    linked,
    loop,
    pickled,
    picture,
    png,
    saved,
    tensors,
    zipped,
)


def reef(file, change):
    """The dataset with a file changed."""
    return Spoiled(file, change, "reef")


DEMO = "demo --config-file {w}/tiny.yaml --input {w}/cat.png --prompts cat --output {out}"
PORT = 7860 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
"""Of this test process: the page looks at its port before anything else."""
ANNOTATE = "annotate --config-file {w}/tiny.yaml --num-processes 1 --output {out}"
TRAIN = "train --config-file {w}/tiny.yaml OUTPUT_DIR {out}"
EVAL = "eval --config-file {w}/tiny.yaml --output {out}"
VIDEO = "video --config-file {w}/tiny.yaml --prompts cat --tracker detection --output {out}"
CHECK = "check --workers 1 --read --own"
R, B = "{w}/reef", "{bad}"

CONFIGS = {
    "demo --config-file {bad}.yaml --input {w}/cat.png --prompts cat --output {out}": {
        "empty": ("", r"bad\.yaml .*(empty|no config|not a config)"),
        "a number": ("3", r"bad\.yaml .*config"),
        "a list": ("- MODEL\n- SOLVER\n", r"bad\.yaml .*config"),
        "runs code": ("MODEL: !!python/object/apply:os.system ['touch PWNED']", r"bad\.yaml .*config"),
        "runs code by a name": ("MODEL: !!python/name:os.system", r"bad\.yaml .*config"),
        "a Python object": ("MODEL: !!python/tuple [1, 2]", r"bad\.yaml .*config"),
        "not YAML": ("MODEL: [", r"bad\.yaml is not a config file"),
        "two documents": ("MODEL: {}\n---\nMODEL: {}", r"bad\.yaml .*config"),
        "UTF-16": ("\ufeffMODEL: x".encode("utf-16"), r"bad\.yaml.*config"),
        "bytes": (bytes(range(256)), r"bad\.yaml .*config"),
        "a picture": (picture("PNG"), r"bad\.yaml .*config"),
        "deep lists": ("[" * 10_000, r"bad\.yaml .*(deep|config)"),
        "deep maps": ("{a: " * 10_000, r"bad\.yaml .*(deep|config)"),
        "aliases": (aliases(), r"bad\.yaml"),
        "based on itself": ("_BASE_: bad.yaml", r"bad\.yaml.*(itself|circle|based)"),
        "based on an address": ("_BASE_: http://localhost:1/a.yaml", r"bad\.yaml.*http://localhost:1/a\.yaml"),
        "based on a detectron2 address": ("_BASE_: detectron2://a.yaml", r"bad\.yaml.*detectron2://a\.yaml"),
        "based on nothing": ("_BASE_: nothing.yaml", r"nothing\.yaml"),
        "based on a number": ("_BASE_: 3", r"bad\.yaml"),
        "based on a folder": ("_BASE_: /", r"bad\.yaml|/"),
        "unknown key": ("MODEL: {WEIGHT: a.pth}", r"MODEL\.WEIGHT\b"),
        "key of a number": ("1: 2", r"bad\.yaml|\b1\b"),
        "key of a list": ("? [a]\n: 2", r"bad\.yaml"),
        "section as a number": ("MODEL: 3", r"bad\.yaml: Type mismatch .* for config key: MODEL"),
        "number as a section": ("SEED: {A: 1}", r"bad\.yaml: Type mismatch .* for config key: SEED"),
        "list as a text": ("MODEL: {DEVICE: [cpu]}", r"MODEL\.DEVICE|DEVICE"),
        "not a number": ("SOLVER: {BASE_LR: .nan}", r"SOLVER\.BASE_LR has no usable value, got nan"),
        "infinite": ("SOLVER: {BASE_LR: .inf}", r"SOLVER\.BASE_LR has no usable value, got inf"),
        "no value": ("MODEL: {DEVICE: }", r"MODEL\.DEVICE has no usable value, got None"),
        "a date": ("PRESET: 2020-01-01", r"PRESET"),
        "another version": ("VERSION: 99", r"bad\.yaml|VERSION"),
        "version as a text": ("VERSION: x", r"bad\.yaml|VERSION"),
        "a pipe that nobody fills": (fifo, r"bad\.yaml"),
        "a folder": (folder, r"bad\.yaml"),
        "a broken link": (dangling, r"bad\.yaml not found"),
        "a link to itself": (loop, r"bad\.yaml"),
    },
    "demo --input {w}/cat.png --prompts cat --output {out} --config-file": {
        "missing": (["nothing.yaml"], r"config nothing\.yaml not found"),
        "no file": (["/dev/null"], r"/dev/null"),
        "endless": (["/dev/zero"], r"/dev/zero"),
        "a name with a line break": (["a\nb.yaml"], r"a\\nb\.yaml"),
        "a name that changes the terminal": (["a\x1b[31mb.yaml"], r"a\\x1b\[31mb\.yaml"),
        "a name with a zero byte": (["a\0b.yaml"], r"a\\x00b\.yaml"),
    },
}

OPTIONS = {
    f"{DEMO} --opts": {
        "no value": (["MODEL.DEVICE"], r"config key MODEL\.DEVICE needs a value, got nothing"),
        "unknown key": (["MODEL.WEIGHT", "a"], r"MODEL\.WEIGHT"),
        "a section": (["MODEL", "3"], r"options KEY VALUE: Type mismatch .* for config key: MODEL"),
        "below a value": (["MODEL.DEVICE.A", "3"], r"MODEL\.DEVICE"),
        "an empty key": (["", "3"], r"the options KEY VALUE: Non-existent key: ;"),
        "a text for a number": (["MODEL.SAM2.IMAGE_SIZE", "large"], r"IMAGE_SIZE"),
        "image size 0": (["MODEL.SAM2.IMAGE_SIZE", "0"], r"MODEL\.SAM2\.IMAGE_SIZE"),
        "image size below 0": (["MODEL.SAM2.IMAGE_SIZE", "-32"], r"MODEL\.SAM2\.IMAGE_SIZE"),
        "image size in no steps": (["MODEL.SAM2.IMAGE_SIZE", "100"], r"MODEL\.SAM2\.IMAGE_SIZE"),
        "no stages": (["MODEL.SAM2.STAGES", "[]"], r"MODEL\.SAM2\.STAGES"),
        "no heads": (["MODEL.SAM2.NUM_HEADS", "0"], r"MODEL\.SAM2\.NUM_HEADS"),
        "width in no steps": (["MODEL.SAM2.WIDTH", "33"], r"MODEL\.SAM2\.WIDTH"),
        "unknown encoder": (["MODEL.PROMPT_ENCODER.NAME", "CLIP"], r"no prompt encoder 'CLIP'"),
        "encoder without heads": (["MODEL.PROMPT_ENCODER.NUM_HEADS", "0"], r"multiple of NUM_HEADS, got 32 and 0"),
        "encoder with odd heads": (["MODEL.PROMPT_ENCODER.NUM_HEADS", "3"], r"MODEL\.PROMPT_ENCODER"),
        "patches of 0": (
            ["MODEL.PROMPT_ENCODER.PATCH_SIZE", "0"],
            r"multiple of PATCH_SIZE, got 32 and 0",
        ),
        "patches that do not fit": (["MODEL.PROMPT_ENCODER.IMAGE_SIZE", "33"], r"MODEL\.PROMPT_ENCODER\.IMAGE_SIZE"),
        "no tokens": (["MODEL.PROMPT_ENCODER.MAX_TOKENS", "2"], r"MODEL\.PROMPT_ENCODER\.MAX_TOKENS"),
        "too many tokens": (["MODEL.PROMPT_ENCODER.MAX_TOKENS", "2000"], r"MODEL\.PROMPT_ENCODER\.MAX_TOKENS"),
        "chunk of 0": (["MODEL.PROMPT_ENCODER.CHUNK", "0"], r"MODEL\.PROMPT_ENCODER\.CHUNK"),
        "queries by 0": (["MODEL.MASK_DECODER.CHUNK", "0"], r"MODEL\.MASK_DECODER\.CHUNK"),
        "tie-breakers below 0": (["MODEL.ADAPTER.NUM_TIE_BREAKERS", "-1"], r"MODEL\.ADAPTER\.NUM_TIE_BREAKERS"),
        "fewer tie-breakers than the file": (["MODEL.ADAPTER.NUM_TIE_BREAKERS", "3"], r"tie_breakers.*\b3\b"),
        "adapter with odd heads": (["MODEL.ADAPTER.NUM_HEADS", "3"], r"MODEL\.ADAPTER\.NUM_HEADS"),
        "layers below 0": (
            ["MODEL.ADAPTER.NUM_LAYERS", "-1"],
            r"MODEL\.ADAPTER\.NUM_LAYERS must be at least 0, got -1",
        ),
        "dropout of 2": (["MODEL.ADAPTER.DROPOUT", "2.0"], r"MODEL\.ADAPTER\.DROPOUT"),
        "unknown fusion": (["MODEL.ADAPTER.FUSION", "mix"], r"FUSION.*mix"),
        "unknown interaction": (["MODEL.ADAPTER.INTERACTION", "all"], r"INTERACTION.*all"),
        "unknown precision": (["MODEL.PRECISION", "fp8"], r"MODEL\.PRECISION.*fp8"),
        "unknown device": (["MODEL.DEVICE", "abacus"], r"abacus"),
        "threshold of 2": (["MODEL.INFERENCE.SCORE_THRESHOLD", "2.0"], r"SCORE_THRESHOLD.*2"),
        "threshold below 0": (["MODEL.INFERENCE.NMS_THRESHOLD", "-1.0"], r"NMS_THRESHOLD.*-1"),
        "unknown NMS": (["MODEL.INFERENCE.INSTANCE_NMS", "soft"], r"INSTANCE_NMS.*soft"),
        "unknown weight": (["MODEL.INFERENCE.SEMANTIC_WEIGHT", "all"], r"SEMANTIC_WEIGHT.*all"),
        "unknown rule": (["MODEL.INFERENCE.TWO_STAGE_KEEP", "none"], r"TWO_STAGE_KEEP.*none"),
        "unknown task": (["MODEL.INFERENCE.TASKS", "['depth']"], r"TASKS.*depth"),
        "one mean": (["MODEL.PIXEL_MEAN", "[0.0]"], r"MODEL\.PIXEL_MEAN"),
        "deviation of 0": (["MODEL.PIXEL_STD", "[0.0,1.0,1.0]"], r"MODEL\.PIXEL_STD"),
        "an expression": (["SOLVER.STEPS", "__import__('os').system('touch PWNED')"], r"SOLVER\.STEPS"),
    },
    f"{TRAIN}": {
        "no folder": (["OUTPUT_DIR", ""], r"OUTPUT_DIR is empty"),
        "no steps": (["SOLVER.MAX_ITER", "0"], r"SOLVER\.MAX_ITER must be at least 1, got 0"),
        "no batch": (["SOLVER.IMS_PER_BATCH", "0"], r"SOLVER\.IMS_PER_BATCH must be at least 1, got 0"),
        "odd batch": (["SOLVER.IMS_PER_BATCH", "3", "SOLVER.ACCUMULATE", "2"], r"IMS_PER_BATCH 3 is not divisible"),
        "no learning": (["SOLVER.BASE_LR", "0.0"], r"SOLVER\.BASE_LR must be above 0, got 0"),
        "learning rate nan": (["SOLVER.BASE_LR", "float('nan')"], r"BASE_LR"),
        "learning rate 1e999": (["SOLVER.BASE_LR", "1e999"], r"SOLVER\.BASE_LR has no usable value, got inf"),
        "steps descend": (["SOLVER.STEPS", "[2, 1]"], r"SOLVER\.STEPS \[2, 1\] must ascend"),
        "steps beyond": (["SOLVER.STEPS", "[9]"], r"SOLVER\.STEPS \[9\] must ascend and lie within"),
        "unsupported key": (["SOLVER.AMP.ENABLED", "True"], r"SOLVER\.AMP\.ENABLED .* got True"),
        "workers below 0": (["DATALOADER.NUM_WORKERS", "-1"], r"DATALOADER\.NUM_WORKERS must be at least 0, got -1"),
        "unknown data": (["DATASETS.TRAIN", "['sea']"], r"unknown datasets \['sea'\]"),
        "data twice": (["DATASETS.TRAIN", "['reef','reef']"], r"DATASETS\.TRAIN .* names a dataset twice"),
        "no data": (["DATASETS.TRAIN", "[]"], r"DATASETS\.TRAIN"),
        "a number as data": (["DATASETS.TRAIN", "[3]"], r"DATASETS\.TRAIN|3"),
        "missing description": (["DATASETS.OWN", "['nothing.yaml']"], r"nothing\.yaml not found"),
        "description as a number": (["DATASETS.OWN", "[3]"], r"DATASETS\.OWN|3"),
        "missing cache": (["DATASETS.FEATURE_CACHE", "nothing"], r"nothing holds no feature cache"),
        "cache of other settings": (
            ["DATASETS.FEATURE_CACHE", "{w}/cache", "MODEL.PROMPT_ENCODER.USE_IMAGE", "False"],
            r"cache does not fit this training: its MODEL\.PROMPT_ENCODER\.USE_IMAGE is True, not False",
        ),
        "cache with a flip": (["DATASETS.FEATURE_CACHE", "{w}/cache", "INPUT.FLIP", "True"], r"INPUT\.FLIP is on"),
        "missing start": (["SOLVER.INIT_WEIGHTS", "nothing.pth"], r"nothing\.pth not found"),
        "evaluation of nothing": (["TEST.EVAL_PERIOD", "1", "DATASETS.TEST", "[]"], r"DATASETS\.TEST is empty"),
        "unknown protocol": (["TEST.EVAL_PERIOD", "1", "TEST.PROTOCOL", "all"], r"TEST\.PROTOCOL is one of .*'all'"),
        "no processes": (["--num-gpus", "0"], r"at least one process"),
        "no machine": (["--num-machines", "2"], r"several machines need --dist-url"),
        "a rank too many": (["--machine-rank", "1"], r"--machine-rank is 0 to 0, got 1"),
        "unknown option": (["--fast"], r"--fast"),
    },
    f"{EVAL}": {
        "unknown benchmark": (["--benchmarks", "sea"], r"unknown datasets \['sea'\]"),
        "missing benchmark": (["--benchmarks", "pascal_voc_20_val"], r"pascal_voc_20_val is left out"),
        "nothing": (["DATASETS.TEST", "[]"], r"DATASETS\.TEST is empty"),
        "unknown protocol": (["TEST.PROTOCOL", "all"], r"TEST\.PROTOCOL is one of .*'all'"),
        "unknown sentences": (["TEST.SENTENCES", "last"], r"TEST\.SENTENCES is one of .*'last'"),
        "template without a name": (["TEST.TEMPLATE", "a photo"], r"TEST\.TEMPLATE.*a photo"),
        "images below 0": (["TEST.MAX_IMAGES", "-1"], r"TEST\.MAX_IMAGES"),
        "batch of 0": (["TEST.IMS_PER_BATCH", "0"], r"TEST\.IMS_PER_BATCH is 1 or more"),
        "no processes": (["--num-gpus", "0"], r"at least one process"),
    },
}

WEIGHTS = {
    f"{DEMO} --opts MODEL.WEIGHTS {B}.pth": {
        "empty": ("", r"bad\.pth is damaged or not a checkpoint"),
        "a web page": ("<!DOCTYPE html><html>quota exceeded</html>", r"bad\.pth .*web page"),
        "half": (Spoiled("model_final.pth", half), r"bad\.pth is damaged or not a checkpoint"),
        "its first bytes": (Spoiled("model_final.pth", lambda c: c[:20_000]), r"bad\.pth is damaged or not a check"),
        "a text": ("weights", r"bad\.pth is damaged or not a checkpoint"),
        "a picture": (picture("PNG"), r"bad\.pth is damaged or not a checkpoint"),
        "an archive": (zipped(a="b"), r"bad\.pth is damaged or not a checkpoint"),
        "runs code": (pickled(Code()), r"bad\.pth is damaged or not a checkpoint .*not loaded for safety"),
        "runs code in an archive": (saved({"model": Code()}), r"bad\.pth .*not loaded for safety"),
        "a list": (saved([1, 2]), r"bad\.pth .*it holds a list"),
        "a number": (saved(3), r"bad\.pth .*it holds a int"),
        "no tensors": (saved({"model": {}}), r"bad\.pth is of unknown layout"),
        "texts as tensors": (saved({"model": {"a": "b"}}), r"bad\.pth is of unknown layout"),
        "unknown tensors": (saved({"model": {"a": torch.zeros(2)}}), r"bad\.pth is of unknown layout .*: a"),
        "another format": (
            Spoiled("split/adapter.safetensors", lambda c: c),
            r"bad\.pth is damaged or not a checkpoint",
        ),
        "a huge memo index": (b"\x80\x02Nr\xff\xff\xff\xff.", r"bad\.pth is damaged or not a checkpoint"),
        "a tensor that expands": (saved({"model": {"a": torch.zeros(1).expand(2**40)}}), r"bad\.pth .*\ba\b"),
        "adapter that expands": (
            saved({"adapter.tie_breakers": torch.zeros(1, 1).expand(2**30, 32)}),
            r"bad\.pth.*tie_breakers",
        ),
        "a complex tensor": (saved({"adapter.tie_breakers": torch.zeros(4, 32, dtype=torch.cfloat)}), r"bad\.pth"),
        "a sparse tensor": (saved({"adapter.tie_breakers": torch.eye(4).to_sparse()}), r"bad\.pth"),
        "a folder": (folder, r"no weight file in the folder .*bad\.pth"),
        "two files": ({"a.pth": "", "b.pth": ""}, r"bad\.pth holds several weight files \(a\.pth, b\.pth\)"),
        "a pipe": (fifo, r"bad\.pth"),
        "a broken link": (dangling, r"weight file .*bad\.pth not found"),
    },
    f"{DEMO} --opts MODEL.WEIGHTS {B}.index.json": {
        "missing shard": ('{"weight_map": {"a": "b.safetensors"}}', r"b\.safetensors"),
        "not json": ("{", r"bad\.index\.json is damaged or not a checkpoint"),
        "no map": ("{}", r"bad\.index\.json is damaged"),
        "a list": ("[]", r"bad\.index\.json is damaged"),
        "shards as numbers": ('{"weight_map": {"a": 3}}', r"bad\.index\.json is damaged"),
        "itself": ('{"weight_map": {"a": "bad.index.json"}}', r"bad\.index\.json"),
        "another index": ('{"weight_map": {"a": "other.index.json"}}', r"other\.index\.json"),
        "a shard elsewhere": ('{"weight_map": {"a": "../model_final.pth"}}', r"bad\.index\.json.*\.\./model_final"),
        "a shard by its whole path": ('{"weight_map": {"a": "/etc/passwd"}}', r"bad\.index\.json.*/etc/passwd"),
        "a shard in a pipe": ('{"weight_map": {"a": ""}}', r"bad\.index\.json"),
        "deep": ("[" * 100_000, r"bad\.index\.json is damaged"),
    },
    f"demo --config-file {{w}}/tiny.yaml --input {{w}}/cat.png --prompts cat --output {{out}} "
    f"--opts MODEL.SAM2.WEIGHTS {{w}}/split/sam2.safetensors MODEL.PROMPT_ENCODER.WEIGHTS "
    f"{{w}}/split/beit3.safetensors MODEL.WEIGHTS {B}.safetensors": {
        "empty": ("", r"bad\.safetensors is damaged or not a checkpoint"),
        "half": (Spoiled("split/adapter.safetensors", half), r"bad\.safetensors is damaged or not a checkpoint"),
        "a huge header": (b"\xff" * 8 + b"{}", r"bad\.safetensors is damaged or not a checkpoint"),
        "a deep header": (
            (100_000).to_bytes(8, "little") + b"[" * 100_000,
            r"bad\.safetensors is damaged or not a checkpoint",
        ),
        "one tensor fewer": (
            Spoiled("split/adapter.safetensors", tensors(lambda s: dict([*s.items()][1:]))),
            r"bad\.safetensors.*adapter\.",
        ),
        "one tensor more": (
            Spoiled("split/adapter.safetensors", tensors(lambda s: {**s, "adapter.more": torch.zeros(2)})),
            r"bad\.safetensors.*adapter\.more",
        ),
        "another shape": (
            Spoiled("split/adapter.safetensors", tensors(lambda s: {**s, "adapter.tie_breakers": torch.zeros(4, 31)})),
            r"adapter\.tie_breakers.*31",
        ),
        "no numbers": (
            Spoiled("split/adapter.safetensors", tensors(lambda s: {k: t * float("nan") for k, t in s.items()})),
            r"bad\.safetensors: tensor adapter\..* holds values that are not finite",
        ),
        "one infinity": (
            Spoiled(
                "split/adapter.safetensors",
                tensors(lambda s: {**s, "adapter.tie_breakers": torch.full((4, 32), torch.inf)}),
            ),
            r"bad\.safetensors: tensor adapter\.tie_breakers holds values that are not finite",
        ),
        "whole numbers": (
            Spoiled("split/adapter.safetensors", tensors(lambda s: {k: t.to(torch.int8) for k, t in s.items()})),
            r"bad\.safetensors.*adapter\..*int8",
        ),
        "truths": (
            Spoiled("split/adapter.safetensors", tensors(lambda s: {k: t > 0 for k, t in s.items()})),
            r"bad\.safetensors.*adapter\..*bool",
        ),
        "huge numbers": (
            Spoiled("split/adapter.safetensors", tensors(lambda s: {k: t * 1e30 for k, t in s.items()})),
            r"bad\.safetensors: tensor adapter\..* holds values from",
        ),
        "of another component": (Spoiled("split/sam2.safetensors", lambda c: c), r"adapter"),
    },
    f"{DEMO} --opts MODEL.PROMPT_ENCODER.TOKENIZER {B}.spm": {
        "empty": ("", r"bad\.spm is not a sentencepiece model"),
        "half": (Spoiled("beit3.spm", half), r"bad\.spm is not a sentencepiece model"),
        "a text": ("pieces", r"bad\.spm is not a sentencepiece model"),
        "a folder": (folder, r"tokenizer file .*bad\.spm not found"),
        "a broken link": (dangling, r"tokenizer file .*bad\.spm not found"),
        "a pipe": (fifo, r"bad\.spm"),
    },
    "convert split {bad}.pth --output {out}": {
        "empty": ("", r"bad\.pth is damaged or not a checkpoint"),
        "one component": (Spoiled("split/sam2.safetensors", lambda c: c), r"bad\.pth"),
        "a list": (saved([1]), r"bad\.pth .*it holds a list"),
    },
    "convert split {w}/model_final.pth --output": {
        "a file": (["{w}/cat.png"], r"cat\.png"),
        "nowhere": (["/proc/none"], r"/proc/none"),
    },
    "convert join --adapter {w}/split/adapter.safetensors --sam2 {w}/split/sam2.safetensors "
    "--beit3 {w}/split/beit3.safetensors --output {bad}.pth": {
        "a pipe": (fifo, r"bad\.pth.*regular"),
        "a link to a pipe": (linked(fifo), r"bad\.pth.*regular"),
    },
    "convert join --adapter {w}/split/adapter.safetensors --sam2 {w}/split/sam2.safetensors "
    "--beit3 {w}/split/beit3.safetensors --output": {
        "a folder": (["{out}"], r"out is a folder, not a regular file"),
        "below a file": (["{w}/cat.png/a.pth"], r"cat\.png"),
    },
    "convert join --adapter {bad}.pth --sam2 {w}/split/sam2.safetensors --beit3 {w}/split/beit3.safetensors "
    "--output {out}/a.pth": {
        "empty": ("", r"bad\.pth is damaged or not a checkpoint"),
        "another component": (Spoiled("split/sam2.safetensors", lambda c: c), r"bad\.pth"),
    },
}

PICTURES = {
    f"demo --config-file {{w}}/tiny.yaml --prompts cat --output {{out}} --input {B}.png": {
        "empty": ("", r"bad\.png is not a readable image"),
        "a text": ("no image", r"bad\.png is not a readable image"),
        "half": (Spoiled("cat.png", half), r"bad\.png is not a readable image"),
        "half a JPEG": (Spoiled("cat.jpg", half), r"bad\.png is not a readable image"),
        "half a WebP": (Spoiled("cat.webp", half), r"bad\.png is not a readable image"),
        "half a TIFF": (Spoiled("cat.tif", half), r"bad\.png is not a readable image"),
        "half a BMP": (Spoiled("cat.bmp", half), r"bad\.png is not a readable image"),
        "only a header": (png(40, 30), r"bad\.png is not a readable image"),
        "no pixels": (png(0, 30), r"bad\.png"),
        "a pixel bomb": (bomb(), r"bad\.png.*(pixels|scale)"),
        "a huge size": (png(2**31 - 1, 2**31 - 1), r"bad\.png"),
        "one long line": (png(2**31 - 1, 1), r"bad\.png"),
        "floating-point pixels": (picture("TIFF", mode="F"), r"bad\.png holds floating-point pixels"),
        "PostScript": (picture("EPS"), r"bad\.png"),
        "a PDF": (picture("PDF"), r"bad\.png"),
        "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), r"bad\.png.*HEIC"),
        "DDS": (b"DDS " + bytes(124), r"bad\.png"),
        "an icon": (picture("ICO"), r"bad\.png"),
        "PCX": (picture("PCX"), r"bad\.png"),
        "PPM of 40 billion pixels": (b"P6 200000 200000 255\n", r"bad\.png"),
        "SVG": ("<svg xmlns='http://www.w3.org/2000/svg'/>", r"bad\.png is not a readable image"),
        "a folder": (folder, r"bad\.png"),
        "a pipe that nobody fills": (fifo, r"bad\.png"),
        "a broken link": (dangling, r"image .*bad\.png not found"),
        "a link to itself": (loop, r"bad\.png"),
    },
    "demo --config-file {w}/tiny.yaml --prompts cat --output {out} --input": {
        "missing": (["nothing.png"], r"image nothing\.png not found"),
        "a line break in its name": (["a\nb.png"], r"a\\nb\.png not found"),
        "a colour in its name": (["a\x1b[31mb.png"], r"a\\x1b\[31mb\.png not found"),
        "a zero byte in its name": (["a\0b.png"], r"a\\x00b\.png"),
        "markup in its name": (["<b>.png"], r"<b>\.png not found"),
        "twice": (["{w}/cat.png", "{w}/cat.png"], r"2 images are named cat; their results would overwrite"),
        "endless": (["/dev/zero"], r"/dev/zero"),
        "no bytes": (["/dev/null"], r"/dev/null"),
        "no input": ([], r"--input"),
    },
    f"demo --config-file {{w}}/tiny.yaml --prompts cat --output {{out}} --input {{w}}/cat.png {B}.jpg -> 1": {
        "one of two is damaged": (Spoiled("cat.jpg", half), r"bad\.jpg is not a readable image"),
        "one of two is a bomb": (bomb(), r"bad\.jpg.*pixels"),
        "one of two is a folder": (folder, r"bad\.jpg"),
    },
    "demo --config-file {w}/tiny.yaml --input {w}/cat.png --prompts cat --output": {
        "a file": (["{w}/cat.png"], r"cat\.png"),
        "a device": (["/dev/null"], r"/dev/null"),
        "below a file": (["{w}/cat.png/out"], r"cat\.png"),
        "nowhere": (["/proc/none"], r"/proc/none"),
    },
    "demo --config-file {w}/tiny.yaml --input {w}/cat.png --output {out} --prompts": {
        "blank": (["cat", " "], r"prompt 1 is empty"),
        "no letter": (["\u200b"], r"unprintable"),
        "none": ([], r"--prompts"),
        "no text": (["\udcff"], r"prompt"),
    },
    "demo --config-file {w}/tiny.yaml --prompts cat --output {out}": {
        "neither image nor scene": ([], r"--input"),
        "scene below 0": (["--scene", "-1"], r"--scene is 0 or more, got -1"),
        "scene as a text": (["--scene", "x"], r"--scene.*x"),
        "both": (["--scene", "1", "--input", "{w}/cat.png"], r"not allowed with"),
        "unknown task": (["--input", "{w}/cat.png", "--task", "depth"], r"--task.*depth"),
        "unknown device": (["--input", "{w}/cat.png", "--device", "abacus"], r"abacus"),
    },
}


NAN = float("nan")
LABELS = {"name": "reef", "images": "images", "labels": "labels", "classes": ["sand", "fish"]}


def described(**changes):
    """The description of the labels with other entries."""
    return reef("labels.yaml", json.dumps({k: v for k, v in {**LABELS, **changes}.items() if v is not ...}))


DESCRIPTIONS = {
    f"{CHECK} {{bad}}/labels.yaml": {
        "missing": (reef("labels.yaml", None), r"labels\.yaml not found"),
        "empty": (reef("labels.yaml", ""), r"labels\.yaml: a description is .*, got NoneType"),
        "a text": (reef("labels.yaml", "reef"), r"labels\.yaml: a description is .*, got str"),
        "a list": (reef("labels.yaml", "- name"), r"labels\.yaml: a description is .*, got list"),
        "not YAML": (reef("labels.yaml", "name: ["), r"labels\.yaml is neither YAML nor JSON"),
        "runs code": (
            reef("labels.yaml", "!!python/object/apply:os.system ['touch PWNED']"),
            r"labels\.yaml is neither",
        ),
        "no text": (reef("labels.yaml", bytes(range(256))), r"labels\.yaml is neither YAML nor JSON"),
        "deep": (reef("labels.yaml", "[" * 10_000), r"labels\.yaml"),
        "aliases as a name": (reef("labels.yaml", f"{aliases()}\nname: *l8"), r"labels\.yaml"),
        "aliases as a value": (described(name=...), r"labels\.yaml: the key 'name' is missing"),
        "unknown key": (described(clases=[]), r"labels\.yaml: unknown key 'clases'; is it 'classes'\?"),
        "name with a folder": (described(name="../x"), r"labels\.yaml: name is also a folder's"),
        "name with a zero byte": (described(name="a\0b"), r"labels\.yaml: name"),
        "name as a number": (described(name=3), r"labels\.yaml: name must be a text, got 3"),
        "name of a benchmark": (described(name="pascal_voc_20_val"), r"another dataset named 'pascal_voc_20_val'"),
        "no images": (described(images=...), r"labels\.yaml: the key 'images' is missing"),
        "missing images": (described(images="nothing"), r"labels\.yaml: images: there is no folder .*nothing"),
        "images as a file": (described(images="classes.txt"), r"images: there is no folder .*classes\.txt"),
        "images with a zero byte": (described(images="a\0b"), r"labels\.yaml: images"),
        "two kinds": (described(panoptic="panoptic.json"), r"got labels and panoptic"),
        "no kind": (described(labels=...), r"is needed, got none"),
        "no classes": (described(classes=...), r"the key 'classes' is missing"),
        "empty classes": (described(classes=[]), r"classes"),
        "classes as a text": (described(classes="sand"), r"classes must be a list of names, .*, got 'sand'"),
        "classes as numbers": (described(classes=[1, 2]), r"name of class 0 must be a text, got 1"),
        "classes by text": (described(classes={"a": "sand"}), r"value of class 'sand' must be a whole number"),
        "classes below 0": (described(classes={-1: "sand"}), r"value of class 'sand' must be a whole number"),
        "huge class": (described(classes={10**30: "sand"}), r"label values from 0 to 65535"),
        "class twice": (described(classes=["sand", "sand "]), r"classes have the same name: sand"),
        "class with a line break": (described(classes=["a\nb"]), r"class 0 has a line break in its name"),
        "unknown thing": (described(things=["cat"]), r"things has \['cat'\], which are not among the classes"),
        "things as a text": (described(things="fish"), r"things must be a list of class names, got 'fish'"),
        "ignored class": (described(ignore=1), r"label values \[1\] are both classes and ignored"),
        "ignore below 0": (described(ignore=-1), r"ignore must be a label value from 0 to 65535.*got -1"),
        "ignore as a text": (described(ignore="void"), r"ignore must be a label value.*got 'void'"),
    },
    f"{CHECK} {{bad}}/labels.yaml -> 1": {
        "no image": (reef("images/a.jpg", None), r"label images in .* have no image in .*, such as a"),
        "a missing label": (reef("labels/a.png", None), r"1 of 2 files are missing, such as .*labels/a\.png"),
        "half a label": (reef("labels/a.png", half), r"labels/a\.png is not a readable label image"),
        "half an image": (reef("images/a.jpg", half), r"images/a\.jpg is not a readable image"),
        "label of another size": (reef("labels/a.png", picture("PNG", (9, 9), "L")), r"labels/a\.png is 9 x 9"),
        "label in colour": (reef("labels/a.png", picture("PNG", (20, 16))), r"labels/a\.png is no label image"),
        "unknown label": (reef("labels/a.png", picture("PNG", (20, 16), "L", 9)), r"labels/a\.png has the label 9"),
        "label as a bomb": (reef("labels/a.png", bomb()), r"labels/a\.png"),
        "image as a bomb": (reef("images/a.jpg", bomb()), r"images/a\.jpg.*pixels"),
        "label as a folder": (reef("labels/a.png", folder), r"labels/a\.png"),
        "label as a pipe": (reef("labels/a.png", fifo), r"labels/a\.png"),
        "label as a text": (reef("labels/a.png", "1"), r"labels/a\.png is not a readable label image"),
        "image as a pipe": (reef("images/a.jpg", fifo), r"images/a\.jpg"),
        "label in floats": (reef("labels/a.png", picture("TIFF", (20, 16), "F")), r"labels/a\.png is no label image"),
        "two of a name": (reef("images/a.png", picture("PNG")), r"several files named a: a\.jpg and a\.png"),
    },
}


DEEP = "[" * 100_000
HUGE = {"size": [65_535, 65_535], "counts": [65_535 * 65_535]}
IMAGES = [
    ({"images": ...}, r"{}.*it has no 'images'"),
    ({"images": 3}, r"{}"),
    ({"images": [3]}, r"{}"),
    ({"images": {}}, r"{}"),
    ({"images.0.id": ...}, r"{}.*it has no 'id'"),
    ({"images.0.id": 2}, r"{}: two images have the id 2"),
    ({"images.0.id": 1.5}, r"{}: an image id that is no text is 1\.5, not a whole number"),
    ({"images.0.id": "a"}, r"{}.*(ids are numbers and some are texts|does not have 1)"),
    ({"images.0.id": []}, r"{}: an image id that is no text is \[\], not a whole number"),
    ({"images.0.height": 0}, r"{}: the height of image 1 is 0, not one of 1 to 65535"),
    ({"images.0.height": -1}, r"{}: the height of image 1 is -1"),
    ({"images.0.height": 10**9}, r"{}: the height of image 1 is 1000000000"),
    ({"images.0.height": NAN}, r"{}: the height of image 1 is nan, not a whole number"),
    ({"images.0.height": "16"}, r"{}: the height of image 1 is '16', not a whole number"),
    ({"images.0.file_name": ...}, r"{}.*it has no 'file_name'"),
    ({"images.0.file_name": 3}, r"{}"),
    ({"annotations": ...}, r"{}.*it has no 'annotations'"),
    ({"annotations": {}}, r"{}"),
    ({"annotations": [3]}, r"{}"),
    ({"annotations": []}, r"{} has no usable image"),
    ({"annotations.0.image_id": 99}, r"{}: its list of images does not have 99"),
    ({"annotations.0.image_id": []}, r"{}"),
]
CATEGORIES = [
    ({"categories": ...}, r"{} is no json of classes: it has no 'categories'"),
    ({"categories": 3}, r"{} is no json of classes"),
    ({"categories.0.id": ...}, r"{} is no json of classes: it has no 'id'"),
    ({"categories.0.id": 8}, r"{}: several categories have the same id: 8"),
    ({"categories.0.id": "a"}, r"{}: a category id is 'a', not a whole number"),
    ({"categories.0.id": []}, r"{}: a category id is \[\], not a whole number"),
    ({"categories.0.name": ...}, r"{} is no json of classes: it has no 'name'"),
    ({"categories.0.name": "fish"}, r"(the same name|same name): fish"),
    ({"categories.0.name": 3}, r"{}: a category has a name of one line, got 3"),
    ({"categories.0.name": ""}, r"{}: a category has a name of one line, got ''"),
    ({"categories.0.name": "a\nb"}, r"{}: a category has a name of one line"),
]


def of(kind, listed):
    """Changes of a kind of json, by name."""
    return {str(change): (reef(f"{kind}.json", change), line.format(f"{kind}\\.json")) for change, line in listed}


JSONS = {
    f"{CHECK} {{bad}}/panoptic.yaml": {
        "not json": (reef("panoptic.json", "{"), r"panoptic\.json is not json"),
        "half": (reef("panoptic.json", half), r"panoptic\.json is not json .*cut short"),
        "a list": (reef("panoptic.json", "[]"), r"panoptic\.json holds a list"),
        "no text": (reef("panoptic.json", bytes(range(256))), r"panoptic\.json is not json"),
        "deep": (reef("panoptic.json", DEEP), r"panoptic\.json"),
        "a long number": (reef("panoptic.json", '{"images": ' + "9" * 10_000 + "}"), r"panoptic\.json"),
        "missing": (reef("panoptic.json", None), r"panoptic\.yaml: panoptic: there is no file .*panoptic\.json"),
        "a pipe": (reef("panoptic.json", fifo), r"panoptic\.json"),
        **of("panoptic", CATEGORIES),
        "categories.0.isthing": (reef("panoptic.json", {"categories.0.isthing": ...}), r"it has no 'isthing'"),
    },
    f"{CHECK} {{bad}}/panoptic.yaml -> 1": {
        **of("panoptic", IMAGES),
        "no categories": (reef("panoptic.json", {"categories": []}), r"panoptic\.json: .*the category id 3"),
        **of(
            "panoptic",
            [
                ({"annotations.1.image_id": 1}, r"{}: 1 images are annotated twice, such as image 1"),
                ({"annotations.0.file_name": ...}, r"{}.*it has no 'file_name'"),
                ({"annotations.0.file_name": "c.png"}, r"1 of 2 files are missing, such as .*c\.png"),
                ({"annotations.0.segments_info": ...}, r"{}.*it has no 'segments_info'"),
                ({"annotations.0.segments_info": 3}, r"{}"),
                ({"annotations.0.segments_info.0.id": 2}, r"{}: two segments of image 1 have one id: \[2, 2\]"),
                ({"annotations.0.segments_info.0.id": "a"}, r"{}: the id of a segment of image 1 is 'a'"),
                ({"annotations.0.segments_info.0.id": 9}, r"panoptic/a\.png has ids that its json does not: \[1\]"),
                ({"annotations.0.segments_info.0.category_id": 9}, r"{}.*has the category id 9, which is none of"),
                ({"annotations.0.segments_info.0.category_id": []}, r"{}"),
                ({"annotations.0.segments_info.0.area": NAN}, r"{}: the area of segment 1 is nan"),
                ({"annotations.0.segments_info.0.area": -1}, r"{}: the area of segment 1 is -1"),
                ({"annotations.0.segments_info.0.iscrowd": 7}, r"{}: iscrowd must be 0 or 1, got 7"),
            ],
        ),
        "half a PNG": (reef("panoptic/a.png", half), r"panoptic/a\.png is not a readable image"),
        "PNG of another size": (reef("panoptic/a.png", picture("PNG", (9, 9))), r"panoptic/a\.png is 9 x 9"),
    },
    f"{CHECK} {{bad}}/instances.yaml -> 1": {
        **of("instances", IMAGES),
        **of(
            "instances",
            [
                ({"annotations.0.category_id": 9}, r"{}: an object has the category id 9, none of the known ones"),
                ({"annotations.0.category_id": []}, r"{}"),
                ({"annotations.0.area": "big"}, r"a\.jpg: object 1: its area is 'big', that of its mask is taken"),
                ({"annotations.0.bbox": [1, 2]}, r"a\.jpg: object 1: its bbox is \[1, 2\]"),
                ({"annotations.0.bbox": [1, 2, 3, NAN]}, r"a\.jpg: object 1: its bbox is \[1, 2, 3, nan\]"),
                ({"annotations.0.iscrowd": 7}, r"{}: iscrowd must be 0 or 1, got 7"),
                ({"annotations.0.segmentation": ...}, r"a\.jpg: object 1: a segmentation without a polygon"),
                ({"annotations.0.segmentation": [[1, 2, 3]]}, r"a\.jpg: object 1: .*polygon of three points"),
                ({"annotations.0.segmentation": "x"}, r"a\.jpg: object 1: neither polygons nor an RLE"),
                ({"annotations.0.segmentation": [["a"] * 6]}, r"a\.jpg: object 1: neither polygons nor an RLE"),
                ({"annotations.0.segmentation": [[1e30] * 6]}, r"a\.jpg: object 1: a polygon far outside"),
                ({"annotations.0.segmentation": [[NAN] * 6]}, r"a\.jpg: object 1: a polygon far outside"),
                (
                    {"annotations.1.segmentation": {"size": [16, 20]}},
                    r"object 2: an RLE without size and counts",
                ),
                ({"annotations.1.segmentation.size": [9, 9]}, r"object 2: a mask has the size \[9, 9\]"),
                ({"annotations.1.segmentation.counts": 3}, r"object 2: the counts of a mask must be"),
                ({"annotations.1.segmentation.counts": "~~~"}, r"b\.jpg: object 2: "),
                ({"annotations.1.segmentation.counts": "\u20ac"}, r"b\.jpg: object 2: "),
                ({"annotations.1.segmentation.counts": [320.5]}, r"object 2: the runs of a mask must be whole"),
                ({"annotations.1.segmentation.counts": [10**30]}, r"object 2: the runs of a mask have 1000"),
                ({"annotations.1.segmentation.counts": [-320, 640]}, r"object 2: the runs of a mask"),
                ({"annotations.1.segmentation": HUGE}, r"object 2: a mask has the size \[65535, 65535\]"),
                (
                    {"images.1.height": 65_535, "images.1.width": 65_535, "annotations.1.segmentation": HUGE},
                    r"65535 x 65535|pixels",
                ),
            ],
        ),
    },
}

SCORES = {
    f"score --task panoptic --gt {R}/panoptic.json --output {{out}}/a.json --pred {B}/panoptic.json": {
        "half": (reef("panoptic.json", half), r"panoptic\.json is not json"),
        "deep": (reef("panoptic.json", DEEP), r"panoptic\.json"),
        "a pipe": (reef("panoptic.json", fifo), r"panoptic\.json"),
        "missing": (reef("panoptic.json", None), r"panoptic\.json not found"),
        "missing PNG": (reef("panoptic/a.png", None), r"panoptic/a\.png not found"),
        "half a PNG": (reef("panoptic/a.png", half), r"panoptic/a\.png is not a readable image"),
        "PNG of another size": (reef("panoptic/a.png", picture("PNG", (9, 9))), r"image 1: .*9"),
        "PNG as a bomb": (reef("panoptic/a.png", bomb()), r"panoptic/a\.png.*pixels"),
        **of(
            "panoptic",
            [
                ({"annotations": []}, r"{} has no prediction for 2 images"),
                ({"annotations.0.image_id": 2}, r"{}: 2 annotations with only 1 ids"),
                ({"annotations.0.image_id": []}, r"{}"),
                ({"annotations.0.file_name": "../../../nothing.png"}, r"nothing\.png|outside"),
                ({"annotations.0.segments_info.0.category_id": 9}, r"image 1: .* unknown category 9"),
                ({"annotations.0.segments_info": []}, r"image 1: the predicted map has the ids"),
                ({"annotations.0.segments_info": 3}, r"{}"),
            ],
        ),
    },
    f"score --task panoptic --pred {R}/panoptic.json --output {{out}}/a.json --gt {B}/panoptic.json": of(
        "panoptic", CATEGORIES
    ),
    f"score --task instance --gt {R}/instances.json --output {{out}}/a.json --pred {B}/found.json": of(
        "found",
        [
            ({"0.image_id": 99}, r"{} has 1 images that the ground truth does not list: 99"),
            ({"0.image_id": []}, r"{}"),
            ({"0.category_id": 9}, r"image 1: .*9"),
            ({"0.category_id": ...}, r"{} is no list of COCO results: it has no 'category_id'"),
            ({"0.score": NAN}, r"image 1: .*nan"),
            ({"0.score": "x"}, r"image 1: .*x"),
            ({"0.score": ...}, r"{} is no list of COCO results: it has no 'score'"),
            ({"0.segmentation.size": [9, 9]}, r"image 1: a mask has the size \[9, 9\]"),
            ({"0.segmentation.counts": "~"}, r"image 1: "),
            ({"0.segmentation": HUGE}, r"image 1: a mask has the size"),
            ({"0.segmentation": ...}, r"image 1|{}"),
            ({"0": 3}, r"{}"),
        ],
    ),
    f"score --task instance --iou-type bbox --gt {R}/instances.json --output {{out}}/a.json --pred {B}/found.json": of(
        "found", [({"0.bbox": [1]}, r"image 1"), ({"0.bbox": "x"}, r"image 1"), ({"0.bbox": [NAN] * 4}, r"image 1")]
    ),
    f"score --task concept --gt {R}/instances.json --output {{out}}/a.json --pred {B}/found.json": of(
        "found", [({"0.category_id": 9}, r"{} has the category 9"), ({"0.score": "x"}, r"image 1: .*x")]
    ),
    f"score --task referring --gt {R}/referring.json --output {{out}}/a.json --pred {B}/referred.json": of(
        "referred",
        [
            ({"0.id": 99}, r"{} has predictions for 1 unknown ids, such as 99"),
            ({"0.id": 2}, r"{}: 2 annotations with only 1 ids"),
            ({"0.id": []}, r"{}"),
            ({"0.segmentation": ...}, r"{} is no .*: it has no 'segmentation'"),
            ({"0.segmentation.size": [9, 9]}, r"{}: prediction 1: a mask has the size \[9, 9\]"),
            ({"0.segmentation": "x"}, r"{}: prediction 1"),
        ],
    ),
    f"score --task semantic --gt-dir {R}/labels --output {{out}}/a.json --pred-dir {R}/labels --classes {B}.txt": {
        "no classes": ("", r"bad\.txt must name all its classes"),
        "an empty line": ("sand\n\nfish\n", r"bad\.txt must name all its classes"),
        "twice": ("sand\nsand\n", r"bad\.txt must name all its classes, each differently"),
        "too few": ("sand\n", r"labels/a\.png.*1"),
        "no text": (bytes(range(256)), r"bad\.txt"),
        "a pipe": (fifo, r"bad\.txt"),
        "a folder": (folder, r"bad\.txt"),
    },
    f"score --task semantic --gt-dir {R}/labels --output {{out}}/a.json --pred-dir {R}/labels --classes {B}.json": {
        "an object": ("{}", r"bad\.json is no list of classes"),
        "a number": ("3", r"bad\.json is no list of classes"),
        "other ids": ('[{"id": 1, "name": "a"}]', r"bad\.json must have the ids 0, 1, 2"),
        "no names": ("[3, 4]", r"bad\.json"),
        "deep": (DEEP, r"bad\.json"),
    },
    f"score --task semantic --gt-dir {R}/labels --classes {R}/classes.txt --output {{out}}/a.json --pred-dir "
    f"{B}/labels": {
        "missing": (reef("labels/a.png", None), r"1 of 2 predictions are missing, such as .*a\.png"),
        "half": (reef("labels/a.png", half), r"labels/a\.png is not a readable label image"),
        "of another size": (reef("labels/a.png", picture("PNG", (9, 9), "L")), r"labels/a\.png: .*9"),
        "in colour": (reef("labels/a.png", picture("PNG", (20, 16))), r"labels/a\.png is no label image"),
        "two of a name": (reef("labels/a.tif", picture("TIFF")), r"several files named a: a\.png and a\.tif"),
    },
    f"score --gt {R}/panoptic.json --pred {R}/panoptic.json --output {{out}}/a.json": {
        "no task": ([], r"--task"),
        "unknown task": (["--task", "depth"], r"--task.*depth"),
        "no classes": (["--task", "semantic"], r"--task semantic needs --classes"),
        "a json as folder": (["--task", "semantic", "--classes", "{w}/reef/classes.txt"], r"panoptic\.json"),
    },
    f"score --task panoptic --gt {R}/panoptic.json --pred {R}/panoptic.json --output": {
        "a folder": (["{out}"], r"out is a folder, not a regular file"),
        "below a file": (["{w}/cat.png/a.json"], r"cat\.png"),
        "nowhere": (["/proc/none/a.json"], r"/proc/none"),
    },
    f"score --task panoptic --gt {R}/panoptic.json --pred {R}/panoptic.json --output {B}.json": {
        "a pipe": (fifo, r"bad\.json.*regular"),
        "a link to a pipe": (linked(fifo), r"bad\.json.*regular"),
        "a link to itself": (loop, r"bad\.json"),
    },
}


def saved_reef(file, change):
    """The evaluation's output with a saved prediction changed."""
    return Spoiled(f"predictions/reef/{file}", change, "evaluated")


FIRST = "305521999000000"
"""Id of the first image of the dataset."""
REPORTS = {
    f"report --runs {B} --output {{out}}/a.html": {
        "no results": (Spoiled("results.json", None, "evaluated"), r"results\.json not found"),
        "a link to itself": (loop, r"bad"),
        "half": (Spoiled("results.json", half, "evaluated"), r"results\.json is not json"),
        "a list": (Spoiled("results.json", "[]", "evaluated"), r"results\.json holds a list"),
        "deep": (Spoiled("results.json", DEEP, "evaluated"), r"results\.json"),
        "a pipe": (Spoiled("results.json", fifo, "evaluated"), r"results\.json"),
        **{
            str(change): (Spoiled("results.json", change, "evaluated"), r"results\.json")
            for change in (
                *({"benchmarks": ...}, {"benchmarks": 3}, {"benchmarks": {"reef": 3}}, {"weights": 3}, {"preset": 3}),
                *({"missing": 3}, {"protocol": ...}, {"command": []}, {"paper": 3}, {"paper": {"x": 1}}),
                *({"benchmarks.reef.semantic": 3}, {"benchmarks.reef.semantic.mIoU": "x"}),
                *({"benchmarks.reef.semantic.per_class": []}, {"benchmarks.reef.semantic.per_class.fish": 3}),
                *(
                    {"benchmarks.reef.semantic.mIoU": []},
                    {"benchmarks.reef.skipped": 3},
                    {"benchmarks.reef.images": ...},
                ),
                *({"benchmarks.reef.images": ...}, {"weights.sam2.layout": 3}, {"benchmarks.reef.remarks": [3]}),
            )
        },
        "no names": (saved_reef("classes.txt", None), r"has no predictions"),
        "missing PNG": (saved_reef(f"prediction/semantic/{FIRST}.png", None), rf"{FIRST}\.png not found"),
        "half a PNG": (saved_reef(f"truth/semantic/{FIRST}.png", half), rf"{FIRST}\.png is not a readable label"),
        "PNG of another size": (saved_reef(f"truth/semantic/{FIRST}.png", picture("PNG", (9, 9), "L")), rf"{FIRST}|9"),
        "half a record": (saved_reef(f"images/{FIRST}.json", half), rf"{FIRST}\.json"),
        "record as a list": (saved_reef(f"images/{FIRST}.json", "[]"), rf"{FIRST}\.json"),
        "record without an image": (saved_reef(f"images/{FIRST}.json", {"file_name": ...}), rf"{FIRST}\.json"),
        "lost image": (saved_reef(f"images/{FIRST}.json", {"file_name": "/nothing.png"}), r"/nothing\.png not found"),
        "another image": (saved_reef(f"images/{FIRST}.json", {"picture": 1}), r"has changed since it was evaluated"),
    },
    "report --runs {w}/evaluated --output {out}/a.html": {
        "unknown benchmark": (["--benchmarks", "sea"], r"no run was evaluated on sea; available: reef"),
        "images below 0": (["--images", "-1"], r"--images must be at least 0, got -1"),
        "too many names": (["--names", "a", "b"], r"--names needs 1 different names"),
    },
    f"{EVAL} --save-predictions --output {B}": {
        "half a record": (saved_reef(f"images/{FIRST}.json", half), rf"{FIRST}\.json"),
        "record as a list": (saved_reef(f"images/{FIRST}.json", "[]"), rf"{FIRST}\.json cannot be reused"),
        "other prompts": (
            saved_reef(f"images/{FIRST}.json", {"prompts": ["x"]}),
            r"reused: it has other prompts",
        ),
        "another image": (
            saved_reef(f"images/{FIRST}.json", {"picture": 1}),
            r"cannot be reused: its image has changed",
        ),
        "half a PNG": (saved_reef(f"prediction/semantic/{FIRST}.png", half), rf"{FIRST}\.json cannot be reused"),
        "PNG of another size": (
            saved_reef(f"prediction/semantic/{FIRST}.png", picture("PNG", (9, 9), "L")),
            r"a\.jpg: the prediction is \(9, 9\)",
        ),
        "half a config": (saved_reef("run.json", half), r"run\.json"),
        "config as a list": (saved_reef("run.json", "[]"), r"run\.json|predictions made with other"),
        "of another model": (saved_reef("run.json", {"weights": {}}), r"has predictions made with other weights"),
    },
}

CACHES = {
    "cache_features --config-file {w}/tiny.yaml --verify --output {bad}": {
        "no cache": (folder, r"bad holds no feature cache"),
        "no header": (Spoiled("header.json", None, "cache"), r"bad holds no feature cache"),
        "half a header": (Spoiled("header.json", half, "cache"), r"header\.json is damaged"),
        "deep header": (Spoiled("header.json", DEEP, "cache"), r"header\.json"),
        "header as a list": (Spoiled("header.json", "[]", "cache"), r"header\.json is damaged"),
        "another version": (Spoiled("header.json", {"version": 99}, "cache"), r"bad is a cache of another format \(99"),
        "unknown dtype": (Spoiled("header.json", {"dtype": "fp8"}, "cache"), r"header\.json is damaged"),
        "unknown field": (Spoiled("header.json", {"x": 1}, "cache"), r"header\.json is damaged"),
        "settings as a list": (Spoiled("header.json", {"settings": []}, "cache"), r"header\.json is damaged"),
    },
    "cache_features --config-file {w}/tiny.yaml --output {out}": {
        "unknown features": (["--image-features", "some"], r"--image-features.*some"),
        "unknown dtype": (["--dtype", "int8"], r"--dtype.*int8"),
        "a part too many": (["--part", "1"], r"part 1 of 1: parts are numbered from 0 to 0"),
        "no parts": (["--num-parts", "0"], r"part 0 of 0: parts are numbered from 0"),
        "batch of 0": (["--batch-size", "0"], r"batch size"),
        "a flip": (["INPUT.FLIP", "True"], r"INPUT\.FLIP is on"),
        "unknown data": (["DATASETS.TRAIN", "['sea']"], r"unknown datasets \['sea'\]"),
    },
    "cache_features --config-file {w}/tiny.yaml --output": {
        "no folder": ([""], r"argument --output: a name is needed, got an empty one"),
        "a file": (["{w}/cat.png"], r"cat\.png"),
        "of other weights": (["{w}/cache", "--dtype", "fp32", "--image-features", "all"], r"cache.*dtype is bf16"),
    },
}

FOLDERS = {
    f"{ANNOTATE} --input {{w}}/pictures --task instance --prompts {B}.txt": {
        "empty": ("", r"bad\.txt has no prompt"),
        "only comments": ("# cat\n\n", r"bad\.txt has no prompt"),
        "not UTF-8": (b"caf\xe9", r"bad\.txt is not UTF-8 text"),
        "UTF-16": ("cat".encode("utf-16"), r"bad\.txt"),
        "a control character": ("cat\x07", r"bad\.txt, line 1: .*unprintable"),
        "an invisible character": ("cat\u200b", r"bad\.txt, line 1: .*unprintable"),
        "a zero byte": ("cat\0", r"bad\.txt, line 1: .*unprintable"),
        "a thing and stuff": (
            "cat\nstuff: cat",
            r"bad\.txt, line 2: 'cat' is both a thing and stuff; keep one of them",
        ),
        "a mark alone": ("cat\nstuff:", r"bad\.txt, line 2: 'stuff:' has no prompt after the mark"),
        "a folder": (folder, r"bad\.txt"),
        "a pipe": (fifo, r"bad\.txt"),
        "missing": (dangling, r"bad\.txt not found; write one prompt per line"),
    },
    f"{ANNOTATE} --input {{w}}/pictures --task instance --cvat --prompts {B}.txt": {
        "too long for CVAT": ("c" * 65, r"CVAT takes labels of up to 64 characters, 1 of the prompts are longer"),
    },
    f"app --config-file {{w}}/tiny.yaml --port {PORT}": {
        "a port too high": (["--port", "99999"], r"--port is 1 to 65535, got 99999"),
        "a host with a port": (["--host", "[::1]:80"], r"--host is a name or an IPv4 address.*got '\[::1\]:80'"),
        "a port of words": (["--port", "http"], r"--port.*http"),
        "a host that is not there": (["--host", "1.2.3.4"], rf"cannot listen on '1\.2\.3\.4', port {PORT}: .*--host"),
        "a host of no letters": (["--host", "\x1b[2J"], rf"cannot listen on '\\x1b\[2J', port {PORT}: .*--host"),
        "no queue": (["--queue", "0"], r"--queue and --max-work are at least 1, got 0"),
        "no work": (["--max-work", "-5"], r"--queue and --max-work are at least 1, got 32 and -5"),
        "a root that is no path": (["--root-path", "a"], r"--root-path begins with / or is an address, got a"),
        "a config that is missing": (["--config-file", "none.yaml"], r"none\.yaml not found"),
    },
    f"{ANNOTATE} --prompts {{w}}/prompts.txt --task instance --input": {
        "missing": (["nothing"], r"nothing is not a folder"),
        "a file": (["{w}/cat.png"], r"cat\.png is not a folder"),
        "no image": (["{out}"], r"out .*(no image|images)"),
        "line break in the name": (["a\nb"], r"a\\nb is not a folder"),
    },
    f"{ANNOTATE} --prompts {{w}}/prompts.txt --task instance --input {B}": {
        "two of a name": ({"a.png": picture("PNG"), "a.jpg": picture("JPEG")}, r"bad has 2 images named a"),
    },
    "annotate --config-file {w}/tiny.yaml --num-processes 1 --prompts {w}/prompts.txt --task instance "
    "--input {w}/pictures --output": {
        "the input": (["{w}/pictures"], r"pictures is the folder of the images; use another --output"),
        "a file": (["{w}/cat.png"], r"cat\.png"),
        "nowhere": (["/proc/none"], r"/proc/none"),
        "of another question": (["{w}/annotated"], r"annotated has predictions made with other task"),
    },
    f"{ANNOTATE} --prompts {{w}}/prompts.txt --task panoptic --input {B} -> 1": {
        name: ({"a.png": picture("PNG"), "b.jpg": content}, rf"2 images|1 images[\s\S]*b\.jpg: {line}")
        for name, content, line in (
            ("an empty picture", b"", r".*not a readable image"),
            ("half a picture", picture("JPEG")[:300], r".*not a readable image"),
            ("a bomb", bomb(), r".*pixels"),
            ("a broken link", dangling, r".*not found"),
            ("a link to itself", loop, r".*too many levels"),
            ("PostScript", picture("EPS"), r".*it is EPS; convert it"),
            ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), r".*it is HEIC; convert it"),
            ("AVIF", b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + bytes(99), r".*it is AVIF; convert it"),
            ("a video", Spoiled("clip.mp4", half), r".*it is a video; convert it"),
            ("a pipe", fifo, r".*is a pipe, where a file is needed"),
            ("a text", "cat", r".*not a readable image"),
        )
    },
    f"{ANNOTATE} --input {{w}}/pictures --prompts {{w}}/prompts.txt": {
        "no task": ([], r"--task"),
        "no processes": (["--task", "instance", "--num-processes", "0"], r"at least one process"),
        "unknown device": (["--task", "instance", "--opts", "MODEL.DEVICE", "abacus"], r"abacus"),
    },
    f"{VIDEO} --input {B}.mp4": {
        "empty": ("", r"bad\.mp4 is not a readable video"),
        "a text": ("no video", r"bad\.mp4 is not a readable video"),
        "half": (Spoiled("clip.mp4", half), r"bad\.mp4"),
        "only a header": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", r"bad\.mp4 is not a readable video"),
        "an empty folder": (folder, r"bad\.mp4 has no image"),
        "a folder of texts": ({"a.txt": "", "b.pdf": ""}, r"bad\.mp4 has no image"),
        "a folder of damage": ({"0.png": "", "1.png": "x"}, r"bad\.mp4|0\.png"),
        "a pipe": (fifo, r"bad\.mp4"),
        "a broken link": (dangling, r"clip .*bad\.mp4 not found"),
        "a playlist": ("#EXTM3U\n#EXTINF:1,\nhttp://localhost:1/a.ts\n", r"bad\.mp4 is not a readable video"),
        "a list of files": ("ffconcat version 1.0\nfile /etc/passwd\n", r"bad\.mp4 is not a readable video"),
        "a picture": (picture("PNG"), r"bad\.mp4 is not a readable video"),
    },
    f"{VIDEO} --input {B} -> 1": {
        name: ({"0.png": picture("PNG"), "1.png": content}, rf"bad: 1 lost [\s\S]*{line}")
        for name, content, line in (
            ("a damaged frame", "x", r"1\.png is not a readable image"),
            ("a frame of another size", picture("PNG", (9, 9)), r"frame 1 is 9 x 9 pixels"),
            ("a frame as a bomb", bomb(), r"1\.png has .* pixels"),
            ("a frame as a pipe", fifo, r"1\.png is a pipe"),
            ("a frame as a link to itself", loop, r"1\.png: too many levels"),
        )
    },
    f"{VIDEO} --input": {
        "missing": (["nothing.mp4"], r"clip nothing\.mp4 not found"),
        "an address": (["http://localhost:1/a.mp4"], r"clip http:/+localhost:1/a\.mp4 not found"),
        "a camera": (["0"], r"clip 0 not found"),
        "every below 0": (["{w}/clip", "--every", "-1"], r"every at least 0, .* -1"),
        "forget below 0": (["{w}/clip", "--forget", "-1"], r"forget at least 1; got .* -1"),
        "unknown tracker": (["{w}/clip", "--tracker", "x"], r"--tracker.*x"),
        "no video modules": (["{w}/clip", "--tracker", "memory"], r"model_final\.pth has no video memory"),
        "blank prompt": (["{w}/clip", "--prompts", " "], r"prompt 0 is empty"),
    },
}

PREPARATIONS = {
    f"prepare refcocog --root {{out}} --no-check --instances {R}/instances.json --refs {B}.p": {
        "empty": ("", r"bad\.p is not trusted or is damaged"),
        "runs code": (pickled(Code()), r"bad\.p is not trusted or is damaged: it asks for posix\.system"),
        "half": (Spoiled("reef/refs.p", half), r"bad\.p is not trusted or is damaged"),
        "a text": ("references", r"bad\.p is not trusted or is damaged"),
        "a number": (pickled(3), r"bad\.p has no references"),
        "a list of numbers": (pickled([3]), r"bad\.p has no references"),
        "no ids": (pickled([{"split": "val"}]), r"bad\.p has no references"),
        "in itself": (b"\x80\x02]q\0h\0a.", r"bad\.p"),
        "a huge memo index": (b"\x80\x02Nr\xff\xff\xff\xff.", r"bad\.p has no references"),
        "a huge text": (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", r"bad\.p is not trusted or is damaged"),
        "doubled lists": (b"\x80\x02]" + b"q\0]h\0ah\0ah\0a" * 60 + b".", r"bad\.p"),
        "a pipe": (fifo, r"bad\.p"),
        "missing": (dangling, r"bad\.p not found"),
    },
    f"prepare refcocog --root {{out}} --no-check --refs {R}/refs.p --instances {B}.json": {
        "not json": ("{", r"bad\.json is not json"),
        "deep": (DEEP, r"bad\.json"),
        "a list": ("[]", r"bad\.json holds a list"),
        "empty": ("{}", r"it has no '(images|annotations)'"),
        "no object": ('{"images": [], "annotations": [], "categories": []}', r"1|instances"),
    },
    "prepare": {
        "nothing": ([], r"NAME"),
        "unknown": (["ade20k"], r"'ade20k' .*did you mean ade20k_\d+\?"),
        "unknown option": (["coco", "--rot", "x"], r"there is no option --rot; did you mean --root\?"),
        "missing data": (["cityscapes", "--root", "{out}"], r"out/cityscapes/leftImg8bit/val and "),
        "missing COCO": (["coco", "--root", "{out}"], r"panoptic_train2017\.json and .*refs\(umd\)\.p not found"),
        "missing ADE20K": (["ade20k_150", "--root", "{out}"], r"out/ADEChallengeData2016/images/validation not found"),
        "missing ScanNet": (["scannet", "--root", "{out}"], r"out/scannet/scannetv2_val\.txt and "),
        "missing BDD10K": (["bdd10k", "--root", "{out}"], r"out/bdd100k/images/10k/val and "),
        "missing Context": (["pascal_context", "--root", "{out}"], r"out/VOCdevkit/.*val\.txt and "),
    },
}

TOOLS = {
    "parity --golden {bad}.npz": {
        "empty": ("", r"bad\.npz is not a golden file"),
        "half": (Spoiled("golden.npz", half), r"bad\.npz is not a golden file"),
        "a text": ("x", r"bad\.npz is not a golden file"),
        "an archive": (zipped(a="b"), r"bad\.npz"),
        "other arrays": (Spoiled("golden.npz", lambda c: c), r"bad\.npz"),
        "runs code": (pickled(Code()), r"bad\.npz is not a golden file"),
        "a pipe": (fifo, r"bad\.npz"),
    },
    "benchmark --config-file {w}/tiny.yaml --output {out}": {
        "no prompts": (["--prompts", "0"], r"--num-prompts, --warmup, --repeats and --images are 1 or more"),
        "no repeats": (["--repeats", "0"], r"--num-prompts, --warmup, --repeats and --images are 1 or more"),
        "missing image": (["--image", "nothing.png"], r"nothing\.png"),
        "no image": (["--image", "{w}/prompts.txt"], r"prompts\.txt"),
        "missing config": (["--against", "nothing.yaml"], r"nothing\.yaml not found"),
        "unknown device": (["--device", "abacus"], r"abacus"),
        "unknown precision": (["--precision", "fp8"], r"--precision.*fp8"),
    },
    "ablate --config-file {w}/tiny.yaml --output {out}": {
        "no seeds": (["--seeds", "0"], r"need --seeds >= 1, got 0"),
        "unknown run": (["--runs", "E99"], r"--runs.*E99"),
        "missing adapter": (
            ["--benchmarks", "shapes_val", "--runs", "--figures", "{out}", "--adapter", "nothing"],
            r"nothing does not exist",
        ),
        "unknown key": (["--runs", "E1", "--seeds", "1", "MODEL.WEIGHT", "x"], r"MODEL\.WEIGHT"),
    },
    "pretrain": {
        "unknown encoder": (["vit"], r"argument encoder: invalid choice: 'vit'"),
        "missing config": (["sam2", "--config-file", "nothing.yaml", "--output", "{out}"], r"nothing\.yaml not found"),
        "no SAM2": (
            ["memory", "--config-file", "{w}/tiny.yaml", "--output", "{out}"],
            r"MODEL\.SAM2\.WEIGHTS is empty",
        ),
    },
    "check": {
        "unknown": (["sea"], r"'sea'"),
        "missing description": (["--own", "nothing.yaml"], r"nothing\.yaml not found"),
    },
    "download --output {out}": {
        "unknown": (["sam2_large"], r"there is no sam2_large; did you mean sam2\.?1?_hiera_large"),
        "unknown option": (["--fast"], r"--fast"),
    },
}

OUTPUTS = {
    f"report --runs {{w}}/evaluated --output {B}.html": {
        "a pipe": (fifo, r"bad\.html is a pipe, not a regular file"),
        "a link to a pipe": (linked(fifo), r"bad\.html is a pipe, not a regular file"),
        "a folder": (folder, r"bad\.html is a folder, not a regular file"),
    },
    f"demo --config-file {{w}}/tiny.yaml --input {{w}}/cat.png --prompts cat --output {B}": {
        "a pipe": (fifo, r"bad"),
        "a link to nothing": (dangling, r"bad: it is a link to nothing"),
        "a link to itself": (loop, r"bad.*: too many levels of symbolic links|bad: it is a link to nothing"),
        "a pipe for a picture": ({"cat_instance.png": fifo}, r"cat_instance\.png is a pipe"),
        "a folder for a json": ({"cat_instance.json": folder}, r"cat_instance\.json is a folder"),
    },
    f"annotate --config-file {{w}}/tiny.yaml --input {{w}}/pictures --prompts {{w}}/prompts.txt --task panoptic "
    f"--num-processes 1 --output {B} -> 1": {
        "a pipe for a record": ({"records/a.json": fifo}, r"a\.png: .*a\.json is a pipe"),
        "a folder for a record": ({"records/a.json": folder}, r"a\.png: .*a\.json is a folder"),
        "a folder for a PNG": ({"semantic/b.png": folder}, r"b\.jpg: .*b\.png is a folder"),
    },
    f"annotate --config-file {{w}}/tiny.yaml --input {{w}}/pictures --prompts {{w}}/prompts.txt --task panoptic "
    f"--num-processes 1 --output {B}": {
        "a pipe": (fifo, r"bad"),
        "a link to nothing": (dangling, r"bad: it is a link to nothing"),
        "a link to itself": (loop, r"bad.*: too many levels of symbolic links|bad: it is a link to nothing"),
        "a pipe for the list": ({"instances.json": fifo}, r"instances\.json is a pipe"),
        "a pipe for the run": ({"run.json": fifo}, r"run\.json is a pipe"),
    },
    f"video --config-file {{w}}/tiny.yaml --prompts cat --tracker detection --input {{w}}/clip --output {B}": {
        "a pipe": (fifo, r"bad"),
        "a link to nothing": (dangling, r"bad: it is a link to nothing"),
        "a link to itself": (loop, r"bad.*: too many levels of symbolic links|bad: it is a link to nothing"),
        "a pipe for the frames": ({"frames.jsonl": fifo}, r"frames\.jsonl is a pipe"),
        "a folder for the frames": ({"frames.jsonl": folder}, r"bad has results already"),
        "a file for the masks": ({"masks": "x"}, r"masks"),
        "a folder for the overlay": ({"overlay.mp4": folder}, r"overlay\.mp4"),
        "a pipe for the overlay": ({"overlay.mp4": fifo}, r"overlay\.mp4"),
        "a pipe for the objects": ({"tracks.json": fifo}, r"tracks\.json"),
    },
    f"eval --config-file {{w}}/tiny.yaml --save-predictions --output {B}": {
        "a pipe": (fifo, r"bad"),
        "a pipe for the results": ({"results.json": fifo}, r"results\.json is a pipe"),
        "a pipe for the run": ({"predictions/reef/run.json": fifo}, r"run\.json is a pipe"),
        "a folder for the classes": ({"predictions/reef/classes.txt": folder}, r"classes\.txt is a folder"),
    },
    f"cache_features --config-file {{w}}/tiny.yaml --output {B}": {
        "a pipe": (fifo, r"bad"),
        "a link to itself": (loop, r"bad"),
        "a pipe for the header": ({"header.json": fifo}, r"header\.json is a pipe"),
        "a folder for the header": ({"header.json": folder}, r"header\.json is a folder"),
    },
    f"train --config-file {{w}}/tiny.yaml --resume OUTPUT_DIR {B}": {
        "a pipe": (fifo, r"bad"),
        "a pipe for a state": ({"state_0000001.pth": fifo}, r"state_0000001\.pth"),
        "a folder for a state": ({"state_0000001.pth": folder}, r"state_0000001\.pth"),
        "an empty state": ({"state_0000001.pth": ""}, r"state_0000001\.pth cannot be read"),
    },
    f"benchmark --config-file {{w}}/tiny.yaml --prompts 1 --parts stages --repeats 1 --output {B}": {
        "a pipe": (fifo, r"bad"),
        "a pipe for the report": ({"benchmark.json": fifo}, r"benchmark\.json is a pipe"),
    },
}

TABLE = CONFIGS | OPTIONS | WEIGHTS | PICTURES | DESCRIPTIONS | JSONS | SCORES | REPORTS | CACHES | FOLDERS
TABLE |= PREPARATIONS | TOOLS | OUTPUTS
