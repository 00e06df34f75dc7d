"""Tests."""

import subprocess
from pathlib import Path

import pytest

from octnas.pipeline.records import commit_tags


def git(folder: Path, *arguments: str) -> str:
    own = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    done = subprocess.run(
        ["git", *own, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_commit_of_a_repository(tmp_path: Path) -> None:
    assert commit_tags(tmp_path) == {}
    git(tmp_path, "init", "-q")
    assert commit_tags(tmp_path) == {}
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "one")
    git(tmp_path, "tag", "v1")
    commit = git(tmp_path, "rev-parse", "HEAD")
    expected = {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": "false"}
    assert commit_tags(tmp_path) == expected
    (tmp_path / "file").write_text("b")
    assert commit_tags(tmp_path) == {**expected, "mlflow.source.git.dirty": "true"}


@pytest.mark.parametrize("which", ["fsmonitor", "hook", "filter", "diff"])
def test_nothing_is_run_that_a_repository_names(tmp_path: Path, which: str) -> None:
    """It may be a stranger's, with their run in it."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("1")
    (tmp_path / ".gitattributes").write_text("file filter=x diff=x\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    marker = tmp_path.with_name(f"{tmp_path.name}-run")
    script = f"touch {marker}; cat"
    if which == "hook":
        hook = tmp_path / ".git" / "hooks" / "post-index-change"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\n{script}\n")
        hook.chmod(0o755)
    elif which == "fsmonitor":
        git(tmp_path, "config", "core.fsmonitor", f"{script}; false")
    else:
        git(tmp_path, "config", f"{which}.x.{'clean' if which == 'filter' else 'command'}", script)
    # The same size: the contents have to be looked at.
    (tmp_path / "file").write_text("2")
    tags = commit_tags(tmp_path)
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags.get("mlflow.source.git.dirty") == (None if which == "filter" else "true")
    assert not marker.exists()
    # What would run it, so that the test can fail; the hook alone waits for a change.
    subprocess.run(["git", "diff"], cwd=tmp_path, check=False, capture_output=True)
    git(tmp_path, "add", ".")
    assert marker.exists()
