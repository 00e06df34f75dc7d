"""The file that keeps times as they come: what is gone on with, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octnas.measure.standalone import Kept, MeasureFileError
from tests.mutations import mutated_bytes, mutated_json

CONDITIONS = {"device": "desk", "threads": 1}
TIMES = {"seconds": 0.002, "ratio": 0.5, "even": 0.4, "odd": 0.6}
HEAD = json.dumps({"schema": 1, "conditions": CONDITIONS}) + "\n"
LINE = json.dumps({"key": "a", **TIMES}) + "\n"


def refused(path: Path, content: bytes) -> str:
    """What is said of a file with such contents, which is left as it is up to its last line."""
    path.write_bytes(content)
    with pytest.raises(MeasureFileError) as caught:
        Kept(path, CONDITIONS)
    assert path.read_bytes() == content[: content.rfind(b"\n") + 1]
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_times_are_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "times.jsonl"
    Kept(path, CONDITIONS).add("a", TIMES)
    assert path.read_text() == HEAD + LINE
    again = Kept(path, CONDITIONS)
    assert again.entries == {"a": TIMES}
    assert again.seconds(["a"], "odd") == {"a": 0.6 * 0.002}


@pytest.mark.parametrize("cut", range(len(HEAD)))
def test_a_file_without_a_whole_first_line_is_a_new_one(tmp_path: Path, cut: int) -> None:
    """As a kill or a full disk at the first write leaves it."""
    path = tmp_path / "times.jsonl"
    path.write_text(HEAD[:cut])
    assert Kept(path, CONDITIONS).entries == {}
    assert path.read_text() == HEAD


@pytest.mark.parametrize("cut", range(len(LINE)))
def test_a_last_line_that_is_cut_off_is_measured_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "times.jsonl"
    path.write_text(HEAD + LINE + LINE.replace('"a"', '"é"')[:cut])
    kept = Kept(path, CONDITIONS)
    assert kept.entries.keys() == {"a"}
    assert path.read_text() == HEAD + LINE


@pytest.mark.parametrize("head", ["nonsense", "[]", "{}", "7", '{"schema": 1, "conditions": 3}'])
def test_a_head_that_is_none(tmp_path: Path, head: str) -> None:
    for content in (head.encode(), b"\xff\xfe"):
        message = refused(tmp_path / "times.jsonl", content + b"\n" + LINE.encode())
        assert message.endswith("not a file of times of schema 1; remove it")


def test_times_of_something_else(tmp_path: Path) -> None:
    head = json.dumps({"schema": 1, "conditions": {**CONDITIONS, "threads": 2}})
    message = refused(tmp_path / "times.jsonl", head.encode() + b"\n")
    assert "was measured with threads 2, now 1; remove it" in message


@pytest.mark.parametrize("key", ["key", *TIMES])
@pytest.mark.parametrize(
    "value",
    [None, True, "0.5", [0.5], float("nan"), float("inf"), 0, -0.5, 10**400, 1e300, 1e-300],
)
def test_a_line_with_something_else_than_times(tmp_path: Path, key: str, value: Any) -> None:
    if key == "key" and isinstance(value, str):
        value = 3
    line = json.dumps({"key": "b", **TIMES, key: value}) + "\n"
    message = refused(tmp_path / "times.jsonl", (HEAD + LINE + line + LINE).encode())
    assert "line 3 is invalid" in message


@pytest.mark.parametrize("line", [b"\xff\xfe", b"", b"null", b"[" * 100_000, b'{"key": "b"}'])
def test_a_line_that_is_none(tmp_path: Path, line: bytes) -> None:
    content = HEAD.encode() + line + b"\n" + LINE.encode()
    assert "line 2 is invalid" in refused(tmp_path / "times.jsonl", content)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        mutated_bytes((HEAD + LINE * 2).encode()),
        mutated_json((HEAD + LINE * 2).encode()),
    )
)
def test_whatever_it_holds_is_refused_or_leaves_times(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "times.jsonl"
    path.write_bytes(content)
    message = ""
    try:
        times = Kept(path, CONDITIONS).entries.values()
    except MeasureFileError as error:
        message, times = str(error), {}.values()
    assert "\n" not in message
    assert all(0 < one["seconds"] * one["even"] < 1e13 for one in times)
