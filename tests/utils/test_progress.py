"""Progress where there is no terminal."""

import io
import sys
import time

from openworldsam.utils.progress import progress_of_prompts, with_progress


def test_without_a_terminal_there_is_a_line_a_minute(monkeypatch, capsys):
    """25 s per item: before the fourth 75 s have passed, before the seventh 75 s more."""
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) - 25)
    assert list(with_progress("abcdefgh", 8, "frame")) == list("abcdefgh")
    lines = ["2 of 8 frames, 0.027 a second", "5 of 8 frames, 0.033 a second"]
    assert capsys.readouterr().err.splitlines() == lines
    assert list(with_progress("abcdefgh", 30, "prompt", each=4)) == list("abcdefgh")
    assert capsys.readouterr().err.splitlines() == ["8 of 30 prompts, 0.11 a second", "20 of 30 prompts, 0.13 a second"]
    assert list(with_progress("abc", None, "frame")) == list("abc")
    assert capsys.readouterr().err == "2 frames, 0.027 a second\n"


def test_the_bar_of_a_terminal_counts_what_is_in_an_item(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(with_progress("abc", 10, "prompt", each=4)) == list("abc")
    assert "| 10/10 [" in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(with_progress("abc", 10, "prompt", each=4, delay=5)) == list("abc") and "10" not in terminal.getvalue()


def test_many_prompts_are_counted_where_that_is_asked_for(predictor, photograph, monkeypatch, capsys):
    """The tiny model encodes 32 prompts at a time and decodes 16 masks; a minute passes with each."""
    clock = iter(range(0, 10**6, 60))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    prompts = [f"cat {n}" for n in range(70)]
    masks = 70 * predictor.model.adapter.num_queries
    predictor.predict(prompts, image=photograph)
    assert not capsys.readouterr().err
    with progress_of_prompts():
        predictor.predict(prompts, image=photograph)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "0 of 70 prompts, 0 a second" and said[2].startswith("64 of 70 prompts")
    assert said[4].startswith(f"16 of {masks:,} masks, ")
