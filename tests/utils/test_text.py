"""Names from outside in the terminal, in logs and in lists."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openworldsam.utils.launch import say, user_errors
from openworldsam.utils.text import PrintableRecord, printable

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_a_terminal_that_cannot_show_a_name(variables):
    """On stdout, on stderr and in the log."""
    script = (
        "import logging\n"
        "from openworldsam.utils.launch import say, user_errors\n"
        "logging.basicConfig()\n"
        "with user_errors():\n"
        "    say('\\u732b', '\\udcff')\n"
        "    print('\\u732b\\udcff')\n"
        "    logging.getLogger('openworldsam').warning('%s', '\\u732b')\n"
        "    raise ValueError('\\u732b')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), **variables}
    )
    assert result.returncode == 2
    assert result.stdout.split() == [rb"\u732b", rb"\udcff", rb"\u732b\udcff"]
    assert result.stderr.split() == [rb"WARNING:openworldsam:\u732b", b"error:", rb"\u732b"]
