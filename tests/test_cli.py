"""The command `openworldsam`: overview, shared options, suggestions, missing files, and its speed."""

import re
import resource
import shlex
import subprocess
import sys
from importlib import import_module, util
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from openworldsam import cli
from openworldsam.cli.files import SCORED
from openworldsam.cli.options import DTYPES, SECTIONS, TASKS
from openworldsam.config import load_config
from openworldsam.data.datasets import register_datasets
from openworldsam.data.datasets.catalog import check_registered
from openworldsam.data.feature_cache import IMAGE_FEATURES
from openworldsam.engine.checks import check_training
from openworldsam.evaluation.metrics.instance import IOU_TYPES
from openworldsam.evaluation.paper_tables import with_tables
from openworldsam.evaluation.score import TASKS as SCORE_TASKS
from openworldsam.inference import TASKS as INFERENCE_TASKS
from openworldsam.inference import InferenceOptions
from openworldsam.preflight import missing_weights
from openworldsam.pretraining.command import SCHEDULES
from openworldsam.speed.command import PARTS
from openworldsam.utils import device
from openworldsam.video.predictor import OBJECT_TASKS, TRACKERS

ROOT = Path(__file__).parents[1]


def choices(name: str, option: str) -> tuple[str, ...]:
    """The choices of a command's option."""
    parser = cli.Parser(prog="x", description="")
    cli.COMMANDS[name].add(parser)
    found = next(action for action in parser._actions if option in (action.dest, *action.option_strings))
    return tuple(found.choices)


def test_choices_are_those_of_the_code_that_the_parser_does_not_import():
    assert tuple(INFERENCE_TASKS) == TASKS and tuple(device.DTYPES) == DTYPES and SCORE_TASKS == SCORED
    assert choices("video", "--task") == OBJECT_TASKS and choices("video", "--tracker") == TRACKERS
    assert choices("score", "--iou-type") == IOU_TYPES
    assert choices("cache", "--image-features") == choices("ablate", "--feature-cache") == tuple(IMAGE_FEATURES)
    assert choices("benchmark", "--parts") == PARTS
    assert choices("pretrain", "encoder") == tuple(SCHEDULES)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_its_function(name):
    module, _, function = cli.COMMANDS[name].target.partition(":")
    assert callable(getattr(import_module(module), function))


