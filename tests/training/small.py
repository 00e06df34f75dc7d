"""Data sets small enough for fast tests."""

from octnas.data.settings import DigitsSettings


def digits(
    train: int, search_val: int, read: int, val: int, *, seed: int = 0, padding: int = 1
) -> DigitsSettings:
    """Cluttered digits with so many images in each part."""
    return DigitsSettings(
        train_images=train,
        search_val_images=search_val,
        read_images=read,
        val_images=val,
        seed=seed,
        padding=padding,
    )
