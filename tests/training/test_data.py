import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from octnas.errors import DataError
from octnas.training.data import DigitImages, count_classes, open_images, preparation
from octnas.training.settings import DigitsSettings, FolderSettings
from tests.training.small import digits


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order() -> None:
    images = DigitImages(digits(96, 10, 10, 10, padding=0))
    everything = images.batches("train", 96)
    (whole, labels) = next(iter(everything))
    batches = images.train_batches(32, seed=0)
    assert len(batches) == 3
    epochs = [[(x, y) for x, y in batches] for _ in range(2)]
    for epoch in epochs:
        shown = torch.cat([x for x, _ in epoch])
        assert Counter(torch.cat([y for _, y in epoch]).tolist()) == Counter(labels.tolist())
        assert torch.equal(shown.flatten(1).sum(1).sort()[0], whole.flatten(1).sum(1).sort()[0])
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])


def test_the_seed_decides_order_and_shifts(few_digits: DigitImages) -> None:
    first, again, other = (next(iter(few_digits.train_batches(32, seed)))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_crops_shift_by_at_most_the_padding() -> None:
    images = DigitImages(digits(64, 10, 10, 10, padding=1))
    (whole, _) = next(iter(images.batches("train", 64)))
    background = float(whole.min())
    padded = torch.nn.functional.pad(whole, [1] * 4, value=background)
    shifts = [padded[:, :, y : y + 16, x : x + 16] for y in range(3) for x in range(3)]
    (shown, _) = next(iter(images.train_batches(64, seed=0)))
    used = set()
    for image in shown:
        fitting = [i for i, shift in enumerate(shifts) if (shift == image).flatten(1).all(1).any()]
        assert fitting
        used.add(fitting[0])
    assert len(used) > 5


def test_evaluation_batches_cover_a_part_in_order(few_digits: DigitImages) -> None:
    batches = list(few_digits.batches("val", 30))
    assert [len(labels) for _, labels in batches] == [30, 30, 20]
    assert few_digits.count("val") == 80


def test_an_incomplete_last_batch_is_left_out_of_training(few_digits: DigitImages) -> None:
    batches = few_digits.train_batches(300, seed=0)
    assert len(batches) == 1
    assert [len(labels) for _, labels in batches] == [300]


def test_folder_parts_are_disjoint_stratified_and_seeded(folder_settings: FolderSettings) -> None:
    images = open_images(folder_settings, (3, 16, 16))
    assert {part: images.count(part) for part in ("train", "rank", "read", "val")} == {
        "train": 2 * (12 - 3 - 2),
        "rank": 2 * 3,
        "read": 2 * 2,
        "val": 2 * 4,
    }
    files = images._files  # type: ignore[attr-defined]
    names = [path for part in files.values() for path, _ in part]
    assert len(set(names)) == len(names)
    for part, per_class in (("rank", 3), ("read", 2), ("val", 4)):
        assert Counter(label for _, label in files[part]) == {0: per_class, 1: per_class}
    again = open_images(folder_settings, (3, 16, 16))
    assert again._files == files  # type: ignore[attr-defined]


def test_folder_batches_are_normalised_images(folder_settings: FolderSettings) -> None:
    images = open_images(folder_settings, (3, 16, 16))
    assert images.classes == ("blue", "red")
    (pixels, labels) = next(iter(images.batches("val", 8)))
    assert pixels.shape == (8, 3, 16, 16)
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    raw = pixels * torch.tensor(folder_settings.std)[:, None, None]
    raw = raw + torch.tensor(folder_settings.mean)[:, None, None]
    # 200 + the mean of 0..39, of 255.
    assert float(raw[0, 2].mean()) == pytest.approx(219.5 / 255, abs=0.02)
    assert float(raw[7, 0].mean()) == pytest.approx(219.5 / 255, abs=0.02)


def test_folder_training_batches_are_shuffled_by_seed(folder_settings: FolderSettings) -> None:
    images = open_images(folder_settings, (3, 16, 16))
    orders = [
        [labels.tolist() for _, labels in images.train_batches(7, seed)] for seed in (0, 0, 5)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_augmentation_depends_on_the_seed_alone(folder_settings: FolderSettings) -> None:
    """Not on the number of processes, nor on what was drawn before; and each epoch has its own."""
    epochs = []
    for workers in (0, 2):
        settings = replace(folder_settings, workers=workers)
        random.seed(workers)
        torch.manual_seed(workers)
        before = random.getstate()
        batches = open_images(settings, (3, 16, 16)).train_batches(7, seed=0)
        epochs.append([torch.cat([pixels for pixels, _ in batches]) for _ in range(2)])
        assert random.getstate() == before
    for epoch in range(2):
        assert torch.equal(epochs[0][epoch], epochs[1][epoch])
    assert not torch.equal(epochs[0][0], epochs[0][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": ""}, "data.root"),
        ({"root": "/nowhere"}, "without a folder 'train'"),
        ({"val": "train/blue"}, "Couldn't find any class folder"),
        ({"rank_per_class": 10, "read_per_class": 2}, "found 12 images, allowed: more than"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folder_settings: FolderSettings, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_images(replace(folder_settings, **change), (3, 16, 16))  # type: ignore[arg-type]


def test_grayscale_networks_do_not_take_folders(folder_settings: FolderSettings) -> None:
    with pytest.raises(DataError, match="found 1 channels"):
        open_images(folder_settings, (1, 16, 16))


def test_a_broken_image_is_named(folder_settings: FolderSettings, image_tree: object) -> None:
    images = open_images(folder_settings, (3, 16, 16))
    files = images._files["val"]  # type: ignore[attr-defined]
    files[0] = (__file__, 0)
    with pytest.raises(DataError, match=r"test_data\.py: cannot be read as an image"):
        next(iter(images.batches("val", 2)))


def test_classes_and_preparation(folder_settings: FolderSettings) -> None:
    assert count_classes(DigitsSettings()) == 10
    assert count_classes(folder_settings) == 2
    assert preparation(folder_settings)["crop_pct"] == folder_settings.crop_pct
    assert preparation(DigitsSettings())["crop_pct"] == 1.0
