"""The paper's numbers: as the paper prints them, and for benchmarks that exist."""

import re

import pytest
from detectron2.data import MetadataCatalog

import openworldsam.data.datasets  # noqa: F401 (registers the benchmarks)
from openworldsam.evaluation.paper_tables import PAPER_TABLES

NUMBERED = [(number, row) for number, content in PAPER_TABLES.items() for row in content.rows]
LINES = {  # what the lines of the other rows begin with, tags and references removed
    (1, "X-Decoder-Seg+ (B)"): "X-Decoder-Seg + (B)",
    (2, "X-Decoder (L), global"): "X-Decoder (L)\tGlobal-Matching",
    (2, "X-Decoder (L)"): "X-Decoder (L)\tOracle-Prompts",
    (3, "u-LLaVA, LoRA"): "u-LLaVA\tVicuna (7B)\t44",
    (3, "u-LLaVA"): "u-LLaVA\tVicuna (7B)\t7 (B)",
    (4, "CLIP-Large, text"): "CLIP-Large\t123",
    (4, "CLIP-Large"): "CLIP-Large\t428",
    (4, "BEiT-3-Large, text"): "BEiT-3-Large\t370",
    (4, "BEiT-3-Large"): "BEiT-3-Large\t673",
    (8, "OpenWorldSAM"): "OpenWorldSAM\tzero-shot",
    (8, "OpenWorldSAM, Cityscapes"): "OpenWorldSAM\tFinetune",
}


@pytest.fixture(scope="module")
def paper(shared):
    """The lines of each table, without tags and references."""
    text = re.sub(r"</?\w+>| \[\d+\]", "", (shared / "paper.txt").read_text())
    parts = re.split(r"^\*\*Table (\d+):", text, flags=re.MULTILINE)
    return {int(number): part.splitlines() for number, part in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize(("number", "row"), NUMBERED)
def test_the_numbers_are_those_that_the_paper_prints(paper, number, row):
    (line,) = (x for x in paper[number] if x.startswith(LINES.get((number, row), f"{row}\t")))
    printed = [float(cell) for cell in line.split("\t") if re.fullmatch(r"\d+\.\d", cell)]
    columns, rows = PAPER_TABLES[number]
    assert len(rows[row]) == len(columns)
    assert [value for value in rows[row] if value is not None] == printed


def test_every_column_is_a_benchmark_that_is_scored_on_its_task():
    for columns, _ in PAPER_TABLES.values():
        assert all(task in MetadataCatalog.get(name).tasks for name, task, _ in columns)
