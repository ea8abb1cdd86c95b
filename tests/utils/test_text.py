"""Names from outside in the terminal, in logs and in lists."""

import io
import logging
import sys
from pathlib import Path

import pytest

from openworldsam.utils.launch import say, user_errors
from openworldsam.utils.text import PrintableRecord, printable

HOSTILE = "a\nerror: b\x1b[2J\r\x9b1m\u202e\u2028\udcff.png"
ESCAPED = r"a\nerror: b\x1b[2J\r\x9b1m\u202e\u2028\udcff.png"


def test_what_moves_a_cursor_or_hides_text_is_escaped():
    assert printable(HOSTILE) == ESCAPED
    assert printable(HOSTILE, keep="\n") == ESCAPED.replace(r"\n", "\n")
    harmless = "Zoë\u00a0猫 \u06a9\u200c\u0647 \U0001f468\u200d\U0001f467 C:\\n"
    assert printable(harmless) == harmless and printable(Path("a\tb")) == r"a\tb"


@pytest.fixture
def logged():
    """Log through a formatter as a command does; returns the text."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    factory = logging.getLogRecordFactory()

    def log(name, *message, error=None):
        with user_errors():
            logger = logging.getLogger(name)
            logger.addHandler(handler)
            try:
                logger.warning(*message, exc_info=error)
            finally:
                logger.removeHandler(handler)
        return stream.getvalue()

    yield log
    logging.setLogRecordFactory(factory)


def test_a_name_cannot_forge_a_line_of_our_log(logged):
    written = logged("openworldsam.annotate.command", "skipped %s: %s", HOSTILE, "bad")
    assert written == f"WARNING: skipped {ESCAPED}: bad\n"


def test_other_libraries_keep_lines_and_colours(logged):
    text = "a table:\n\x1b[36mrow\x1b[0m\x1b[2J"
    assert logged("detectron2.data", text) == "WARNING: a table:\n\x1b[36mrow\x1b[0m\\x1b[2J\n"


def test_a_traceback_is_escaped(logged):
    written = logged("detectron2.engine", "stopped", error=ValueError("\x1b[2J"))
    assert written.endswith("ValueError: \\x1b[2J\n") and "\nValueError" in written


def test_a_log_file_of_another_encoding_takes_every_name(monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: "latin-1")
    record = PrintableRecord("openworldsam", logging.WARNING, "", 0, "%s", ("Zoë 猫",), None)
    assert record.getMessage() == r"Zoë \u732b"


def test_errors_are_one_line(capsys):
    with pytest.raises(SystemExit), user_errors():
        raise ValueError(f"{HOSTILE} is no image")
    assert capsys.readouterr().err == f"error: {ESCAPED} is no image\n"


@pytest.mark.parametrize("kind", [ValueError, KeyError, FileNotFoundError])
def test_an_error_of_a_worker_is_one_line(capsys, kind):
    """Its message holds a traceback and the class of the error."""
    trace = (
        f"Caught {kind.__name__} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File"
    )
    with pytest.raises(SystemExit), user_errors():
        raise kind(f"{trace}\n{kind.__name__}: a\nb.png: it is cut\n")
    assert capsys.readouterr().err == "error: a\\nb.png: it is cut\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_prints_no_traceback(capsys, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", True)
    with pytest.raises(SystemExit), user_errors():
        logging.FileHandler("/dev/full").handle(logging.makeLogRecord({"msg": "one"}))
        raise OSError(28, "No space left on device", "a.json")
    assert capsys.readouterr().err == "error: cannot use a.json: no space left on device\n"


def test_lines_that_are_said(capsys):
    say("one", HOSTILE, Path("three"))
    assert capsys.readouterr().out == f"one\n{ESCAPED}\nthree\n"


def speak(errors):
    """Show a name on stdout, on stderr and in the log, all in ASCII."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, open(number, "w", encoding="ascii", errors=errors, closefd=False))  # noqa: SIM115
    logging.basicConfig()
    with user_errors():
        say("\u732b", "\udcff")
        print("\u732b\udcff")
        logging.getLogger("openworldsam").warning("%s", "\u732b")
        raise ValueError("\u732b")


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_terminal_that_cannot_show_a_name(processes, errors):
    """Streams as PYTHONIOENCODING=ascii and LC_ALL=C make them."""
    (ended,) = processes(speak, errors)
    assert ended.status == 2
    assert ended.stdout.split() == [r"\u732b", r"\udcff", r"\u732b\udcff"]
    assert ended.stderr.split() == [r"WARNING:openworldsam:\u732b", "error:", r"\u732b"]
