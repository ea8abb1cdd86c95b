"""The parity command on the golden files, and its tolerances by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openworldsam.parity import check_model, check_postprocess, checks, format_checks

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/check_parity.py"


def test_postprocessing_equals_the_released_model(processes, shared):
    done = processes.script(TOOL, "--golden", shared / "golden/postprocess_seed0.npz")
    assert done.status == 0, done.stdout + done.stderr
    assert "all 13 hold" in done.stdout


def test_a_difference_in_postprocessing_is_found(shared, tmp_path):
    golden = dict(np.load(shared / "golden/postprocess_seed0.npz"))
    golden["panoptic_map"] = np.roll(golden["panoptic_map"], 5, axis=0)
    golden["instance_scores"] = golden["instance_scores"] + 0.01
    np.savez(tmp_path / "changed.npz", **golden)
    failed = {c.quantity for c in check_postprocess(tmp_path / "changed.npz") if not c.ok}
    assert failed == {"panoptic_map", "instance_scores"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("golden", "image"),
    [("model_seed0.npz", "data/photos/zebra.jpg"), ("model_seed3.npz", "golden/portrait.png")],
)
def test_the_model_equals_the_released_one(shared, golden, image):
    words = ["--golden", shared / "golden" / golden, "--image", shared / image]
    done = subprocess.run([sys.executable, TOOL, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 36 hold" in done.stdout


def test_an_image_of_another_size_is_an_error(shared, photograph):
    with pytest.raises(ValueError, match=r"\(300, 451\).*\(427, 640\)"):
        check_model(shared / "golden/model_seed0.npz", photograph)


def test_a_missing_golden_file_is_an_error(processes):
    done = processes.script(TOOL, "--golden", "nowhere.npz")
    assert done.status == 2 and "nowhere.npz" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\003\004 cut short"])
def test_a_damaged_golden_file_is_an_error(tmp_path, content):
    (tmp_path / "golden.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"golden\.npz is not a golden file"):
        check_postprocess(tmp_path / "golden.npz")


def test_tolerances_by_hand():
    one = np.array([1.0, 100.0])
    assert checks.close("x", one + np.array([1.0e-3, 0.1]), one).ok
    assert not checks.close("x", one + np.array([1.2e-3, 0]), one).ok
    assert not checks.close("x", one[:1], one).ok
    assert checks.close_in_norm("x", one * 1.00009, one).ok and not checks.close_in_norm("x", one * 1.0002, one).ok
    assert checks.close_to_largest("x", one + np.array([0.009, 0]), one).ok
    assert not checks.close_to_largest("x", one + np.array([0.011, 0]), one).ok
    assert checks.close_to_largest("x", one + np.array([0.011, 0]), one, 5e-4).ok
    assert not checks.close_to_largest("x", one + np.array([0.051, 0]), one, 5e-4).ok
    labels = np.array([3, 4, 5])
    assert checks.equal("x", labels, labels).ok and not checks.equal("x", labels[[0, 2, 1]], labels).ok
    assert checks.close_to_largest("x", np.zeros(3), np.zeros(3)).ok and checks.close_to_largest("x", [], []).ok
    assert (
        checks.same_areas("x", labels + 1, labels, 1000).ok and not checks.same_areas("x", labels + 2, labels, 1000).ok
    )
    assert not checks.close("x", np.array([np.nan]), np.array([1.0])).ok


def test_ties_are_aligned_and_nothing_else():
    golden, scores = np.array([3, 4, 5, 6]), np.array([0.9, 0.8, 0.8 - 5e-6, 0.7])
    assert checks.align_ties(np.array([3, 5, 4, 6]), golden, scores).tolist() == [0, 2, 1, 3]
    assert checks.align_ties(np.array([4, 3, 5, 6]), golden, scores).tolist() == [0, 1, 2, 3]
    assert checks.align_ties(np.array([3, 5]), golden, scores).tolist() == [0, 1]
    assert "equal but for 2 ties" in checks.equal("x", golden, golden, ties=2).tolerance


def test_the_table_names_what_failed():
    text = format_checks([checks.Check("a", 0, "t", True), checks.Check("b", 1, "t", False)])
    assert "1 of 2 failed: b" in text
