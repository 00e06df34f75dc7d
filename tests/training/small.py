"""Data sets small enough for fast tests."""

from octnas.data.settings import DigitsSettings


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
