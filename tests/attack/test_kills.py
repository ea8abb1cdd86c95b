"""Commands that are killed at random moments: run again, they finish, equal an uninterrupted run, and leave no parts.

tests/engine/test_training_interrupted.py, tests/data/test_feature_cache.py and tests/test_download.py kill trainings,
caches and downloads at chosen moments.
"""

import os
import random
import re
import signal
import sys

import pytest
from sandbox import run_task
from test_download import download, remote  # noqa: F401 (fixture)
from world import contents

from openworldsam import cli
from openworldsam.predictor import OpenWorldSAMPredictor

annotate = cli.command("annotate")
cache_features = cli.command("cache")
evaluate = cli.command("evaluate")
train = cli.command("train")

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.truncate", "shutil.copyfile")
"""Python's audit events around which files change."""


def with_kill(moment, wait, count, function, *args):
    """Call a function; kill this process `wait` seconds after the file system is used for the `moment`-th time.

    The number of uses up to the end goes to the file `count`.
    """
    used = 0

    def watch(event, arguments):
        nonlocal used
        if event in CHANGES and not (
            event == "open" and isinstance(arguments[1], str) and arguments[1].startswith("r")
        ):
            used += 1
            if used == moment:
                signal.setitimer(signal.ITIMER_REAL, wait) if wait else os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        function(*args)
    finally:
        count.write_text(str(used))


def save_pretrained(config, folder):
    OpenWorldSAMPredictor(config).save_pretrained(folder)


def fetch(url, folder):
    download.SCHEMES, download.BACKOFF_SECONDS = ("http",), 0.0  # the server here has no certificate
    download.REGISTRY = {"net": download.Weight(url, "net.pt", "", "")}
    cli.run("download", ["net", "--output", str(folder)])


def commands(world, out, url):
    """Calls of the commands that can go on, by name."""
    steps = ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.LOG_PERIOD", "1", "OUTPUT_DIR", str(out)]
    tiny = ["--config-file", f"{world}/tiny.yaml", "--output", str(out)]
    asked = ["--input", f"{world}/pictures", "--prompts", f"{world}/prompts.txt", "--task", "panoptic", "--overlays"]
    return {
        "annotate": (annotate, [*tiny, *asked, "--num-processes", "1", "--cvat", "--label-studio"]),
        "evaluate": (evaluate, [*tiny, "--save-predictions"]),
        "cache": (cache_features, [*tiny, "--image-features", "all", "--batch-size", "1"]),
        "save_pretrained": (save_pretrained, world / "tiny.yaml", out),
        "train": (train, ["--config-file", f"{world}/tiny.yaml", "--resume", *steps]),
        "download": (fetch, url, out),
    }


UNLIKE = re.compile(r"results\.json|metrics\.json|config\.yaml|state_.*\.pth")
"""Files whose content names times, commands or temporary files."""


def results(folder):
    """The files of a run by name, without those that TensorBoard names by the time."""
    found = {path.relative_to(folder).as_posix(): content for path, content in contents(folder).items()}
    return {
        name: None if UNLIKE.fullmatch(name) else content for name, content in found.items() if "tfevents" not in name
    }


def attack(world, folder, url, name, kills, seed):
    """Kill a command, and then its reruns, at random moments; let the last rerun go on to its end."""
    generator = random.Random(seed)
    whole, killed, count = folder / "whole", folder / "killed", folder / "count"
    ended = run_task(folder, with_kill, 0, 0, count, *commands(world, whole, url)[name], seconds=60)
    assert ended.status == 0, ended
    died = 0
    call, rest = commands(world, killed, url)[name], folder / "rest"
    for number in range(kills):
        moment = generator.randint(1, int(count.read_text()))
        wait = generator.choice([0, 0.003 * generator.random()]) if number else 0
        ended = run_task(folder, with_kill, moment, wait, rest, *call, seconds=60)
        died += ended.status < 0
        assert ended.status in (0, -signal.SIGKILL, -signal.SIGALRM), ended
    ended = run_task(folder, with_kill, 0, 0, rest, *call, seconds=60)
    assert ended.status == 0, ended
    assert results(killed) == results(whole)
    assert not list(folder.rglob("*.part"))
    return died


@pytest.mark.parametrize("name", ["annotate", "evaluate", "cache", "save_pretrained"])
def test_a_command_is_killed_twice(world, tmp_path, name):
    assert attack(world, tmp_path, "", name, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["annotate", "evaluate", "cache", "save_pretrained", "train", "download"])
@pytest.mark.parametrize("seed", range(10))
def test_a_command_is_killed_often(world, tmp_path, remote, name, seed):  # noqa: F811
    assert attack(world, tmp_path, remote.url, name, kills=5, seed=seed)
