"""The report of made-up results: numbers, the paper's rows, and verdicts."""

import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from openworldsam.ablation import report
from openworldsam.ablation.plots import recall_plot, score_plot
from openworldsam.ablation.record import DrawnFigure, record_of
from openworldsam.ablation.report import BEGIN, END, UNWRITTEN, write_report
from openworldsam.ablation.results import (
    AGREES,
    DISAGREES,
    HIGHER,
    LOWER,
    NOT_RUN,
    ONE_SEED,
    PAPER,
    UNDECIDED,
    Spread,
    read_runs,
    verdict,
)
from openworldsam.ablation.runs import VARIANTS
from openworldsam.evaluation.metrics.instance import RECALL

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """List the files of plots instead of drawing them; test_runs.py draws."""
    files = []
    monkeypatch.setattr(report, "save_figure", lambda figure, path: files.append(path.name))
    return files


def make_run(folder, name, seed, scores, benchmark="shapes_val", parameters=1234, fingerprint="1", images=500):
    """Write the files of a training and an evaluation; scores are PQ, AP, mIoU, and maybe recall of 1, 2, 3, 4 to 8."""
    run = folder / name / f"seed{seed}"
    run.mkdir(parents=True)
    settings = f"{{SEED: {seed}, PRESET: paper, OUTPUT_DIR: {run}, DATASETS: {{TRAIN: [shapes_train]}}, "
    settings += f"MODEL: {{PROMPT_ENCODER: {{TRAINABLE: false, WEIGHTS: {folder}/beit3.safetensors}}}}, "
    settings += "SOLVER: {MAX_ITER: 10000, IMS_PER_BATCH: 8}}"
    (run / "config.yaml").write_text(settings)
    save_file({"adapter.a": torch.zeros(parameters - 4), "adapter.b": torch.zeros(2, 2)}, run / "adapter.safetensors")
    pq, ap, miou, *recall = scores
    instance = {"AP": ap, **dict(zip(RECALL, recall, strict=False))}
    content = {"panoptic": {"PQ": pq}, "instance": instance, "semantic": {"mIoU": miou}}
    weights = {component: {"fingerprint": fingerprint} for component in ("sam2", "beit3")}
    content = {**content, "protocol": "oracle", "images": images, "remarks": {}, "skipped": {"b.png": "damaged"}}
    (run / "results.json").write_text(json.dumps({"benchmarks": {benchmark: content}, "weights": weights}))


def make_runs(folder, name, *scores, **more):
    for seed, each in enumerate(scores):
        make_run(folder, name, seed, each, **more)


def test_report_of_known_numbers(tmp_path, drawn):
    out, path = tmp_path / "out", tmp_path / "docs/report.md"
    make_runs(out, "E1", (10, 1, 20), (12, 2, 22), (14, 3, 24), parameters=51_200)
    make_runs(out, "E3", (50, 40, 70), (52, 41, 72), (54, 42, 74), parameters=1_052_480)
    make_runs(out, "E5", (40, 41, 70.5), (42, 42, 72.5), (44, 43, 74.5))
    make_runs(out, "add", (60, 41, 60), (62, 42, 62), (64, 43, 64))
    make_run(out, "text_only", 0, (5, 6, 7))
    write_report(out, path, "openworldsam ablate")
    text = path.read_text()
    assert "exposure" not in text
    assert "10,000 iterations of 8 images from shapes_train" in text and "Seeds: 0, 1, 2." in text
    rows = {line.split("**")[1]: [*map(str.strip, line.split("|"))] for line in text.splitlines() if "| **" in line}
    assert rows["E1"][2:7] == ["51,200", "3", "12.0 ± 2.0", "2.0 ± 1.0", "22.0 ± 2.0"]
    assert rows["E1"][7:12] == ["Table 5, E1", "1.2 (M)", "0.4", "1.0", "1.2"]
    assert rows["E3"][2] == "1,052,480" and rows["E3"][7:12] == ["Table 5, E3", "1.7 (M)", "35.1", "17.1", "56.8"]
    assert rows["E5"][8:12] == ["4.5 (M)", "35.2", "16.9", "60.4"]
    assert rows["text_only"][4:7] == ["5.0", "6.0", "7.0"] and rows["text_only"][9:12] == ["13.6", "3.1", "26.3"]
    assert rows["broadcast"][2:7] == ["-", "0", *[NOT_RUN] * 3] and rows["broadcast"][7] == "not reported"
    words = {line.split("**")[1]: line for line in text.splitlines() if line.startswith("* **")}
    assert words["Tie-breakers"].count(AGREES) == 3
    assert "here 52.0 ± 2.0 against 12.0 ± 2.0, paper 35.1 against 0.4" in words["Tie-breakers"]
    soft = words["Soft prompting"]
    assert f"PQ {DISAGREES} (here 42.0" in soft and f"AP {UNDECIDED}" in soft and f"mIoU {UNDECIDED}" in soft
    assert words["The image in the prompt encoder"].count(ONE_SEED) == 3
    fusion = words["Fusion `add` instead of `replace`"]
    assert f"PQ {HIGHER}" in fusion and f"AP {UNDECIDED}" in fusion and f"mIoU {LOWER}" in fusion
    assert fusion.endswith("Not reported in the paper.")
    assert words["Fusion `broadcast` instead of `replace`"].count(NOT_RUN) == 3
    assert rows["E2"][9:12] == ["-", "9.5", "-"] and rows["two_stage"][9:12] == ["36.3", "15.6", "58.0"]
    assert words["The prompt embedding at test time"].count("paper") == 1  # of AP alone
    total = next(line for line in text.splitlines() if line.startswith("Of the 25 comparisons"))
    assert total.endswith(f": 3 {AGREES}, 1 {DISAGREES}, 2 {UNDECIDED}, 16 {NOT_RUN}, 3 {ONE_SEED}.")
    assert "![Scores of every variant](report.png)" in text and drawn == ["report.png"]


