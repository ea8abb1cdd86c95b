"""Numbers of the paper's Tables 1 to 5 and 8; `comparison.py` says which a run can be compared with.

Columns are (benchmark, task, metric) in this project's names. Table 1 lists PQ, AP and mIoU of ADE20K-150, then mIoU
and PQ of ScanNet-20; where the header of the published table contradicts its text, the text is followed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Column = tuple[str, str, str]
"""(benchmark, task, metric)."""


class PaperTable(NamedTuple):
    """Numbers of each row by column; None where the paper has none."""

    columns: tuple[Column, ...]
    rows: dict[str, tuple[float | None, ...]]


class Number(NamedTuple):
    """A number of the paper, 0 to 100, and the number of its table."""

    value: float
    table: int


def _miou(*benchmarks: str) -> tuple[Column, ...]:
    return tuple((f"{benchmark}_val", "semantic", "mIoU") for benchmark in benchmarks)


_ADE = (
    ("ade20k_150_panoptic_val", "panoptic", "PQ"),
    ("ade20k_100_instance_val", "instance", "AP"),
    *_miou("ade20k_150", "ade20k_847"),
)
_MIDDLE = _miou("pascal_voc_20", "pascal_context_59", "pascal_context_459", "sun_rgbd_37")
_SCANNET = (*_miou("scannet_20"), ("scannet_20_panoptic_val", "panoptic", "PQ"), *_miou("scannet_40"))
_REFERRING = (("refcocog_umd_val", "referring", "cIoU"),)
_CITYSCAPES = (
    *_miou("cityscapes_19"),
    ("cityscapes_19_panoptic_val", "cityscapes", "AP_cityscapes"),
    ("cityscapes_19_panoptic_val", "panoptic", "PQ"),
)
_BDD = (*_miou("bdd10k_19"), ("bdd10k_40_panoptic_val", "panoptic", "PQ"))

_NO = None

PAPER_TABLES: dict[int, PaperTable] = {
    1: PaperTable(  # zero-shot; all but OpenWorldSAM are prompted with the whole vocabulary
        (*_ADE, *_MIDDLE, *_SCANNET),
        {
            "MSeg (B)": (33.7, 32.6, 19.1, _NO, 73.4, 43.4, _NO, 29.6, 33.4, _NO, _NO),
            "GroupViT (S)": (_NO, _NO, _NO, _NO, 52.3, 22.4, _NO, _NO, _NO, _NO, _NO),
            "LSeg+ (B)": (_NO, _NO, 18.0, 3.8, _NO, 46.5, 7.8, _NO, _NO, _NO, _NO),
            "ZegFormer (B)": (_NO, _NO, _NO, 8.1, 80.7, _NO, _NO, _NO, _NO, _NO, _NO),
            "OpenSeg (B)": (_NO, _NO, 26.4, 8.1, 70.2, 44.8, 11.5, _NO, _NO, _NO, _NO),
            "OVSeg (B)": (_NO, _NO, 29.6, 9.0, 94.5, 55.7, 12.4, _NO, _NO, _NO, _NO),
            "MaskCLIP (L)": (15.1, 6.0, 23.7, 8.2, _NO, 45.9, 10.0, _NO, _NO, _NO, _NO),
            "OpenSeeD (L)": (19.7, 15.0, 23.4, _NO, _NO, _NO, _NO, _NO, _NO, _NO, _NO),
            "X-Decoder-Seg+ (B)": (16.9, 9.5, 23.8, 4.6, 97.8, 64.7, 12.1, 32.2, 35.1, 33.8, 18.5),
            "X-Decoder (L)": (21.8, 13.1, 29.6, 9.2, 97.7, 64.0, 16.1, 43.0, 49.5, 39.5, 29.7),
            "APE-B (L)": (26.4, 23.5, 29.0, 9.2, 95.8, 58.3, 21.0, _NO, _NO, _NO, _NO),
            "OpenWorldSAM": (35.2, 16.9, 60.4, 33.1, 98.0, 73.7, 47.5, 67.7, 65.0, 41.9, 55.6),
            "+ two-stage inference": (36.3, 15.6, 58.0, 32.6, 97.6, 72.6, 45.8, 68.2, 64.8, 39.9, 54.1),
        },
    ),
    2: PaperTable(  # oracle prompts, except for the first row
        (*_ADE[2:], *_MIDDLE, *_miou("scannet_40")),
        {
            "X-Decoder (L), global": (29.6, 9.2, 97.7, 64.0, 16.1, 43.0, 29.7),
            "X-Decoder (L)": (51.5, 29.1, 98.1, 75.5, 42.3, 67.1, 49.1),
            "OpenWorldSAM": (60.4, 33.1, 98.0, 73.7, 47.5, 67.7, 55.6),
        },
    ),
    3: PaperTable(
        _REFERRING,
        {
            "X-Decoder (L)": (64.6,),
            "SEEM (L)": (65.6,),
            "PolyFormer (L)": (71.2,),
            "UNINEXT (H)": (74.4,),
            "APE-B (L)": (63.5,),
            "PixelLM": (69.3,),
            "LISA": (66.4,),
            "GLaMM": (74.2,),
            "u-LLaVA, LoRA": (71.6,),
            "u-LLaVA": (74.8,),
            "EVF-SAM": (76.8,),
            "OpenWorldSAM": (74.0,),
        },
    ),
    4: PaperTable(  # other prompt encoders
        (*_ADE, *_REFERRING),
        {
            "CLIP-Large, text": (13.5, 2.9, 25.7, 12.8, 25.2),
            "CLIP-Large": (14.0, 3.6, 26.5, 14.0, 25.3),
            "BEiT-3-Large, text": (13.6, 3.1, 26.3, 13.3, 26.1),
            "BEiT-3-Large": (35.2, 16.9, 60.4, 33.1, 74.0),
        },
    ),
    5: PaperTable(  # other trained modules
        _ADE,
        {
            "E1": (0.4, 1.0, 1.2, 0.2),
            "E2": (_NO, 9.5, _NO, _NO),
            "E3": (35.1, 17.1, 56.8, 32.2),
            "E4": (13.6, 3.5, 24.4, 10.6),
            "E5": (35.2, 16.9, 60.4, 33.1),
            "E6": (15.9, 3.8, 23.6, 11.2),
        },
    ),
    8: PaperTable(
        (*_CITYSCAPES, *_BDD),
        {
            "X-Decoder (L)": (52.0, 24.9, 38.1, 47.2, 17.8),
            "OpenWorldSAM": (39.4, 10.1, 26.4, 31.3, 15.6),
            "OpenWorldSAM, Cityscapes": (57.4, 12.0, 36.1, 38.0, 17.4),
        },
    ),
}
"""Tables by number. Row names are the paper's, with additions where several rows share one name."""

CITYSCAPES_TRAIN = "cityscapes_19_panoptic_train"
"""Training set of the last row of Table 8."""
OUR_ENCODER = "BEiT-3-Large"
"""Row of Table 4 with the prompt encoder of all other tables."""


def with_tables(names: Iterable[str]) -> list[str]:
    """Replace table1 and so on among the names of benchmarks by the benchmarks of that table."""
    tables = {f"table{number}": [name for name, *_ in table.columns] for number, table in PAPER_TABLES.items()}
    return list(dict.fromkeys(name for given in names for name in tables.get(given, [given])))


def paper_numbers(row: str | None) -> dict[Column, Number]:
    """Return the paper's numbers of a row by column, each from the first table that has it."""
    numbers: dict[Column, Number] = {}
    for number, (columns, rows) in PAPER_TABLES.items():
        for column, value in zip(columns, rows.get(row or "", ()), strict=False):
            if value is not None:
                numbers.setdefault(column, Number(value, number))
    return numbers
