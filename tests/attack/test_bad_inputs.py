"""Every bad input of the table gives its line, at once, and changes nothing."""

import re
import shlex
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from inputs import place
from sandbox import Task, run_tasks
from table import TABLE
from world import contents

from openworldsam import cli

ROOT = Path(__file__).parents[2]
MAINS = {
    **{name: cli.command(name) for name in cli.COMMANDS},
    **{"demo": cli.command("segment"), "cache_features": cli.command("cache"), "eval": cli.command("evaluate")},
}
ROWS = [(command, name) for command, rows in TABLE.items() for name in rows]


@pytest.fixture(scope="module")
def results(world, tmp_path_factory):
    """Run all rows of a command, one after the other; returns the end of each, and its folder before and after."""
    done = {}

    def run(command):
        if command not in done:
            rows = TABLE[command]
            tasks = [prepared(command, given, world, tmp_path_factory.mktemp("row")) for given, _ in rows.values()]
            before = [contents(task.folder) for task in tasks]
            ended = run_tasks(tasks)
            after = [contents(task.folder) for task in tasks]
            done[command] = dict(zip(rows, zip(ended, before, after, strict=True), strict=True))
        return done[command]

    return run


def prepared(command, given, world, folder):
    """Put the input of a row in a folder; returns the call of the command."""
    places = {"w": world, "bad": folder / "bad", "out": folder / "out"}
    (folder / "out").mkdir()
    (folder / "out/kept.txt").write_text("before")
    called, *words = [word.format_map(places) for word in shlex.split(command.partition(" -> ")[0])]
    if isinstance(given, list):
        words += [word.format_map(places) for word in given]
    else:
        bad = next(word for word in words if word.startswith(str(folder / "bad")))
        place(given, folder / Path(bad).relative_to(folder).parts[0], world)
    return Task(folder, call, (MAINS[called], words))


def call(main, words):
    """Run a command without the dataset that the one before has registered."""
    DatasetCatalog.pop("reef", None)
    MetadataCatalog.pop("reef", None)
    main(words)


@pytest.mark.parametrize(("command", "name"), ROWS, ids=[f"{c.split()[0]}: {name}" for c, name in ROWS])
def test_a_bad_input_is_a_line(results, command, name):
    line, status = TABLE[command][name][1], int(command.partition(" -> ")[2] or 2)
    ended, before, after = results(command)[name]
    errors = [each for each in ended.err.splitlines() if re.search(r"\berror: |^problem: ", each)]
    assert ended.status == status, ended
    if status == 2:
        assert len(errors) == 1 and len(errors[0]) < 1100, ended
        assert re.search(line, errors[0]), errors[0]
    else:
        assert re.search(line, ended.out + ended.err), ended
    assert not re.search("Traceback|MemoryError", ended.err + ended.out), ended
    assert {path: after.get(path) for path in before} == before
    assert not [path for path in after if path.name.endswith(".part") or path.name == "PWNED"]
    assert ended.seconds < 5
