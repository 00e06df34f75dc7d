"""Which commit of the user's own repository a run belongs to."""

import subprocess
from pathlib import Path

_SECONDS = 10


def commit_tags(folder: Path) -> dict[str, str]:
    """MLflow's tags for the Git commit of a folder; empty where there is no repository.

    Args:
        folder: in the working tree.
    """
    # All 40 digits, never a tag's name; "-dirty" where tracked files differ from the commit.
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}  # no Git, no repository, no commit, or a repository too large to look through
    commit, dirty, _ = done.stdout.strip().partition("-dirty")
    return {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(dirty)).lower()}
