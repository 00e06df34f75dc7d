"""Tests."""

import json
import shutil
from pathlib import Path

import pytest

from octnas.errors import RunDirectoryError
from octnas.io.files import write_json, write_text
from octnas.runtime.directory import (
    MARKER,
    SCHEMA,
    RunDirectory,
    check_links,
    dependents,
    digest,
)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_a_stage_is_begun_finished_and_recognised(directory: RunDirectory) -> None:
    settings = {"supernet.epochs": 3, "supernet.recipe": (1, 2)}
    assert directory.finished("supernet") is None
    directory.begin("supernet", settings)
    assert directory.finished("supernet") is None
    directory.check("supernet", settings)
    directory.finish("supernet", settings)
    assert directory.finished("supernet") is not None
    directory.check("supernet", settings)


@pytest.mark.parametrize("finish", [True, False])
def test_changed_settings_are_refused_by_name(directory: RunDirectory, finish: bool) -> None:
    directory.begin("search", {"search.trials": 10, "search.gone": 1, "seed": 0})
    if finish:
        directory.finish("search", {"search.trials": 10, "search.gone": 1, "seed": 0})
    with pytest.raises(RunDirectoryError) as caught:
        directory.check("search", {"search.trials": 20, "search.new": "x", "seed": 0})
    message = str(caught.value)
    assert "search.trials: was 10, now 20" in message
    assert "search.gone: was 1, now None" in message
    assert "search.new: was None, now 'x'" in message
    assert "seed" not in message
    assert "--fresh search" in message


def test_forgetting_a_stage_forgets_what_depends_on_it(directory: RunDirectory) -> None:
    for stage in ("space", "supernet", "search", "retrain"):
        directory.finish(stage, {})
    assert directory.forget("search") == ["search", "retrain", "export", "report"]
    assert directory.finished("supernet") is not None
    assert directory.finished("search") is None
    assert not directory.stage("retrain").exists()


def test_a_spoilt_marker_does_not_keep_a_stage_from_being_forgotten(
    directory: RunDirectory,
) -> None:
    write_text(directory.stage("supernet") / MARKER, "{")
    write_text(directory.stage("search") / MARKER, "{")
    directory.forget("supernet")
    assert not directory.stage("supernet").exists()


def test_dependents_follow_the_order_of_a_run() -> None:
    assert dependents("retrain") == ["retrain", "export", "report"]
    assert dependents("report") == ["report"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": 99}', "null", "nonsense"])
def test_a_marker_of_another_kind_is_refused(directory: RunDirectory, text: str) -> None:
    write_text(directory.stage("space") / MARKER, text)
    with pytest.raises(RunDirectoryError, match=MARKER):
        directory.check("space", {})


def test_the_marker_is_what_the_format_says(directory: RunDirectory) -> None:
    directory.finish("space", {"a": 1})
    document = json.loads((directory.stage("space") / MARKER).read_text())
    assert document["schema"] == SCHEMA
    assert document["stage"] == "space"
    assert document["fingerprint"] == {"a": 1}


def test_digests_depend_on_content_alone() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_a_removal_that_is_broken_off_leaves_nothing_to_go_on_with(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(directory.stage("retrain") / "plan.json", {})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            directory.forget("retrain")
    assert not directory.stage("retrain").exists()
    directory.forget("retrain")
    assert not [path for path in directory.path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("there", [True, False])
def test_of_a_stage_that_is_a_link_the_link_alone_is_forgotten(
    directory: RunDirectory, tmp_path: Path, there: bool
) -> None:
    """Also of one that leads nowhere: nothing could be written there."""
    if there:
        write_text(tmp_path / "elsewhere" / "precious", "p")
    directory.finish("space", {})
    directory.stage("supernet").symlink_to(tmp_path / "elsewhere")
    directory.forget("supernet")
    assert [path.name for path in directory.path.iterdir()] == ["space"]
    assert not there or (tmp_path / "elsewhere" / "precious").read_text() == "p"
    directory.begin("supernet", {})
    assert directory.marker("supernet") is not None


def test_links_that_stay_within_a_run_directory_are_let_be(tmp_path: Path) -> None:
    run = tmp_path / "run"
    check_links(run)
    write_text(run / "search" / "file", "")
    write_text(tmp_path / "run-two" / "file", "")
    for name, target in {
        "relative": Path("../search/file"),
        "absolute": run / "search",
        "whole": run,
        "up-and-down": Path("../../run/search/file"),
        "nowhere": Path("a host 1234"),
        "circle": Path("circle"),
    }.items():
        (run / "search" / name).symlink_to(target)
    check_links(run)
    (tmp_path / "link").symlink_to(run)
    check_links(tmp_path / "link")
    (run / "beside").symlink_to(tmp_path / "run-two")
    for path in (run, tmp_path / "link"):
        with pytest.raises(RunDirectoryError, match=r"beside: a link that .*/run-two; remove"):
            check_links(path)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_link_that_leads_out_is_found_at_any_depth_and_by_way_of_others(
    tmp_path: Path, depth: int
) -> None:
    place = tmp_path.joinpath("run", *"abc"[:depth])
    place.mkdir(parents=True)
    (place / "first").symlink_to("second")
    (place / "second").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunDirectoryError, match=f"to {tmp_path / 'nowhere'};"):
        check_links(tmp_path / "run")
