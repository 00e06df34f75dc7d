"""The images of a source by name, and what is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Problem:
    """Something that cannot be used.

    Attributes:
        name: of the image or folder, below the data's root.
        reason: in words.
    """

    name: str
    reason: str

    def concerns(self, folder: str) -> bool:
        """Whether it is about a folder or something in it."""
        return folder in self.name.split("/")


@dataclass(frozen=True)
class Listing:
    """All images of a source.

    Attributes:
        classes: their names, by label.
        names: of the images, by split; each is unique.
        labels: of the images, by split.
        problems: folders that cannot be used; their images are left out.
    """

    classes: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, tuple[int, ...]]
    problems: tuple[Problem, ...] = ()