def test_recall_of_equal_things(tmp_path, drawn):
    make_runs(tmp_path, "E1", (1, 2, 3, 90, 50, None, 10), (1, 2, 3, 92, 54, None, 14))
    make_runs(tmp_path, "E3", (1, 2, 3, 90, 80, None, 60), (1, 2, 3, 92, 84, None, 60))
    write_report(tmp_path, tmp_path / "report.md", "")
    text = (tmp_path / "report.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["recall of one of so many equal things", "1", "2", "4 to 8"] in rows
    assert ["**E1**", "91.0 ± 1.4", "52.0 ± 2.8", "12.0 ± 2.8"] in rows and drawn == ["report.png", "report_recall.png"]
    assert ["**E3**", "91.0 ± 1.4", "82.0 ± 2.8", "60.0 ± 0.0"] in rows
    assert f"recall of one of 4 to 8 {HIGHER} (here 60.0 ± 0.0 against 12.0 ± 2.8)." in text
    axis = recall_plot(read_runs(tmp_path, tmp_path / "report.md"), ["shapes_val"]).axes[0]
    assert [list(line[0].get_ydata()) for line in axis.containers] == [[91, 52, 12], [91, 82, 60]]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4 to 8"]
    assert all(VARIANTS[n].title in line.get_label() for n, line in zip(("E1", "E3"), axis.containers, strict=True))


def test_the_plot_of_scores_says_what_it_shows(tmp_path):
    make_runs(tmp_path, "E5", (70, 30, 80), (72, 34, 80))
    make_run(tmp_path, "add", 0, (60, 20, 70), benchmark="shapes_crowd_val")
    axes = score_plot(read_runs(tmp_path, tmp_path / "report.md"), ["shapes_val", "shapes_crowd_val"]).axes
    assert [axis.get_title() for axis in axes[:3]] == ["the paper, ADE20K-150", "shapes_val", "shapes_crowd_val"]
    rows = [label.get_text().replace("\n", " ") for label in axes[0].get_yticklabels()]
    assert rows == [f"{VARIANTS[n].title} ({n})".replace("`", "") for n in VARIANTS if n in PAPER or n == "add"]
    hollow = [{line.get_markerfacecolor() == "white" for line, *_ in axis.containers} for axis in axes[:3]]
    assert hollow == [{True}, {False}, {True}]  # one value, two seeds, one seed
    numbers = [[text.get_text() for text in axis.texts] for axis in axes[:3]]
    paper = [f"{row.scores['PQ']:.1f}" for row in PAPER.values() if "PQ" in row.scores]
    assert numbers == [paper, ["71.0"], ["60.0"]]
    bands = [[patch.get_x() for patch in axis.patches] for axis in axes[:3]]
    assert bands == [[], [pytest.approx(71 - 2**0.5)], []]


def test_conclusions_are_kept(tmp_path):
    path = tmp_path / "report.md"
    make_run(tmp_path, "E5", 0, (1, 2, 3))
    path.write_text("# An older report without conclusions\n")
    write_report(tmp_path, path, "first")
    first = path.read_text()
    assert f"{BEGIN}\n\n{UNWRITTEN}\n\n{END}\n\nGenerated by `first`" in first
    written = "Tie-breakers help.\n\n* Crowds: à lot."
    path.write_text(first.replace(UNWRITTEN, written).replace("| ", "|  "))
    write_report(tmp_path, path, "second")
    assert path.read_text() == first.replace(UNWRITTEN, "Tie-breakers help.\n\n* Crowds: à lot.").replace(
        "first", "second"
    )
    path.write_text(first.replace(END, ""))
    with pytest.raises(ValueError, match=r"the conclusions in .*report\.md have no end; put this line below them: "):
        write_report(tmp_path, path, "third")
    assert path.read_text() == first.replace(END, "")


def test_the_paper_compared_with_itself_agrees_everywhere(tmp_path):
    for name, row in PAPER.items():
        make_runs(tmp_path, name, *[tuple(row.scores.get(metric) for metric in ("PQ", "AP", "mIoU"))] * 2)
    write_report(tmp_path, tmp_path / "report.md", "")
    assert f"Of the 25 comparisons that the paper reports: 25 {AGREES}." in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("one", "other", "paper", "said"),
    [
        (Spread(3, 1.0), Spread(1, 1.0), 5.0, UNDECIDED),  # exactly the sum of both deviations
        (Spread(3.1, 1.0), Spread(1, 1.0), 5.0, AGREES),
        (Spread(3.1, 1.0), Spread(1, 1.0), -0.2, DISAGREES),
        (Spread(1, 0.0), Spread(3, 0.0), -0.2, AGREES),
        (Spread(1, 0.0), Spread(3, 0.0), None, LOWER),
        (Spread(3, 0.0), Spread(1, None), 5.0, ONE_SEED),
        (None, Spread(1, None), 5.0, NOT_RUN),
    ],
)
def test_verdicts(one, other, paper, said):
    assert verdict(one, other, paper) == said


