"""The images that an experiment uses, as a plain list with a digest."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from octnas.data.sources import Problem
from octnas.errors import RunDirectoryError
from octnas.io.files import read_json, write_json, write_text

SCHEMA = 1
LIST_FILE = "images.tsv"
ABOUT_FILE = "images.json"

PARTS = ("train", "search_val", "read", "val")
# The name that search_val had first; digests keep it, so that they compare across versions.
_FORMERLY = {"search_val": "rank"}
# Listed but in no part: unusable images, and copies of val images.
SKIPPED, COPY = "skipped", "copy"


@dataclass(frozen=True, slots=True)
class Entry:
    """An image.

    Attributes:
        part: of `PARTS`, or ``skipped`` or ``copy``.
        label: number of its class; −1 if that is left out.
        digest: of its pixels; empty if skipped.
        name: as its source's reader knows it.
    """

    part: str
    label: int
    digest: str
    name: str


@dataclass(frozen=True)
class ImageList:
    """All images that were decoded, and the part of each.

    Attributes:
        classes: their names, by label.
        entries: in the order of the cache.
        problems: what was skipped, with the reasons.
        key: names the cache; it depends on the names, sizes and times of the files.
        resolution: side of the cache's squares in pixels; 0 without a cache.
        side: of the images that the cache was made for, in pixels.
    """

    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]
    key: str
    resolution: int
    side: int

    @property
    def digest(self) -> str:
        """Of all images in the four parts: classes, labels and pixels, not names."""
        state = sha256("\n".join(self.classes).encode(errors="surrogateescape"))
        used = (e for e in self.entries if e.part in PARTS)
        parts = {part: _FORMERLY.get(part, part) for part in PARTS}
        for line in sorted(f"{parts[e.part]} {e.label} {e.digest}" for e in used):
            state.update(f"\n{line}".encode())
        return state.hexdigest()[:16]

    def positions(self, part: str) -> list[int]:
        """Positions of a part's images in the list."""
        return [index for index, entry in enumerate(self.entries) if entry.part == part]

    def summary(self) -> dict[str, Any]:
        """Counts and digest, for reports."""
        counts = dict.fromkeys((*PARTS, SKIPPED, COPY), 0)
        for entry in self.entries:
            counts[entry.part] += 1
        return {
            "digest": self.digest,
            "classes": len(self.classes),
            "counts": counts,
            "problems": [asdict(problem) for problem in self.problems],
        }


def write_images(images: ImageList, folder: Path) -> None:
    """Write the list and what is known of it."""
    lines = ["part\tlabel\tdigest\tname"]
    lines += [f"{e.part}\t{e.label}\t{e.digest}\t{_quoted(e.name)}" for e in images.entries]
    content = "\n".join(lines) + "\n"
    write_text(folder / LIST_FILE, content)
    names = {
        "class_names": [_quoted(name) for name in images.classes],
        "problems": [{**asdict(one), "name": _quoted(one.name)} for one in images.problems],
        "key": images.key,
        "resolution": images.resolution,
        "side": images.side,
    }
    # The order of the lines matters too: it is that of the cache.
    about = {"schema": SCHEMA, **images.summary(), **names, "list": _hash(content.encode())}
    write_json(folder / ABOUT_FILE, about)


def read_images(folder: Path) -> ImageList:
    """Read what `write_images` wrote.

    Raises:
        RunDirectoryError: the files are missing, or the list was changed.
    """
    about = read_summary(folder)
    path = folder / LIST_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error})") from None
    if _hash(content) != about.list:
        raise RunDirectoryError(f"{path}: does not match {ABOUT_FILE}; redo it with --fresh data")
    return ImageList(
        tuple(map(_unquoted, about.class_names)),
        tuple(_entry(line.split("\t")) for line in content.decode().splitlines()[1:]),
        tuple(replace(one, name=_unquoted(one.name)) for one in about.problems),
        about.key,
        about.resolution,
        about.side,
    )


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()[:16]


@dataclass(frozen=True)
class Summary:
    """``images.json``: what is known of an image list.

    Attributes:
        digest: see `ImageList.digest`.
        classes: how many there are.
        counts: of images, by part.
        problems: what was skipped, with the reasons.
        class_names: by label; empty where classes have no names.
        key, resolution, side: see `ImageList`.
        list: hash of ``images.tsv``; empty where there is none, as for digits.
    """

    digest: str
    classes: int
    counts: Mapping[str, int]
    problems: tuple[Problem, ...]
    class_names: tuple[str, ...] = ()
    key: str = ""
    resolution: int = 0
    side: int = 0
    list: str = ""


def read_summary(folder: Path) -> Summary:
    """Read ``images.json``, which the data stage writes for every data source."""
    found = read_json(folder / ABOUT_FILE, Summary, schema=SCHEMA)
    return replace(found, counts={_renamed(part): count for part, count in found.counts.items()})


def _renamed(part: str) -> str:
    return "search_val" if part == "rank" else part


def _entry(fields: Sequence[str]) -> Entry:
    part, label, digest, name = fields
    return Entry(_renamed(part), int(label), digest, _unquoted(name))


# Names of files may hold tabs, line breaks and bytes that are not UTF-8.
def _quoted(name: str) -> str:
    if name.isprintable() and "\\" not in name:
        return name
    return "\\" + name.encode("unicode_escape").decode()


def _unquoted(text: str) -> str:
    return text[1:].encode().decode("unicode_escape") if text.startswith("\\") else text
