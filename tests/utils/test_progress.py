"""Progress where there is no terminal."""

import time

from openworldsam.utils.progress import with_progress


def test_without_a_terminal_there_is_a_line_a_minute(monkeypatch, capsys):
    """25 s per item: before the fourth 75 s have passed, before the seventh 75 s more."""
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) - 25)
    assert list(with_progress("abcdefgh", 8, "frame")) == list("abcdefgh")
    lines = ["2 of 8 frames, 0.027 a second", "5 of 8 frames, 0.033 a second"]
    assert capsys.readouterr().err.splitlines() == lines
    assert list(with_progress("abc", None, "frame")) == list("abc")
    assert capsys.readouterr().err == "2 frames, 0.027 a second\n"