def test_several_benchmarks_and_metrics_that_are_not_available(tmp_path):
    make_runs(tmp_path, "E1", (1, None, 3), (2, None, 5))
    make_runs(tmp_path, "E5", (1, 2, 3), benchmark="shapes_novel_val", images=7)
    write_report(tmp_path, tmp_path / "report.md", "")
    text = (tmp_path / "report.md").read_text()
    assert f"| 1.5 ± {statistics.stdev([1, 2]):.1f} | not run | 4.0 ± 1.4 |" in " ".join(text.split())
    assert "## shapes_val" in text and "## shapes_novel_val" in text
    assert "shapes_val (500 images, protocol oracle), shapes_novel_val (7 images, protocol oracle)" in text


def test_what_the_weights_have_seen_is_said_once_below_the_table(tmp_path):
    make_runs(tmp_path, "E5", (1, 2, 3), (2, 3, 4), benchmark="ade20k_150_panoptic_val")
    path = tmp_path / "E5/seed0/results.json"
    results = json.loads(path.read_text())
    results["weights"]["adapter"] = {"fingerprint": "3", "trained_on": "ade20k_150_train"}
    path.write_text(json.dumps(results))
    write_report(tmp_path, tmp_path / "report.md", "")
    unknown = "exposure to ADE20K is unknown: training data not known (sam2); training data not known (beit3)"
    lines = f"\n\n* the adapter has seen ADE20K images and labels: not zero-shot\n* {unknown}\n\n"
    assert (tmp_path / "report.md").read_text().count(lines) == 1


def test_runs_of_several_machines_meet_in_the_record(tmp_path):
    """Reporting two disjoint folders in turn gives the page of one folder with all runs."""
    first, second, whole = (tmp_path / name for name in ("first", "second", "whole"))
    one, other = tmp_path / "docs/report.md", tmp_path / "whole.md"
    for folder in (first, whole):
        make_runs(folder, "E1", (10, 1, None, 90, 50), (12, 2, 22, 90, 60))
        make_runs(folder, "E5", (40, 41, 70, 80, 70), parameters=99)
    write_report(first, one, "the command")
    for folder in (second, whole):
        make_run(folder, "E1", 2, (20, 3, 30, 95, 75))
        make_run(folder, "add", 0, (60, 41, 60), benchmark="shapes_novel_val")
    for folder in (second, second, whole):
        write_report(folder, other if folder == whole else one, "the command")
    assert one.read_text() == other.read_text().replace("whole", "report")
    assert record_of(one).read_text() == record_of(other).read_text()
    assert str(tmp_path) not in record_of(one).read_text()


