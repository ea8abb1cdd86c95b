"""Fixtures of the data tests."""

from functools import partial

import pytest

from openworldsam import cli


@pytest.fixture
def prepare(exit_status):
    """Run datasets/prepare.py with some arguments; returns the exit status."""
    return partial(exit_status, cli.command("prepare"))