def test_the_tools_are_commands():
    for path in sorted((ROOT / "tools").glob("*.py")):
        name = path.read_text().split('run("')[1].split('"')[0]
        assert name in cli.COMMANDS, path
    asked = "segment annotate video app train evaluate report score convert download check prepare benchmark doctor"
    assert {*asked.split(), "verify"} <= set(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_imports_neither_torch_nor_detectron2(name, tmp_path):
    program = (
        "import sys\nfrom openworldsam import cli\n"
        f"try:\n    cli.main([{name!r}, '--help'])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'detectron2', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert not done.returncode, done.stderr
    assert f"usage: openworldsam {name}" in done.stdout


def test_help_comes_at_once(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "openworldsam"], capture_output=True, text=True, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 1 and not done.returncode  # CPU time, as the machine may be busy; 0.2 s were measured
    assert all(f"  {name} " in done.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["segmnt"], "there is no command segmnt; did you mean segment?"),
        (["segment", "--inptu", "a.png"], "there is no option --inptu; did you mean --input?"),
        (["train", "--confg", "coco"], "there is no option --confg; did you mean --config?"),
        (["train"], "the following arguments are required: --config"),
        (
            ["segment", "--scene", "1", "--output", "o", "--threshold", "1.5"],
            "argument --threshold: a number from 0 to 1 is needed, got 1.5 (openworldsam segment --help)",
        ),
        (["train", "--config", "coco", "word"], "unrecognized arguments: word"),
        (["train", "--config", "cocoa"], "config cocoa not found"),
        (["train", "--config", "coco", "SOLVER.MAXITER", "3"], "did you mean SOLVER.MAX_ITER?"),
        (["train", "--config", "coco", "SOLVER.MAX_ITER"], "config key SOLVER.MAX_ITER needs a value, got nothing"),
        (
            ["segment", "--input", "a", "SOLVER.STEPS", "--prompts", "b"],
            "key SOLVER.STEPS needs a value, got --prompts",
        ),
        (["train", "-o", "SEED", "-o", "TEST.PROTOCOL", "global"], "config key SEED needs a value, got -o"),
        (["evaluate", "--config", "shapes", "--output", ""], "argument --output: a name is needed, got an empty one"),
        (["train", "--config", "shapes", "--output", " "], "argument --output: a name is needed, got an empty one"),
        (["prepare", "coko"], "did you mean coco? (openworldsam prepare --help)"),
        (["prepare", "coco", "--worker", "two"], "invalid int value: 'two' (openworldsam prepare coco --help)"),
        (["prepare", "refcoco", "--refz", "r.p"], "there is no option --refz; did you mean --refs?"),
        (["download", "--lits"], "there is no option --lits; did you mean --list? (openworldsam download --help)"),
        (["segment", "--scene", "1", "--output", "o", "--task", "panoptik"], "did you mean panoptic?"),
        (["convert", "splt"], "did you mean split?"),
        (["convert", "split", "m.pth", "--outptu", "o"], "there is no option --outptu; did you mean --output?"),
        (["convert", "split"], "arguments are required: checkpoint, --output (openworldsam convert split --help)"),
    ],
)
def test_a_mistake_is_a_line_and_status_2(words, error, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    (said,) = capsys.readouterr().err.splitlines()
    assert error in said


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_shared_option_has_one_form(name):
    parser = cli.Parser(prog="x", description="")
    cli.COMMANDS[name].add(parser)
    options = {option: action for action in parser._actions for option in action.option_strings}
    assert ("--config" in options) == ("--weights" in options) == ("--device" in options) == ("-o" in options)
    assert ("--config" in options) == parser.takes_config
    for option, metavar in {"--config": "CONFIG", "--weights": "FILE", "--processes": "N", "--threshold": "T"}.items():
        assert option not in options or options[option].metavar == metavar
    assert not {"--num-gpus", "--num-processes"} & options.keys() or "--processes" in options
    assert "--config-file" not in options or "--config" in options


EVALUATE = ["--config", "shapes", "--output", "o"]


@pytest.mark.parametrize(
    ("words", "opts"),
    [
        ([], []),
        (["-o", "SEED", "3"], ["SEED", "3"]),
        (["-o", "SEED", "3", "-o", "TEST.CHUNK", "-1"], ["SEED", "3", "TEST.CHUNK", "-1"]),
        (["--opts", "SEED", "3", "MODEL.WEIGHTS", ""], ["SEED", "3", "MODEL.WEIGHTS", ""]),
        (["SEED", "3"], ["SEED", "3"]),
        (["--save-predictions", "SEED", "3"], ["SEED", "3"]),
        (
            ["--benchmarks", "a", "b", "TEST.PROTOCOL", "x", "SOLVER.STEPS", "[]"],
            ["TEST.PROTOCOL", "x", "SOLVER.STEPS", "[]"],
        ),
        (["--benchmarks", "a", "b", "MODLE.WEIGHTS", "x"], ["MODLE.WEIGHTS", "x"]),
        (["-o", "lower", "3", "--benchmarks", "a", "b"], ["lower", "3"]),
        (["--weights", "w.pth"], ["MODEL.WEIGHTS", "w.pth"]),
        (["--device", "cpu", "MODEL.DEVICE", "cuda"], ["MODEL.DEVICE", "cpu", "MODEL.DEVICE", "cuda"]),
    ],
)
def test_keys_and_values_may_stand_anywhere(words, opts):
    for order in ([*EVALUATE, *words], [*words, *EVALUATE]):
        args = cli.parse("evaluate", order)
        assert args.opts == opts and str(args.output) == "o"
        assert args.benchmarks == (["a", "b"] if "--benchmarks" in words else [])


@pytest.mark.parametrize("text", ["SEED", "NO.12", "ST.PAUL", "PRESET", "TEXT.ON", "U.S."])
def test_prompts_and_files_are_no_keys(text):
    words = ["--input", f"{text}.JPG", "DSC_0001.JPG", "--output", "SEED", "--prompt", text, "a cat"]
    for pairs in ([], ["-o", "SEED", "3"], ["MODEL.DEVICE", "cpu"], ["MODLE.DEVICE", "cpu", "-o", "SEED", "3"]):
        args = cli.parse("segment", [*words, *pairs])
        assert [str(path) for path in args.input] == [f"{text}.JPG", "DSC_0001.JPG"] and str(args.output) == "SEED"
        assert args.prompts == [text, "a cat"] and args.opts == [word for word in pairs if word != "-o"]


def test_the_sections_are_those_of_the_config():
    sections = {key for key, value in load_config("tiny").items() if isinstance(value, CfgNode)}
    assert sections - {"GLOBAL"} == {*SECTIONS}  # GLOBAL is Detectron2's, for hacks


def test_old_spellings_are_read():
    args = cli.parse("evaluate", ["--config-file", "shapes", "--num-gpus", "2", "--output", "o"])
    assert (args.config, args.processes) == ("shapes", 2)
    args = cli.parse("annotate", ["--input", "d", "--prompts", "p.txt", "--task", "panoptic", "--output", "o"])
    assert (args.config, args.prompts, args.processes) == ("released", ["p.txt"], None)


def test_a_threshold_is_that_of_whichever_score_the_config_ranks_by():
    args = cli.parse("segment", ["--scene", "1", "--output", "o", "--threshold", "0.3"])
    keys = ("MODEL.INFERENCE.SCORE_THRESHOLD", "MODEL.INFERENCE.MATCH_THRESHOLD")
    assert args.opts == [keys[0], "0.3", keys[1], "0.3"] and args.config == "shapes"


@pytest.mark.parametrize(("threshold", "expected"), [("0", 1e-9), ("1", 1.0), ("0.3", 0.3)])
def test_a_threshold_counts_as_it_is_given(threshold, expected):
    """Not that stored with the weights, which MATCH_THRESHOLD 0 stands for."""
    args = cli.parse("segment", ["--scene", "1", "--output", "o", "--threshold", threshold])
    cfg = load_config("shapes", args.opts)
    options = InferenceOptions.from_config(cfg, stored={"match": 0.4})
    assert (options.score, options.score_threshold) == ("match", expected)
    assert float(threshold) == cfg.MODEL.INFERENCE.SCORE_THRESHOLD


def test_the_output_of_a_training_is_its_key():
    assert cli.parse("train", ["--config", "coco", "--output", "o"]).opts == ["OUTPUT_DIR", "o"]


def test_the_command_line_is_recorded_as_it_can_be_pasted():
    args = cli.parse("report", ["--runs", "a b", "--output", "o"])
    assert args.command == "openworldsam report --runs 'a b' --output o"


def test_missing_weights_are_named_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENWORLDSAM_WEIGHTS", str(tmp_path / "w"))
    words = ["segment", "--input", "a.jpg", "--prompts", "a", "--output", "o"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(
        "error: weight file weights/model_final.pth and tokenizer file weights/beit3.spm not found beside the config"
    )
    assert error.endswith("`openworldsam download openworldsam_coco beit3_tokenizer` fetches them")
    assert not (tmp_path / "o").exists()
    assert missing_weights("shapes") == {}
    assert set(missing_weights("coco")) == {
        "MODEL.SAM2.WEIGHTS",
        "MODEL.PROMPT_ENCODER.WEIGHTS",
        "MODEL.PROMPT_ENCODER.TOKENIZER",
    }
    released = ["MODEL.WEIGHTS", "a.pth", "DATASETS.FEATURE_CACHE", "cache"]
    sam2 = {"MODEL.SAM2.WEIGHTS": "weights/sam2_hiera_large.pt"}  # its mask decoder is in no cache
    assert missing_weights("coco", [*released, "SOLVER.INIT_WEIGHTS", "fresh"], training=True) == sam2
    assert missing_weights("coco", released, training=True) == {"MODEL.WEIGHTS": "a.pth", **sam2}
    (tmp_path / "full.pth").touch()  # may hold the encoders
    assert set(missing_weights("coco", ["MODEL.WEIGHTS", "full.pth"])) == {"MODEL.PROMPT_ENCODER.TOKENIZER"}


def test_missing_data_of_many_processes_are_named_once(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    keys = ("MODEL.SAM2.WEIGHTS", "MODEL.PROMPT_ENCODER.WEIGHTS", "MODEL.PROMPT_ENCODER.TOKENIZER")
    (tmp_path / "there").touch()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "--config", "coco", "--processes", "8", *(word for key in keys for word in (key, "there"))])
    (error,) = capfd.readouterr().err.splitlines()
    assert "panoptic_train2017_filtrefgumdval_filtvlp.json not found" in error
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_doctor_says_what_each_config_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENWORLDSAM_WEIGHTS", str(tmp_path / "w"))
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "open_clip" else find(name))
    cli.main(["doctor", "shapes"])
    out = capsys.readouterr().out
    assert "not installed, needed by some commands only: open_clip (pip install '.[encoders]'" in out
    assert "torch " in out and "shapes: its weights are here" in out and str(tmp_path / "w") in out
    (tmp_path / "w").mkdir()
    (tmp_path / "w/model_final.pth").write_bytes(bytes(20_000_000))
    (tmp_path / "w/broken.pth").symlink_to("nowhere")
    with pytest.raises(SystemExit, match="1"):
        cli.main(["doctor", "released", "nowhere"])
    said = capsys.readouterr()
    assert "model_final.pth 0.02 GB" in said.out
    assert "released: missing beit3.spm: openworldsam download beit3_tokenizer" in said.out
    assert "config nowhere not found" in said.err


