"""Tests."""

from typing import Any

import pytest

from octnas.errors import ConfigError
from octnas.io.yaml import parse_override, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("5.0e-4", 5e-4),
        (".5", 0.5),
        ("-2.", -2.0),
        ("12", 12),
        ("010", 10),
        ("off", "off"),
        ("no", "no"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("'1'", "1"),
        ("e3", "e3"),
        ("1_000", "1_000"),
        ("[1, 2e1]", [1, 20.0]),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: Any) -> None:
    found = parse_yaml(f"key: {text}", "f.yaml").values["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: a: duplicate key, first in line 1"),
        ("s:\n  k: 1\n  k: 2\n", "f.yaml:3: s.k: duplicate key"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2: not valid YAML"),
        ("a: 1\n\tb: 2\n", "f.yaml:2: not valid YAML"),
        ("- 1\n", "f.yaml:1: found no settings"),
        ("a: !!python/object/apply:os.system [true]\n", "f.yaml:1: not valid YAML"),
        ("a: !!binary aGVsbG8=\n", "f.yaml:1: not valid YAML"),
        ("a: !!set {b}\n", "f.yaml:1: not valid YAML"),
        ("a: !!int abc\n", "f.yaml: not valid YAML"),
        ("a: " + "9" * 5000 + "\n", "f.yaml: not valid YAML"),
        ("a: " + "[" * 3000 + "]" * 3000 + "\n", "f.yaml: not valid YAML"),
        ('a: "x\\ud800"\n', "f.yaml:1: a: found a character that is not valid"),
        ('s:\n  "x\\ud800": 1\n', "f.yaml:2: found a key that is not text"),
        ("? [1]\n: 2\n", "f.yaml:1: found a key that is not text"),
        ("a: &x\n  b: *x\n", "f.yaml:1: a.b: an alias refers to a value that contains it"),
    ],
)
def test_mistakes_are_one_line_with_file_and_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_places() -> None:
    document = parse_yaml("a:\n  b: 1\n  c:\n    - 5\n    - 6\n", "f.yaml")
    assert document.place(("a", "b")) == "f.yaml:2: a.b"
    assert document.place(("a", "c", 1)) == "f.yaml:5: a.c.1"
    assert document.place(("a", "missing")) == "f.yaml:1: a.missing"
    assert document.place(()) == "f.yaml:1"


def test_overrides_replace_and_add() -> None:
    document = parse_yaml("a:\n  b: 1\n  c: [{d: 2}]\n", "f.yaml")
    for override in ("a.b=1e-2", "a.c.0.d=x", "new.deep=[1, 2]", "a.e="):
        parse_override(override, document)
    assert document.values == {
        "a": {"b": 0.01, "c": [{"d": "x"}], "e": None},
        "new": {"deep": [1, 2]},
    }
    assert document.place(("a", "b")) == "--set: a.b"
    assert document.place(("a", "c", 0)) == "f.yaml:3: a.c.0"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "allowed: section.key=value"),
        ("=1", "allowed: section.key=value"),
        ("a..b=1", "allowed: section.key=value"),
        ("a.b.c=1", "'c' is not a key of a section"),
        ("a.b.c.d=1", "'c' is not a section"),
        ("a.l.7=1", "7 is not a key of a section"),
        ("a.b=[1", "not valid YAML"),
        ("a.b=!!timestamp x", "not valid YAML"),
        ("a.l.²=1", "'²' is not a key of a section"),
    ],
)
def test_overrides_that_cannot_be(override: str, message: str) -> None:
    document = parse_yaml("a:\n  b: 1\n  l: [1]\n", "f.yaml")
    with pytest.raises(ConfigError) as caught:
        parse_override(override, document)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
