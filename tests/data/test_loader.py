"""The image at a position is the same for any number of processes and workers, and after any interruption."""

import logging
import signal
from itertools import chain, islice

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image

from openworldsam.data.datasets import register_datasets
from openworldsam.data.loader import TrainingDataset, training_batches, training_dataset
from openworldsam.data.mapper import DatasetMapper
from openworldsam.data.records import as_record


def draw(record, generator):
    """Show a number drawn by the generator; used as a mapper."""
    return {**record, "number": int(generator.integers(10**9))}


def records(count, bad=(), empty=()):
    return [{"file_name": f"{i}.jpg", "image_id": i, "is_bad": i in bad, "is_empty": i in empty} for i in range(count)]


def strict(record, generator):
    if record["is_bad"]:
        raise ValueError(f"{record['file_name']} is damaged")
    return None if record["is_empty"] else draw(record, generator)


def load(dataset, steps, batch_size=4, start=0, rank=0, world_size=1, num_workers=0):
    batches = training_batches(
        dataset, batch_size=batch_size, start=start, rank=rank, world_size=world_size, num_workers=num_workers
    )
    return list(islice(batches, steps))


def flat(batches):
    return list(chain.from_iterable(batches))


def ids(images):
    return [x["image_id"] for x in images]


def test_each_epoch_visits_every_record_once():
    dataset = TrainingDataset(records(11), draw, seed=0)
    epochs = [ids(dataset[position] for position in range(11 * e, 11 * e + 11)) for e in range(4)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(11)) not in epochs


def test_batches_follow_the_positions_across_epochs():
    dataset = TrainingDataset(records(5), draw, seed=0)
    batches = load(dataset, steps=6, batch_size=4)
    assert [len(batch) for batch in batches] == [4] * 6  # no short batch where an epoch ends
    assert flat(batches) == [dataset[position] for position in range(24)]


def test_a_visit_draws_anew():
    dataset = TrainingDataset(records(5), draw, seed=0)
    assert len({dataset[position]["number"] for position in range(50)}) == 50


