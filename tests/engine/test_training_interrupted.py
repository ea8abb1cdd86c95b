"""Trainings that end before their time: killed at every moment of saving, or stopped by errors of a reading process."""

import os
import signal
from pathlib import Path

import pytest
import torch
from trainings import assert_same, read_metrics, register, train, training_cfg

from openworldsam import cli
from openworldsam.checkpoint import read_weights

main = cli.command("train")

ROOT = Path(__file__).parents[2]
EVERY_STEP = ["SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.LOG_PERIOD", 1]


@pytest.fixture(scope="module")
def whole(processes, shared_data, tiny_weights, tmp_path_factory):
    """A training that nothing interrupts, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    (result,) = processes.values(train, shared_data, tiny_weights, folder, EVERY_STEP)
    return result, folder


def die():
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_within_a_file(name, share=0.5):
    """Let the process die when a part of a state is written."""
    save = torch.save

    def save_some(content, target, **options):
        save(content, target, **options)
        if name in str(target):
            os.truncate(target, int(share * Path(target).stat().st_size))
            die()

    torch.save = save_some


def die_at_renaming(name, *, before):
    """Let the process die right before or after a complete file comes to its place."""
    replace = os.replace

    def replace_and_die(source, target):
        if Path(target).name != name:
            return replace(source, target)
        if not before:
            replace(source, target)
        return die()

    os.replace = replace_and_die


MOMENTS = {
    "state begun": lambda: die_within_a_file("state_0000004", 0),
    "state half written": lambda: die_within_a_file("state_0000004"),
    "state not in place": lambda: die_at_renaming("state_0000004.pth", before=True),
    "state in place": lambda: die_at_renaming("state_0000004.pth", before=False),
    "last state in place": lambda: die_at_renaming("state_0000006.pth", before=False),
    "adapter not in place": lambda: die_at_renaming("adapter.safetensors", before=True),
    "metrics not in place": lambda: die_at_renaming("metrics.json", before=True),
}


def train_and_die(data, weights, output, opts, moment, rank, resume):
    """`train` on a process that dies at a moment, if it is the one."""
    if int(os.environ.get("RANK", 0)) == rank:
        MOMENTS[moment]()
    return train(data, weights, output, opts, resume)


def assert_goes_on_as_if_nothing_had_happened(resumed, whole, start):
    assert resumed["losses"] == whole["losses"][start:]
    assert_same((resumed["adapter"], resumed["random"]), (whole["adapter"], whole["random"]))


@pytest.mark.parametrize(
    ("moments", "start"),
    [
        (["state begun"], 3),
        (["state half written"], 3),
        (["state not in place"], 3),
        (["state in place"], 4),
        (["last state in place"], 6),
        (["adapter not in place"], 6),
        (["state half written", "state not in place", "metrics not in place"], 3),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, list) else f"from {value}",
)
def test_a_kill_while_saving_loses_nothing(processes, shared_data, whole, tiny_weights, tmp_path, moments, start):
    """A training, and then its resumptions, are killed; the last resumption is not."""
    output, (expected, folder) = tmp_path / "killed", whole
    for number, moment in enumerate(moments):
        args = (shared_data, tiny_weights, output, EVERY_STEP, moment, 0, number > 0)
        (ended,) = processes(train_and_die, *args)
        assert ended.status == -signal.SIGKILL, ended.stderr
    (resumed,) = processes.values(train, shared_data, tiny_weights, output, EVERY_STEP, True)
    assert_goes_on_as_if_nothing_had_happened(resumed, expected, start)
    adapters = [read_weights(path / "adapter.safetensors").components["adapter"] for path in (output, folder)]
    assert_same(*adapters)
    lines = [line["iteration"] for line in read_metrics(output)]
    unlogged = {start - 1} if moments[-1].endswith("state in place") else set()  # the state is written before the log
    assert lines == [step for step in range(6) if step not in unlogged]
    if start < 6:
        assert not list(output.glob(".*.part"))


def test_one_of_two_processes_is_killed_while_saving(processes, shared_data, tiny_weights, tmp_path):
    """The other one does not wait for ever; the two go on as if nothing had happened."""
    whole = processes.values(train, shared_data, tiny_weights, tmp_path / "whole", EVERY_STEP, processes=2)
    args = (shared_data, tiny_weights, tmp_path / "killed", EVERY_STEP, "state half written", 0, False)
    ended = processes(train_and_die, *args, processes=2)
    assert ended[0].status == -signal.SIGKILL and ended[1].status == 1, ended[1]
    resumed = processes.values(train, shared_data, tiny_weights, tmp_path / "killed", EVERY_STEP, True, processes=2)
    for ours, theirs in zip(resumed, whole, strict=True):
        assert_goes_on_as_if_nothing_had_happened(ours, theirs, 3)


def command(data, weights, output, words, moment=None):
    """`openworldsam train` on the rectangles."""
    if moment:
        MOMENTS[moment]()
    cfg = training_cfg(Path(data), Path(weights), Path(output))
    opts = ["MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, "MODEL.PROMPT_ENCODER.TOKENIZER", cfg.MODEL.PROMPT_ENCODER.TOKENIZER]
    opts += ["DATASETS.TRAIN", [register(Path(data))], "OUTPUT_DIR", output, "SOLVER.IMS_PER_BATCH", 2]
    opts += ["SOLVER.MAX_ITER", 6, "SOLVER.STEPS", [4], "SOLVER.BASE_LR", 0.001, *EVERY_STEP]
    main(["--config-file", str(ROOT / "configs/tiny.yaml"), *map(str, [*opts, *words])])


READERS = ["DATALOADER.NUM_WORKERS", 2]


def test_the_command_with_reading_processes(processes, shared_data, whole, tiny_weights, tmp_path):
    """Killed, it can be resumed at once, while its orphaned reading processes still live."""
    (ended,) = processes(command, shared_data, tiny_weights, tmp_path / "out", READERS, "state in place")
    assert ended.status == -signal.SIGKILL, ended.stderr
    (ended,) = processes(command, shared_data, tiny_weights, tmp_path / "out", [*READERS, "--resume"])
    assert ended.status == 0, ended.stderr
    adapters = [read_weights(f / "adapter.safetensors").components["adapter"] for f in (tmp_path / "out", whole[1])]
    assert_same(*adapters)


@pytest.mark.parametrize("number", [0, 2])
def test_an_error_while_reading_is_one_line(processes, data, tiny_weights, tmp_path, number):
    """No image can be read; who reads makes no difference."""
    for index in range(6):
        (data / f"{index}.png").write_bytes(b"nothing")
    (ended,) = processes(command, data, tiny_weights, tmp_path / "out", ["DATALOADER.NUM_WORKERS", number])
    assert ended.status == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: none of the 6 images can be learnt from: 6 are unreadable") and str(data) in line
    assert "Traceback" not in ended.stdout
