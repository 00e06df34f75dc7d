"""Data sets and trainings small enough for fast tests."""

from octnas.data.settings import DigitsSettings
from octnas.training.settings import Recipe, SupernetSettings

SHORT_SUPERNET = SupernetSettings(threads=1, recipe=Recipe(epochs=3, batch_size=32))


def digits(
    train: int, rank: int, read: int, val: int, *, seed: int = 0, padding: int = 1
) -> DigitsSettings:
    """Cluttered digits with so many images in each part."""
    return DigitsSettings(
        train_images=train,
        rank_images=rank,
        read_images=read,
        val_images=val,
        seed=seed,
        padding=padding,
    )
