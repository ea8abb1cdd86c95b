"""docs/quickstart.ipynb runs with the bundled weights."""

import ast
import json
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]


def execute(cell, names):
    """Execute a cell like a notebook; return the value of its last expression."""
    *body, last = ast.parse("".join(cell["source"])).body
    if not isinstance(last, ast.Expr):
        body, last = [*body, last], ast.Expr(ast.Constant(None))
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebook_runs_and_shows_what_it_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    notebook = json.loads((ROOT / "docs/quickstart.ipynb").read_text())
    names = {}
    shown = [execute(cell, names) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert sum(isinstance(value, Image.Image) for value in shown) == 4
    printed = capsys.readouterr().out
    assert "star 2" in printed and "no mask passed the threshold 0.99 (best match score 0." in printed
    assert {annotation["category_id"] for annotation in shown[-1]} == {1}
