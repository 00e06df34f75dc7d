"""Which commit of the user's own repository a run belongs to."""

import os
import subprocess
from pathlib import Path

_SECONDS = 10
# A repository may come with somebody's run: what its configuration names is not run, and nothing is
# fetched.
_NOTHING_ELSE = (
    "--no-optional-locks",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.hooksPath=/dev/null",
)
_ENVIRONMENT = {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none", "LC_ALL": "C"}
_OWN = ("local", "worktree")
"""Scopes of what a repository brings with it."""


def commit_tags(folder: Path) -> dict[str, str]:
    """MLflow's tags for the Git commit of a folder; empty where there is no repository.

    Whether tracked files differ from the commit is not said where the repository has filters of its
    own, which Git would run over them.

    Args:
        folder: in the working tree.
    """
    try:
        commit = _git(folder, "rev-parse", "--verify", "HEAD").stdout.strip()
        tags = {"mlflow.source.git.commit": commit}
        filters = _git(folder, "config", "--show-scope", "--get-regexp", "^filter[.]", codes=(0, 1))
        if any(line.startswith(_OWN) for line in filters.stdout.splitlines()):
            return tags
        options = ("--quiet", "--no-ext-diff", "--no-textconv", "--ignore-submodules=all")
        differs = _git(folder, "diff", *options, "HEAD", codes=(0, 1)).returncode == 1
    except (OSError, subprocess.SubprocessError):
        return {}  # no Git, no repository, no commit, or a repository too large to look through
    return {**tags, "mlflow.source.git.dirty": str(differs).lower()}


def _git(
    folder: Path, *arguments: str, codes: tuple[int, ...] = (0,)
) -> subprocess.CompletedProcess[str]:
    """Run Git.

    Raises:
        SubprocessError: it ends with another code, or takes too long.
        OSError: there is none.
    """
    done = subprocess.run(  # noqa: S603
        ["git", *_NOTHING_ELSE, *arguments],  # noqa: S607
        cwd=folder,
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode not in codes:
        raise subprocess.CalledProcessError(done.returncode, "git")
    return done