PAGES = [
    "README.md",
    *(
        str(path.relative_to(ROOT))
        for folder in ("docs", "datasets", "weights")
        for path in (ROOT / folder).rglob("*.md")
    ),
    *(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")),
]


def commands_of(page: str) -> list[list[str]]:
    """The commands `openworldsam ...` of a page's code blocks, or of a config's comments."""
    text = (ROOT / page).read_text()
    if page.endswith(".md"):
        text = "\n".join(re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    text = re.sub(r"\\\n[# ]*", " ", text)
    found = re.findall(r"^[# ]*openworldsam (.*)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)])
def test_the_commands_of_the_pages_are_understood(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, *words in commands_of(page):
        if "--help" in words or any("$" in word for word in words):  # set by the shell
            continue
        args = cli.parse(name, words)
        if hasattr(args, "config"):
            cfg = load_config("coco" if args.config == "CONFIG" else args.config, args.opts)
            cfg.DATASETS.OWN = []
            register_datasets(cfg)
            check_registered(set(with_tables(getattr(args, "benchmarks", []))) - {"reef_val"})


@pytest.mark.parametrize("name", [name for name, command in cli.COMMANDS.items() if command.examples])
def test_the_examples_of_the_help_are_understood(name):
    for line in cli.COMMANDS[name].examples.splitlines():
        words = shlex.split(line.partition("     ")[0])
        if words[0] != "openworldsam":  # torchrun
            continue
        args = cli.parse(name, words[2:])
        if hasattr(args, "config"):
            cfg = load_config(args.config, args.opts)
            if name == "train" and args.processes == 1:
                check_training(cfg)


def test_the_pages_name_every_command():
    said = set(re.findall(r"openworldsam ([a-z-]+)", "\n".join((ROOT / page).read_text() for page in PAGES)))
    assert said >= set(cli.COMMANDS) - {"rule-weights"}


def test_a_reader_that_leaves_does_not_end_the_work(tmp_path):
    program = (
        "import sys; from openworldsam.utils.launch import say\n"
        "sys.stdin.readline(); say('one'); say('two'); open(sys.argv[1], 'w').write('done')"
    )
    done = tmp_path / "done"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, done], text=True, **pipes) as process:
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.wait() == 0 and process.stderr.read() == ""
    assert done.read_text() == "done"
