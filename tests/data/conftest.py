"""Fixtures of the data tests."""

import pytest

from openworldsam.data.prepare.command import main


@pytest.fixture
def prepare():
    """Run datasets/prepare.py with some arguments; returns the exit status."""

    def run(*args):
        try:
            main([str(arg) for arg in args])
        except SystemExit as exited:
            return exited.code
        return 0

    return run
