"""Jobs side by side: order, threads, GPUs, console files, and the end of all when one fails or all are stopped."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import is_running

from openworldsam.ablation.jobs import Job, run_jobs


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def meet(mine, other):
    """End only beside a job that runs at the same time."""
    mine.touch()
    wait_for(other.exists)


def hang(path):
    """Write the process id, and never end."""
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
    time.sleep(300)


def fail(path, reason):
    """Fail beside a job that hangs."""
    wait_for(path.exists)
    if reason == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("first line")
    os.system("echo second line")
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)


def note(path, others=()):
    """Note the threads and the GPU of a job, beside others."""
    path.write_text(f"{torch.get_num_threads()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    wait_for(lambda: all(other.exists() for other in others))


def run(folder, works, workers, needs=None):
    """Run jobs named by their numbers; returns these in the order in which the jobs have finished."""
    done, needs = [], needs or {}
    jobs = [Job(str(n), folder / f"{n}/console.txt", work, needs.get(n)) for n, work in enumerate(works)]
    run_jobs(jobs, workers, lambda job: done.append(int(job.title)))
    return done


def side_by_side(folder):
    return run(folder, [partial(meet, folder / "a", folder / "b"), partial(meet, folder / "b", folder / "a")], 2)


def in_order(folder):
    """The first job needs a file of the second, and the third would not end before the first."""
    works = [(folder / "first").touch, (folder / "second").touch, partial(wait_for, (folder / "first").exists)]
    return run(folder, works, 1, {0: folder / "second"})


def test_jobs_run_side_by_side_and_after_what_they_need(processes, tmp_path):
    assert sorted(*processes.values(side_by_side, tmp_path)) == [0, 1]
    (done,) = processes.values(in_order, tmp_path)
    assert done == [1, 0, 2]


def noted(folder, workers, gpus):
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    torch.get_num_threads = lambda threads=torch.get_num_threads: 5 if os.getpid() == main else threads()
    main, files = os.getpid(), [folder / f"{workers} {n}" for n in range(3)]
    run(folder, [partial(note, file, files[: min(workers, 3)]) for file in files], workers)
    return sorted(file.read_text() for file in files)


@pytest.mark.parametrize(
    ("workers", "gpus", "found"),
    [
        (1, "3,7", ["5 3,7"] * 3),
        (3, "3,7", ["1 3", "1 3", "1 7"]),
        (2, "", ["2 "] * 3),
        (9, "", ["1 "] * 3),
    ],
)
def test_workers_share_threads_and_take_gpus_in_turn(processes, tmp_path, workers, gpus, found):
    assert processes.values(noted, tmp_path, workers, gpus) == [found]


def failing(folder, reason):
    run(folder, [partial(hang, folder / "pid"), partial(fail, folder / "pid", reason), (folder / "third").touch], 2)


@pytest.mark.parametrize(
    ("reason", "said"), [("disk full", "1 failed: disk full."), ("killed", "1 failed: killed by signal 9.")]
)
def test_a_failed_job_ends_all_and_is_named(processes, tmp_path, reason, said):
    (ended,) = processes(failing, tmp_path, reason)
    assert ended.status == 1 and f"ChildProcessError: {said} {tmp_path}/1/console.txt has its output" in ended.stderr
    assert not is_running(int((tmp_path / "pid").read_text())) and not (tmp_path / "third").exists()
    if reason != "killed":
        assert (tmp_path / "1/console.txt").read_text() == "first line\nsecond line\nerror: disk full\n"
        assert "disk full" not in ended.stdout and "first line" not in ended.stdout


def two_hang(folder):
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # as the command does
    run(folder, [partial(hang, folder / "a"), partial(hang, folder / "b"), (folder / "third").touch], 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_job_outlives_the_main_process(processes, tmp_path, number):
    started = processes.start(two_hang, tmp_path)
    files = [tmp_path / "a", tmp_path / "b"]
    wait_for(lambda: all(map(Path.exists, files)))
    start = time.monotonic()
    started.send(number)
    (ended,) = started.ended()
    pids = [int(file.read_text()) for file in files]
    wait_for(lambda: not any(map(is_running, pids)))
    assert time.monotonic() - start < 30 and not (tmp_path / "third").exists()
    assert ended.status == {signal.SIGINT: 1, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
