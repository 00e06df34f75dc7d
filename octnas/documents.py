"""JSON from files that anybody may have written, into values of the types that they should have.

A value of the wrong type would else be an error somewhere else, long after it was read.
"""

import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Value = TypeVar("Value")

# Beyond, nothing is counted here; floats and arrays could not hold it.
_LARGEST = 2**63
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def parse_json(text: str | bytes) -> Any:
    """A JSON document.

    Raises:
        ValueError: it is none, has a key twice, is nested too deeply, or holds text that cannot
            be written again.
    """
    try:
        document = json.loads(text, object_pairs_hook=_with_distinct_keys)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if (found := next(_unwritable(document), None)) is not None:
        raise ValueError(f"found a character that no text may hold, in {found[:40]!r}")
    return document


def writable(text: str) -> bool:
    """Whether UTF-8 and the names of files can hold it."""
    return _UNWRITABLE.search(text) is None


def _unwritable(document: Any) -> Iterator[str]:
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += (*value, *value.values())
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and not writable(value):
            yield value


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key in found if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"key {twice!r} is there twice")
    return found


def read_as(kind: type[Value], document: Any) -> Value:
    """A dataclass of a JSON object, its fields of the types that they are declared with.

    Whole numbers are within ±2⁶³, floats may be infinite or NaN. JSON's lists become tuples where
    the field is one. A dataclass within with a ``from_dict`` of its own is read by that.

    Args:
        kind: the dataclass, of numbers, text, `Literal`, optional values, tuples, sequences,
            mappings and other such dataclasses; or one of these.
        document: what `dataclasses.asdict` and a round trip through JSON give.

    Raises:
        TypeError: something is of another type, missing or unknown; names where.
        ValueError: a number that is too large, or what the dataclass itself refuses.
    """
    where = getattr(kind, "__name__", "document")
    found: Value = (
        _dataclass(kind, document, where) if is_dataclass(kind) else _value(kind, document, where)
    )
    return found


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if kind in (bool, int, float, str, type(None)):
        return _plain(kind, value, where)
    if origin is Literal:
        return _check(value in inner, value, where, "one of " + ", ".join(map(repr, inner)))
    if origin in (Union, types.UnionType):
        return _union(inner, value, where)
    if is_dataclass(kind):
        own = getattr(kind, "from_dict", None)
        return own(value) if own else _dataclass(kind, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _check(isinstance(value, Mapping), value, where, "an object")
        return {key: _value(inner[1], one, f"{where}.{key}") for key, one in value.items()}
    assert isinstance(origin, type), kind
    assert issubclass(origin, Sequence), kind
    return _sequence(origin, inner, value, where)


def _plain(kind: type, value: Any, where: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        return _small(value, where)
    if kind is int:
        _check(number and isinstance(value, int), value, where, "a whole number")
        return _small(value, where)
    name = {bool: "true or false", str: "text", float: "a number"}.get(kind, "null")
    return _check(isinstance(value, kind), value, where, name)


def _small(value: float, where: str) -> float:
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError(f"{where}: a number of {value.bit_length()} bits, allowed: 63")
    return value


def _union(kinds: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not type(None))
    return _value(kind, value, where)


def _sequence(origin: type, inner: tuple[Any, ...], value: Any, where: str) -> Any:
    _check(isinstance(value, list | tuple), value, where, "a list")
    if origin is tuple and inner[-1] is not Ellipsis:
        _check(len(value) == len(inner), value, where, f"{len(inner)} values")
    else:
        inner = (inner[0],) * len(value)
    pairs = enumerate(zip(inner, value, strict=True))
    found = [_value(kind, one, f"{where}[{index}]") for index, (kind, one) in pairs]
    return tuple(found) if origin is tuple else found


def _dataclass(kind: Any, document: Any, where: str) -> Any:
    _check(isinstance(document, Mapping), document, where, "an object")
    hints = _hints(kind)
    if unknown := document.keys() - hints.keys():
        raise TypeError(f"{where}: unknown {', '.join(sorted(unknown))[:80]}")
    needed = (
        entry.name
        for entry in fields(kind)
        if entry.default is MISSING and entry.default_factory is MISSING
    )
    if missing := [name for name in needed if name not in document]:
        raise TypeError(f"{where}: {', '.join(missing)}: missing")
    return kind(
        **{key: _value(hints[key], value, f"{where}.{key}") for key, value in document.items()}
    )


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {entry.name: hints[entry.name] for entry in fields(kind)}


def _check(fine: bool, value: Any, where: str, allowed: str) -> Any:
    if not fine:
        found = repr(value) if isinstance(value, str | float | int) else type(value).__name__
        raise TypeError(f"{where}: found {found[:40]}, allowed: {allowed}")
    return value
