"""Damaged files are read, or refused in a line: no other error, no crash, no hang, no more than 2 GB."""

import shutil

import pytest
from mutator import mutated
from readers import READERS
from sandbox import UNHANDLED, Task, run_tasks

from openworldsam.utils.launch import user_errors


def read_damaged(reader, path, content, seed):
    """Read a file after it was damaged, or as it is without a seed, as a command does."""
    path.write_bytes(content if seed is None else mutated(content, seed, text=reader.text))
    with user_errors():
        reader.read(path)


def attack(reader, world, folder, seeds):
    """Damage the file of a reader by each seed; returns what went wrong by seed."""
    (original,) = world.glob(reader.file)
    for entry in world.iterdir():  # only the folder of the file is its own
        if entry.name != original.relative_to(world).parts[0]:
            (folder / entry.name).symlink_to(entry)
        elif entry.is_dir():
            shutil.copytree(entry, folder / entry.name)
    path, content = folder / original.relative_to(world), original.read_bytes()
    undamaged, *ended = run_tasks([Task(folder, read_damaged, (reader, path, content, s)) for s in (None, *seeds)])
    wrong = {} if undamaged.status == 0 else {None: undamaged.err}
    for seed, end in zip(seeds, ended, strict=True):
        errors = [line for line in end.err.splitlines() if line.startswith("error: ")]
        if end.status not in (0, 2) or len(errors) != (end.status == 2):
            wrong[seed] = (end.status, end.err.splitlines()[-1:] if end.status == UNHANDLED else end.err)
        elif end.seconds > 5 or any(len(line) > 1100 for line in errors):
            wrong[seed] = (end.seconds, end.err[:200])
    return wrong


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(world, tmp_path, name):
    count = int(24 * READERS[name].share)
    assert not attack(READERS[name], world, tmp_path, range(count))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_thousand_damaged_files(world, tmp_path, name):
    assert not attack(READERS[name], world, tmp_path, range(1000, 2000))
