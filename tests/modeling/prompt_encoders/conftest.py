"""Tiny folders of all library encoders, made once."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
sys.path[:0] = [str(HERE), str(ROOT / "tests/engine")]
INSTALLED = all(map(importlib.util.find_spec, ("transformers", "open_clip")))  # else the test modules are skipped
FILES = sorted(HERE.glob("case_*.py")) if INSTALLED else []
CASES = [case for path in FILES for case in importlib.import_module(path.stem).CASES]


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(scope="session")
def folder(case, tmp_path_factory):
    """The folder of a tiny random model of this encoder."""
    path = tmp_path_factory.mktemp(case.name) / "published"
    path.mkdir()
    torch.manual_seed(0)
    case.write(path)
    return path
