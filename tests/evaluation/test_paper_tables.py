"""The paper's numbers: as the paper prints them, for benchmarks that exist, and beside what was measured."""

import re

import pytest
from detectron2.data import MetadataCatalog

import openworldsam.data.datasets  # noqa: F401 (registers the benchmarks)
from openworldsam.evaluation.paper_tables import PAPER_TABLES, Number, paper_numbers, row_of
from openworldsam.evaluation.summary import table

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


@pytest.mark.parametrize(
    ("opts", "row"),
    [
        ([], "OpenWorldSAM"),
        (["MODEL.INFERENCE.TWO_STAGE", True], "+ two-stage inference"),
        (["MODEL.ADAPTER.NUM_LAYERS", 0], "E3"),
        (["MODEL.ADAPTER.NUM_LAYERS", 0, "MODEL.ADAPTER.NUM_TIE_BREAKERS", 0], "E1"),
        (["MODEL.PROMPT_ENCODER.USE_IMAGE", False], "BEiT-3-Large, text"),
        (["MODEL.PROMPT_ENCODER.USE_IMAGE", False, "MODEL.INFERENCE.TWO_STAGE", True], None),
        (["PRESET", "released"], "OpenWorldSAM"),
        (["DATASETS.TRAIN", ["cityscapes_19_panoptic_train"]], "OpenWorldSAM, Cityscapes"),
        (["PRESET", "improved"], None),
    ],
)
def test_a_config_stands_for_a_row_or_for_none(tiny_cfg, opts, row):
    tiny_cfg.merge_from_list(opts)
    assert row_of(tiny_cfg) == row
    assert bool(paper_numbers(row)) == (row is not None)


def test_the_table_has_what_was_measured_the_papers_number_and_the_difference():
    numbers = paper_numbers("OpenWorldSAM")
    assert numbers["ade20k_150_val", "semantic", "mIoU"] == Number(60.4, 1)
    assert numbers["cityscapes_19_val", "semantic", "mIoU"] == Number(39.4, 8)
    plain = {"images": 2000, "skipped": {}, "remarks": {}, "semantic": {"mIoU": 61.0}}
    results = {"ade20k_150_val": {**plain, "protocol": "oracle"}, "ade20k_847_val": {**plain, "protocol": "global"}}
    results["pascal_voc_20_val"] = {**plain, "protocol": "oracle", "semantic": {"mIoU": None}}
    header, _, *rows = table(results, numbers).splitlines()
    assert header.split() == ["benchmark", "protocol", "images", "metric", "measured", "paper", "difference", "table"]
    cells = [row.split() for row in rows]
    assert cells[0][-4:] == ["61.00", "60.4", "+0.60", "1"]
    assert cells[1][-2:] == ["mIoU", "61.00"]  # nothing in the paper was asked for the whole vocabulary
    assert cells[2][-3:] == ["n/a", "98.0", "1"]
