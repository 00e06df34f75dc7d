"""The images that an experiment uses, as a plain list with a digest."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from octnas.data.sources import Problem
from octnas.errors import RunDirectoryError
from octnas.io.files import read_as, write_json, write_text
from octnas.runtime.directory import read_document, reading

SCHEMA = 1
LIST_FILE = "images.tsv"
ABOUT_FILE = "images.json"

PARTS = ("train", "search_val", "read", "val")
# The name that search_val had first; digests keep it, so that they compare across versions.
_FORMERLY = {"search_val": "rank"}
# What is in the list but in no part: what cannot be used, and copies of val images.
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
    """All images that were looked at, and what each is for.

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
        """Where the images of a part stand in the list."""
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
    keys = ("class_names", "problems", "key", "resolution", "side", "list")
    about = read_document(folder / ABOUT_FILE, SCHEMA, *keys)
    path = folder / LIST_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error})") from None
    if _hash(content) != about["list"]:
        raise RunDirectoryError(
            f"{path}: is not the list that {ABOUT_FILE} is about; make it anew with --fresh data"
        )
    with reading(path):
        resolution, side = read_as(int, about["resolution"]), read_as(int, about["side"])
        if side < 1 or resolution not in (0, *range(side, 2 * side + 1)):
            raise ValueError(f"a cache of {resolution} pixels for images of {side}")
        return ImageList(
            tuple(map(_unquoted, read_as(tuple[str, ...], about["class_names"]))),
            tuple(_entry(line.split("\t")) for line in content.decode().splitlines()[1:]),
            tuple(
                replace(one, name=_unquoted(one.name))
                for one in read_as(tuple[Problem, ...], about["problems"])
            ),
            read_as(str, about["key"]),
            resolution,
            side,
        )


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()[:16]


@dataclass(frozen=True)
class _Summary:
    digest: str
    classes: int
    counts: Mapping[str, int]
    problems: tuple[Problem, ...]


def read_summary(folder: Path) -> Mapping[str, Any]:
    """Counts, classes and digest, without the list itself; of digits too."""
    path = folder / ABOUT_FILE
    keys = [entry.name for entry in fields(_Summary)]
    document = read_document(path, SCHEMA, *keys)
    with reading(path):
        read_as(_Summary, {key: document[key] for key in keys})
    counts = {_renamed(part): count for part, count in document["counts"].items()}
    return {**document, "counts": counts}


def _renamed(part: str) -> str:
    return "search_val" if part == "rank" else part


def _entry(fields: Sequence[str]) -> Entry:
    part, label, digest, name = fields
    return Entry(_renamed(part), int(label), digest, _unquoted(name))


# Names of files may hold tabs, line breaks, and bytes that are no UTF-8.
def _quoted(name: str) -> str:
    if name.isprintable() and "\\" not in name:
        return name
    return "\\" + name.encode("unicode_escape").decode()


def _unquoted(text: str) -> str:
    return text[1:].encode().decode("unicode_escape") if text.startswith("\\") else text