def test_runs_of_a_folder_replace_those_of_the_record(tmp_path):
    first, second, page = tmp_path / "first", tmp_path / "second", tmp_path / "report.md"
    make_runs(first, "E5", (40, 41, 70), (42, 43, 72))
    make_runs(first, "two_stage", (45, 46, 75), (47, 48, 77))
    write_report(first, page, "the command")
    make_run(second, "E5", 0, (50, 41, 70))
    runs = read_runs(second, page)
    assert [run.results["benchmarks"]["shapes_val"]["panoptic"]["PQ"] for run in runs["E5"]] == [50, 42]
    assert [run.seed for run in runs["two_stage"]] == [1]  # of seed 0, it evaluated the adapter that was replaced
    path = second / "E5/seed0/config.yaml"
    path.write_text(path.read_text().replace("10000", "5000"))
    with pytest.raises(ValueError, match=rf"second and {record_of(page)} differ in SOLVER\.MAX_ITER and .*report"):
        write_report(second, page, "the command")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"AP": 41.0', '"AP": "x"'),
        ('"seed": 0', '"seed": []'),
        ("seed", "sead"),
        ('"runs": [', '"runs": [1, '),
        ("images", "imagey"),
        ('"benchmarks": {', '"benchmarks": 1, "": {'),
    ],
)
def test_a_damaged_record_is_named(tmp_path, old, new):
    page = tmp_path / "report.md"
    make_run(tmp_path, "E5", 0, (40, 41, 70))
    write_report(tmp_path, page, "the command")
    record_of(page).write_text(record_of(page).read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"report\.json is not the record of an ablation's report .* move it away"):
        write_report(tmp_path, page, "the command")


def test_a_variant_that_is_unknown_is_left_out(tmp_path):
    page = tmp_path / "report.md"
    make_run(tmp_path, "E5", 0, (40, 41, 70))
    write_report(tmp_path, page, "the command")
    record_of(page).write_text(record_of(page).read_text().replace('"E5"', '"E7"'))
    assert not any(read_runs(tmp_path / "nowhere", page).values())


def test_the_published_page_is_that_of_its_record(tmp_path):
    for file in ("shapes_ablation.md", "shapes_ablation.json"):
        shutil.copy(DOCS / file, tmp_path)
    published = (path := tmp_path / "shapes_ablation.md").read_text()
    write_report(tmp_path / "nowhere", path, published.partition("Generated by `")[2].partition("`")[0])
    assert path.read_text() == published
    assert record_of(path).read_text() == record_of(DOCS / path.name).read_text()


def test_figures_are_linked_relative_to_the_report(tmp_path):
    make_run(tmp_path / "out", "E5", 0, (1, 2, 3))
    path = tmp_path / "docs/report.md"
    write_report(
        tmp_path / "out", path, "", [DrawnFigure(str(tmp_path / "docs/images/a.png"), "A title", "What it shows.")]
    )
    assert "### A title\n\n![A title](images/a.png)\n\nWhat it shows.\n" in (text := path.read_text())
    write_report(tmp_path / "nowhere", path, "")  # all of it comes from the record
    assert path.read_text() == text


def test_runs_differ_only_in_seed_and_what_makes_their_variants(tmp_path):
    for name, seed, number in (("E1", 0, 0), ("E5", 0, 8), ("E5_more_queries", 0, 20), ("E5", 1, 20)):
        assert len(read_runs(tmp_path, tmp_path / "report.md")) == len(VARIANTS)
        make_run(tmp_path, name, seed, (1, 2, 3))
        path = tmp_path / name / f"seed{seed}/config.yaml"
        path.write_text(path.read_text().replace("MODEL: {", f"MODEL: {{ADAPTER: {{NUM_TIE_BREAKERS: {number}}}, "))
    with pytest.raises(ValueError, match=r"E5 and E5 in .* differ in MODEL\.ADAPTER\.NUM_TIE_BREAKERS and"):
        read_runs(tmp_path, tmp_path / "report.md")


def test_unusable_runs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither .* nor .*report\.json has a finished run"):
        write_report(tmp_path, tmp_path / "report.md", "")
    make_run(tmp_path, "E1", 0, (1, 2, 3))
    make_run(tmp_path, "E5", 0, (1, 2, 3), fingerprint="2")
    with pytest.raises(ValueError, match="differ in weights of the beit3, weights of the sam2"):
        write_report(tmp_path, tmp_path / "report.md", "")
    (tmp_path / "E5/seed0/results.json").write_text("{")
    with pytest.raises(ValueError, match=r"E5/seed0/results\.json is not json"):
        write_report(tmp_path, tmp_path / "report.md", "")
    (tmp_path / "E1/seed0/adapter.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"E1/seed0/adapter\.safetensors is missing"):
        write_report(tmp_path, tmp_path / "report.md", "")
    assert not (tmp_path / "report.md").exists()
