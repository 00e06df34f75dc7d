"""What may have become of a file: cut off, bytes changed, values of other types, keys gone."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DEEP = "[" * 100_000 + "]" * 100_000
_STRANGE = (
    None, True, "", "../../x", "\x00", "x\ud800", "NaN", [], [1], {}, {"x": 1}, -1, 0, 1.5,
    float("nan"), float("inf"), 10**400, -(2**62),
)  # fmt: skip


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value of a JSON document."""
    yield path
    inside = document.items() if isinstance(document, dict) else ()
    inside = enumerate(document) if isinstance(document, list) else inside
    for key, value in inside:
        yield from places(value, (*path, key))


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file that is cut off, has other bytes, or holds something else."""
    kind = draw(st.sampled_from(["cut", "flip", "other"]))
    if kind == "cut":
        return content[: draw(st.integers(0, max(0, len(content) - 1)))]
    if kind == "flip" and content:
        changed = bytearray(content)
        for _ in range(draw(st.integers(1, 4))):
            changed[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
        return bytes(changed)
    others = [b"", b"null", b"[]", b"{}", b"\xff\xfe\x00", DEEP.encode(), b'{"schema": 99}']
    return draw(st.sampled_from(others))


@st.composite
def mutated_json(draw: st.DrawFn, content: bytes) -> bytes:
    """A JSON document, or lines of them, in which one value is another, is gone, or is new."""
    lines = content.decode().splitlines()
    try:
        parts = [json.loads(line) for line in lines]
    except ValueError:
        parts, lines = [json.loads(content)], []
    index = draw(st.integers(0, len(parts) - 1))
    parts[index] = _changed(draw, copy.deepcopy(parts[index]))
    return ("\n".join(json.dumps(part) for part in parts) + "\n").encode()


def _changed(draw: st.DrawFn, document: Any) -> Any:
    *above, last = ("", *draw(st.sampled_from(list(places(document)))))
    holder: Any = {"": document}
    top = holder
    for key in above:
        holder = holder[key]
    what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if what == "remove" and above:
        del holder[last]
    elif what == "add" and isinstance(holder[last], dict):
        holder[last]["unheard of"] = draw(st.sampled_from(_STRANGE))
    else:
        holder[last] = draw(st.sampled_from(_STRANGE))
    return top[""]
