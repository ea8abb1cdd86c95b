"""Fixtures of the data tests."""

from functools import partial

import pytest

from openworldsam.data.prepare.command import main


@pytest.fixture
def prepare(exit_status):
    """Run datasets/prepare.py with some arguments; returns the exit status."""
    return partial(exit_status, main)
