"""Batch files for SLURM: one job for each stage, which resumes where it was interrupted.

Two minutes before its time limit SLURM signals the shell of a job, which ends octnas and puts the
job back into the queue; only the work since octnas's last checkpoint is lost.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from octnas.errors import require

# Seconds in which octnas ends and the job is put back.
NOTICE = 120
# SLURM ends processes of octnas that are left. Not the exit code of success, else dependent jobs
# might begin.
_PUT_BACK = 75

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,@+-]*")
_MEMORY = re.compile(r"[1-9][0-9]*[KMGT]?")
_TIME = re.compile(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)")


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """What a job asks for.

    Attributes:
        partition: of the cluster; empty for its default.
        account: that is charged; empty for the user's default.
        gpus: for the supernet, whose processes have one each; search and retraining have one of
            them, the other stages none. 0 for a CPU cluster.
        cpus: cores of a job.
        mem: main memory, such as ``32G``; empty for the cluster's default.
        time: the longest that a job runs before it is put back, ``HH:MM:SS`` or ``D-HH:MM:SS``.
    """

    partition: str = ""
    account: str = ""
    gpus: int = 0
    cpus: int = 4
    mem: str = ""
    time: str = "24:00:00"

    def __post_init__(self) -> None:
        words = "letters, digits and _ . , @ + -"
        for key in ("partition", "account"):
            found = getattr(self, key)
            require(not found or bool(_WORD.fullmatch(found)), key, found, words)
        require(self.gpus >= 0, "gpus", self.gpus, "0 or more")
        require(self.cpus >= 1, "cpus", self.cpus, "1 or more")
        memory = not self.mem or bool(_MEMORY.fullmatch(self.mem))
        require(memory, "mem", self.mem, "a number with K, M, G or T, such as 32G")
        allowed = f"HH:MM:SS or D-HH:MM:SS, more than {2 * NOTICE} seconds"
        require(_seconds(self.time) > 2 * NOTICE, "time", self.time, allowed)


def batch_file(
    name: str,
    command: Sequence[str],
    settings: SlurmSettings,
    *,
    folder: str,
    gpus: int = 0,
    processes: bool = False,
) -> str:
    """The batch file of one job.

    Args:
        name: of the job; letters, digits and ``_ . -``.
        command: program and arguments, of any characters.
        settings: what the job asks for.
        folder: in which the command runs.
        gpus: of this job.
        processes: whether to pass the number of GPUs to the command, as ``--processes``.

    Raises:
        SettingError: a name of other characters.
    """
    require(bool(_WORD.fullmatch(name)), "name", name, "letters, digits and _ . -")
    lines = ["#!/bin/bash", *(f"#SBATCH --{option}" for option in _options(name, settings, gpus))]
    words = " ".join(map(shlex.quote, command))
    pass_on = f'command+=(--processes "${{SLURM_GPUS_ON_NODE:-{gpus}}}")\n' if processes else ""
    return "\n".join(lines) + _BODY.format(
        folder=shlex.quote(folder), words=words, pass_on=pass_on, put_back=_PUT_BACK
    )


def submit_file(stages: Sequence[str]) -> str:
    """A script that submits ``STAGE.sbatch`` beside it; each waits for the success of the last."""
    lines = [
        "#!/bin/bash",
        "# Options given to this script are options of every job.",
        "set -euo pipefail",
        'cd -- "$(dirname -- "${BASH_SOURCE[0]}")"',
    ]
    dependency = ""
    for stage in stages:
        lines.append(f'job=$(sbatch --parsable {dependency}"$@" {stage}.sbatch)')
        lines.append(f'echo "{stage}: ${{job%%;*}}"')
        dependency = '--dependency="afterok:${job%%;*}" '
    return "\n".join(lines) + "\n"


def _seconds(time: str) -> int:
    """Parse SLURM's notation of a time; 0 for anything else."""
    found = _TIME.fullmatch(time)
    if not found:
        return 0
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _options(name: str, settings: SlurmSettings, gpus: int) -> list[str]:
    options = {
        "job-name": name,
        "partition": settings.partition,
        "account": settings.account,
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(settings.cpus),
        "gpus-per-node": str(gpus) if gpus else "",
        "mem": settings.mem,
        "time": settings.time,
        # To the shell only, which has a handler for it.
        "signal": f"B:USR1@{NOTICE}",
        # Relative to the folder that jobs are submitted from: a path might hold a % or a space.
        "output": "%x-%j.out",
        "open-mode": "append",
        # Jobs that depend on a failed one would wait forever.
        "kill-on-invalid-dep": "yes",
    }
    return ["requeue", *(f"{key}={value}" for key, value in options.items() if value)]


_BODY = """

cd -- {folder} || exit 2
command=({words})
{pass_on}
# Bash attends to a signal while it waits, not while a program runs in the foreground.
put_back() {{
    trap '' USR1
    # Not a variable of our own, which might not be set yet.
    if [ -n "$!" ]; then
        kill -TERM "$!" 2>/dev/null
        wait "$!"
    fi
    echo "time limit reached: requeueing job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
    exit {put_back}
}}
trap put_back USR1
"${{command[@]}}" &
wait "$!"
"""
