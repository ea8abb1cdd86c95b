"""The code of docs/python.md runs as it stands, from the top to the bottom, with the bundled weights."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page):
    """The blocks of Python, each after as many empty lines as keep the page's line numbers in tracebacks."""
    text = (ROOT / page).read_text()
    found = re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text[: match.start(1)].count("\n") + match[1] for match in found]


def test_the_page_runs(monkeypatch, tmp_path, capsys):
    for name in ("configs", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks("docs/python.md"):
        exec(compile(code, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(
        r"<Prediction panoptic, \d+ x \d+ pixels: star 2, water 1, triangle not found \(best 0\.\d+\)>", printed
    )
    assert len(names["stars"]) == 2 and len(names["fixed"]) == len(names["again"]) == 1
    assert len(names["results"]) == 2 and "output/scene3.png" in printed
    assert (tmp_path / "output/overlay.png").stat().st_size > 0
