import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from octnas.documents import parse_json, read_as
from tests.mutations import DEEP


@dataclass(frozen=True)
class Inner:
    name: str
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    count: int
    kind: Literal["a", "b"]
    size: tuple[int, int]
    inner: tuple[Inner, ...]
    by_name: Mapping[str, float]
    rows: Sequence[Mapping[str, float]]
    maybe: str | None = None
    anything: dict[str, Any] = field(default_factory=dict)


GOOD: dict[str, Any] = {
    "count": 3,
    "kind": "a",
    "size": [2, 3],
    "inner": [{"name": "x"}, {"name": "y", "share": 1}],
    "by_name": {"z": float("inf")},
    "rows": [{"epoch": 1}],
    "maybe": None,
    "anything": {"k": [1, None]},
}


def test_a_document_becomes_what_its_type_says() -> None:
    found = read_as(Outer, json.loads(json.dumps(GOOD)))
    assert found == Outer(
        3,
        "a",
        (2, 3),
        (Inner("x"), Inner("y", 1)),
        {"z": float("inf")},
        [{"epoch": 1}],
        anything={"k": [1, None]},
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": True}, "Outer.count: found True, allowed: a whole number"),
        ({"count": 1.0}, "Outer.count: found 1.0"),
        ({"count": 10**400}, "Outer.count: a number of 1329 bits, allowed: 63"),
        ({"kind": "c"}, "Outer.kind: found 'c', allowed: one of 'a', 'b'"),
        ({"size": [1]}, "Outer.size: found list, allowed: 2 values"),
        ({"size": "ab"}, "Outer.size: found 'ab', allowed: a list"),
        ({"inner": [{"name": "x"}, {"share": 1}]}, "Outer.inner[1]: name: missing"),
        ({"inner": [{"name": "x", "more": 1}]}, "Outer.inner[0]: unknown more"),
        ({"inner": [None]}, "Outer.inner[0]: found NoneType, allowed: an object"),
        ({"by_name": {"z": "1"}}, "Outer.by_name.z: found '1', allowed: a number"),
        ({"by_name": {"z": -(10**400)}}, "Outer.by_name.z: a number of 1329 bits"),
        ({"by_name": [1]}, "Outer.by_name: found list, allowed: an object"),
        ({"rows": [{"epoch": None}]}, "Outer.rows[0].epoch: found NoneType"),
        ({"maybe": 1}, "Outer.maybe: found 1, allowed: text"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        read_as(Outer, {**GOOD, **change})
    assert str(caught.value).startswith(message)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(TypeError, match="Outer: count: missing"):
        read_as(Outer, {key: value for key, value in GOOD.items() if key != "count"})


def test_a_key_that_is_there_twice_is_refused() -> None:
    """Python would take the last one, others the first."""
    with pytest.raises(ValueError, match="key 'a' is there twice"):
        parse_json('[{"b": {"a": 1, "c": 2, "a": 1}}]')
    assert parse_json('{"a": {"a": 1}, "b": {"a": 2}}') == {"a": {"a": 1}, "b": {"a": 2}}


@pytest.mark.parametrize(
    ("document", "shown"),
    [
        (r'{"a": ["x\ud800"]}', r"'x\\ud800'"),
        (r'[{"\udfffx": 1}]', r"'\\udfffx'"),
        (r'"\u0000"', r"'\\x00'"),
        (b'["\xed\xa0\x80"]', r"'\\ud800'"),
    ],
)
def test_text_that_cannot_be_written_again_is_refused(document: str | bytes, shown: str) -> None:
    """Half a pair of surrogates is no UTF-8, and no name of a file may hold NUL."""
    with pytest.raises(ValueError, match=f"found a character that no text may hold, in {shown}"):
        parse_json(document)


def test_text_of_any_script_is_read() -> None:
    assert parse_json(r'{"\ud83d\ude00": ["ü", "\u0001\uffff"]}') == {"😀": ["ü", "\x01\uffff"]}


def test_deep_nesting_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
