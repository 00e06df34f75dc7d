"""Data sets and search spaces small enough for fast tests."""

from octnas.data.settings import DigitsSettings
from octnas.nn.search_space import search_space
from octnas.space.search_space import SearchSpace


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


def with_timm_strides(space: SearchSpace) -> SearchSpace:
    """The same space for trained weights: every site searchable, timm's strides at α = 0."""
    return search_space(
        space.backbone,
        space.input_size,
        space.alphas,
        backbone_args=space.backbone_args,
        fixed={},
        stride_mode="timm",
    )