def test_a_position_does_not_depend_on_what_was_read_before():
    straight = TrainingDataset(records(7, bad=[2], empty=[3]), strict, seed=0)
    jumping = TrainingDataset(records(7, bad=[2], empty=[3]), strict, seed=0)
    expected = [straight[position] for position in range(30)]
    assert [jumping[position] for position in reversed(range(30))] == expected[::-1]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_batch_of_one(world_size):
    dataset = TrainingDataset(records(7), draw, seed=1)
    alone = load(dataset, steps=5, batch_size=8)
    shares = [load(dataset, 5, 8 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert [len(part) for part in parts] == [8 // world_size] * world_size
        by_number = [sorted(batch, key=lambda x: x["number"]) for batch in (whole, flat(parts))]
        assert by_number[0] == by_number[1]


@pytest.mark.parametrize("world_size", [1, 2])
def test_starting_at_a_position_resumes(world_size):
    dataset = TrainingDataset(records(7), draw, seed=1)
    for rank in range(world_size):
        uninterrupted = load(dataset, 9, 2, rank=rank, world_size=world_size)
        resumed = load(dataset, 5, 2, start=4 * 2 * world_size, rank=rank, world_size=world_size)
        assert resumed == uninterrupted[4:]


def test_a_run_may_resume_on_another_number_of_processes():
    dataset = TrainingDataset(records(7), draw, seed=1)
    alone = flat(load(dataset, steps=4, batch_size=4))
    begun = flat(load(dataset, steps=2, batch_size=4))
    ended = [x for rank in range(2) for x in flat(load(dataset, 2, 2, start=8, rank=rank, world_size=2))]
    assert sorted(x["number"] for x in begun + ended) == sorted(x["number"] for x in alone)


def test_another_seed_gives_another_order_and_other_draws():
    first, again, other = (TrainingDataset(records(20), draw, seed=seed) for seed in (0, 0, 1))
    content = [[dataset[position] for position in range(20)] for dataset in (first, again, other)]
    assert content[0] == content[1]
    assert ids(content[0]) != ids(content[2])
    assert not {x["number"] for x in content[0]} & {x["number"] for x in content[2]}


def test_workers_change_nothing():
    dataset = TrainingDataset(records(7, bad=[2], empty=[3]), strict, seed=0)
    alone, one, two = (load(dataset, steps=6, batch_size=2, num_workers=n) for n in (0, 1, 2))
    assert alone == one == two


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_leaves_the_global_generators_alone(num_workers):
    """Dropout uses torch's; a resumed run starts the loader once more than an uninterrupted one."""
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    load(TrainingDataset(records(7), draw, seed=0), steps=2, num_workers=num_workers)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_global_generators_do_not_decide():
    dataset = TrainingDataset(records(7), draw, seed=0)
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        runs.append(load(dataset, steps=4))
    assert runs[0] == runs[1]


def first_positions(count):
    return load(TrainingDataset(records(7), draw, seed=3), steps=count, batch_size=1)


def test_another_process_reads_the_same(processes):
    (there,) = processes.values(first_positions, 20)
    assert len(there) == 20 and there == first_positions(20)


def test_an_unreadable_record_is_replaced_and_named(caplog):
    dataset = TrainingDataset(records(8, bad=[5]), strict, seed=0)
    with caplog.at_level(logging.WARNING):
        images = [dataset[position] for position in range(8)]
    replaced = [x for x in images if x["skipped"]]
    assert [x["skipped"][0] for x in replaced] == ["5.jpg"]
    assert 5 not in ids(images)
    assert set(range(8)) - {5} <= set(ids(images))
    assert "5.jpg is damaged" in caplog.text


def test_replacements_are_drawn_from_all_records():
    dataset = TrainingDataset(records(8, bad=[5]), strict, seed=0)
    replacements = [x["image_id"] for position in range(800) if (x := dataset[position])["skipped"]]
    assert len(replacements) == 100 and set(replacements) == set(range(8)) - {5}


@pytest.mark.parametrize("error", [ValueError("damaged"), FileNotFoundError("gone"), OSError("no such device")])
def test_every_bad_file_is_named(error):
    def mapper(record, generator):
        if record["image_id"]:
            raise error
        return draw(record, generator)

    dataset = TrainingDataset(records(3), mapper, seed=0, max_bad=1000)
    images = [dataset[position] for position in range(30)]
    assert set(ids(images)) == {0}
    assert {name for x in images for name in x["skipped"]} == {"1.jpg", "2.jpg"}
    assert max(len(x["skipped"]) for x in images) > 1


def test_the_warning_names_the_image_whatever_the_error(tmp_path, caplog):
    for i in range(2):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{i}.png")
    referring = [
        {
            "file_name": str(tmp_path / f"{i}.png"), "image_id": i, "height": height, "width": 8,
            "annotations": [{"sentences": ["it"], "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}],
        }
        for i, height in enumerate((6, 7))
    ]  # fmt: skip
    dataset = TrainingDataset(list(map(as_record, referring)), DatasetMapper(), seed=0)
    with caplog.at_level(logging.WARNING):
        assert {name for position in range(2) for name in dataset[position]["skipped"]} == {str(tmp_path / "1.png")}
    assert "1.png" in caplog.text


def test_a_program_error_is_not_taken_for_a_bad_file():
    def mapper(record, generator):
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        TrainingDataset(records(3), mapper, seed=0)[0]


def test_records_without_ground_truth_are_replaced_silently(caplog):
    dataset = TrainingDataset(records(8, empty=[1, 5]), strict, seed=0)
    with caplog.at_level(logging.DEBUG):
        images = [dataset[position] for position in range(80)]
    assert not any(x["skipped"] for x in images) and not caplog.records
    assert set(ids(images)) == set(range(8)) - {1, 5}


def test_records_without_ground_truth_are_no_fault_however_many_they_are(tmp_path):
    """Two of 40 images can be learnt from, and one is unreadable."""
    dataset = TrainingDataset(records(40, bad=[9], empty={*range(40)} - {3, 9, 21}), strict, seed=0)
    images = [dataset[position] for position in range(80)]
    assert set(ids(images)) == {3, 21} and {name for x in images for name in x["skipped"]} == {"9.jpg"}


def test_a_dataset_of_which_nothing_can_be_used_is_an_error_once_all_is_tried():
    asked = []

    def mapper(record, generator):
        asked.append(record["image_id"])
        return strict(record, generator)

    dataset = TrainingDataset(records(30, bad=[2], empty={*range(30)} - {2}), mapper, seed=0)
    with pytest.raises(ValueError, match=r"none of the 30 images .*: 1 are unreadable .*, the others have"):
        dataset[0]
    assert sorted(asked) == list(range(30))


def instances(number, **changes):
    """Records of objects of which only the last one's differs from a crowd."""
    crowd = {"id": 1, "category_id": 0, "iscrowd": 1, "segmentation": [[0, 0, 4, 0, 4, 4]]}
    record = {"file_name": "a.jpg", "image_id": 0, "height": 6, "width": 8, "instances": [crowd]}
    return [*[record] * (number - 1), {**record, "instances": [{**crowd, **changes}]}]


def test_images_known_to_have_no_object_are_left_out_from_the_start(tiny_cfg, caplog):
    name = "test_loader_crowds"
    tiny_cfg.DATASETS.TRAIN = [name]
    for changes, message in (
        ({"iscrowd": 0}, ""),
        ({}, "none of the 9 images of .*test_loader_crowds.* has an object but crowds"),
        ({"iscrowd": 0, "segmentation": []}, "none of the 9 images"),
    ):
        DatasetCatalog.register(name, lambda changes=changes: instances(9, **changes))
        MetadataCatalog.get(name).set(vocabulary=("cat",), is_thing=(True,))
        try:
            if message:
                with pytest.raises(ValueError, match=message):
                    training_dataset(tiny_cfg)
            else:
                with caplog.at_level(logging.INFO, logger="openworldsam"):
                    dataset = training_dataset(tiny_cfg)
                assert (len(dataset.records), dataset.num_empty) == (1, 8)
                assert "8 of 9 images have no object" in caplog.text
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name)


def test_train_images_limits_every_training_set(tiny_cfg):
    register_datasets(tiny_cfg)
    tiny_cfg.merge_from_list(["DATASETS.TRAIN", ["shapes_train"], "DATASETS.TRAIN_IMAGES", 3])
    dataset = training_dataset(tiny_cfg)
    assert [dataset.records[i]["file_name"] for i in range(len(dataset.records))] == [
        f"shapes_train/00000{i}" for i in range(3)
    ]


def test_too_many_unreadable_records_in_a_row_stop_it():
    asked = []

    def mapper(record, generator):
        asked.append(record["file_name"])
        return strict(record, generator)

    dataset = TrainingDataset(records(6, bad=range(6)), mapper, seed=0, max_bad=4)
    with pytest.raises(ValueError, match=r"^4 images in a row .* the last (\d\.jpg)$") as raised:
        dataset[2]
    assert len(asked) == 4 and str(raised.value).endswith(asked[-1])


def test_the_error_reaches_the_trainer_from_a_worker():
    dataset = TrainingDataset(records(6, bad=range(6)), strict, seed=0, max_bad=3)
    with pytest.raises(ValueError, match=r"3 images in a row .*\d\.jpg"):
        load(dataset, steps=1, num_workers=1)


def test_no_records_is_an_error(tiny_cfg):
    tiny_cfg.DATASETS.TRAIN = ["test_loader_empty"]
    DatasetCatalog.register("test_loader_empty", list)
    try:
        with pytest.raises(ValueError, match=r"training set \['test_loader_empty'\] has no image"):
            training_dataset(tiny_cfg)
    finally:
        DatasetCatalog.remove("test_loader_empty")


def test_fewer_records_than_a_batch():
    batches = load(TrainingDataset(records(1), draw, seed=0), steps=2, batch_size=4)
    assert [ids(batch) for batch in batches] == [[0] * 4] * 2


def test_the_real_mapper_in_workers(tmp_path):
    """Images, prompts and targets arrive whole, with a file in the dataset that is missing."""
    pan, panoptic_records = np.zeros((20, 30), dtype=np.uint32), []
    for strip in range(8):
        pan[:, 3 * strip : 3 * strip + 3] = strip + 1
    Image.fromarray(id2rgb(pan)).save(tmp_path / "panoptic.png")
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        panoptic_records.append(
            {
                "file_name": str(tmp_path / f"{i}.png"), "image_id": i, "height": 20, "width": 30,
                "pan_seg_file_name": str(tmp_path / "panoptic.png"),
                "segments_info": [{"id": c + 1, "category_id": c, "iscrowd": 0} for c in range(8)],
            }
        )  # fmt: skip
    (tmp_path / "2.png").unlink()
    mapper = DatasetMapper(class_names=tuple("abcdefgh"), is_thing=(True,) * 8, max_prompts=3)
    dataset = TrainingDataset(list(map(as_record, panoptic_records)), mapper, seed=0)
    here, there = (flat(load(dataset, steps=4, num_workers=n)) for n in (0, 2))
    for own, other in zip(here, there, strict=True):
        assert own.keys() == other.keys()
        torch.testing.assert_close([own["image"], *own["targets"]], [other["image"], *other["targets"]])
        for key in own.keys() - {"image", "targets"}:
            assert own[key] == other[key]
    assert {name for x in there for name in x["skipped"]} == {str(tmp_path / "2.png")}
    assert len({tuple(x["prompts"]) for x in there}) > 4


def ignores_ctrl_c(record, generator):
    return {"ignored": signal.getsignal(signal.SIGINT) == signal.SIG_IGN}


def test_workers_leave_ctrl_c_to_the_main_process():
    batches = training_batches(
        TrainingDataset(records(1), ignores_ctrl_c, seed=0), batch_size=1, start=0, rank=0, world_size=1, num_workers=1
    )
    ((example,),) = islice(batches, 1)
    assert example["ignored"] and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
