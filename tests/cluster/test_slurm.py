import subprocess
from pathlib import Path
from typing import Any

import pytest

from octnas.cluster.slurm import SlurmSettings, batch_file, submit_file
from octnas.errors import SettingError

SETTINGS = SlurmSettings(
    partition="gpu,long", account="lab@x", gpus=2, mem="32G", time="1-02:03:04"
)
NASTY = ["it's", "a b", "$(touch harm)", "`touch harm`", '"; touch harm; "', "\n#SBATCH --x", "\\"]


def options(text: str) -> list[str]:
    """As sbatch reads them: up to the first line that is a command."""
    found = []
    for line in text.splitlines()[1:]:
        if line.startswith("#SBATCH "):
            found.append(line.removeprefix("#SBATCH "))
        elif line and not line.startswith("#"):
            break
    return found


def test_what_a_job_asks_for() -> None:
    found = options(batch_file("digits-supernet", ["octnas"], SETTINGS, folder="/", gpus=2))
    assert found == [
        "--requeue",
        "--job-name=digits-supernet",
        "--partition=gpu,long",
        "--account=lab@x",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=4",
        "--gpus-per-node=2",
        "--mem=32G",
        "--time=1-02:03:04",
        "--signal=B:USR1@120",
        "--output=%x-%j.out",
        "--open-mode=append",
        "--kill-on-invalid-dep=yes",
    ]
    plain = options(batch_file("a", ["octnas"], SlurmSettings(), folder="/"))
    assert not [one for one in plain if "partition" in one or "gpus" in one or "mem" in one]


def run_file(text: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    file = path / "job.sbatch"
    file.write_text(text)
    return subprocess.run(
        ["bash", str(file)], capture_output=True, text=True, check=False, env=environment
    )


def test_no_character_of_a_path_breaks_out(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s $(touch harm) "a" folder; % -x'
    folder.mkdir()
    command = ["/usr/bin/printf", "<%s>", *NASTY]
    text = batch_file("a", command, SETTINGS, folder=str(folder))
    assert len(options(text)) == len(options(batch_file("a", ["x"], SETTINGS, folder="/")))
    found = run_file(text, tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == "".join(f"<{word}>" for word in NASTY)
    assert not list(folder.iterdir())


def test_the_exit_code_is_the_commands(tmp_path: Path) -> None:
    text = batch_file("a", ["/bin/sh", "-c", "exit 3"], SETTINGS, folder="/")
    assert run_file(text, tmp_path).returncode == 3
    text = batch_file("a", ["/bin/echo"], SETTINGS, folder=str(tmp_path / "gone"))
    assert run_file(text, tmp_path).returncode == 2


@pytest.mark.parametrize(("given", "told"), [({}, "2"), ({"SLURM_GPUS_ON_NODE": "4"}, "4")])
def test_as_many_processes_as_gpus(tmp_path: Path, given: dict[str, str], told: str) -> None:
    text = batch_file("a", ["/bin/echo"], SETTINGS, folder="/", gpus=2, processes=True)
    assert run_file(text, tmp_path, **given).stdout == f"--processes {told}\n"


def test_a_signal_ends_the_command_and_puts_the_job_back(tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/bash\necho "scontrol $*"\n')
    scontrol.chmod(0o755)
    # The command signals the shell, as SLURM would, and is ended by it. A sleep that has not begun
    # yet may still have the handler of its parent: no other signal is sure to end it.
    program = "trap 'kill -KILL $!; echo ended; exit' TERM; sleep 60 & kill -USR1 $PPID; wait"
    command = ["/bin/sh", "-c", program]
    text = batch_file("a", command, SETTINGS, folder="/")
    found = run_file(text, tmp_path, SLURM_JOB_ID="17", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert found.returncode == 75
    said = [line for line in found.stdout.splitlines() if not line.startswith("time")]
    assert said == ["ended", "scontrol requeue 17"]


def test_each_stage_waits_for_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    (folder / "submit.sh").write_text(submit_file(("data", "search", "report")))
    sbatch = tmp_path / "sbatch"
    # Where there are several clusters, their name stands behind the number.
    sbatch.write_text('#!/bin/bash\necho "$PWD: $*" >> "$CALLS"\necho "$(wc -l < "$CALLS");main"\n')
    sbatch.chmod(0o755)
    calls = tmp_path / "calls"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(calls)}
    found = subprocess.run(
        ["bash", str(folder / "submit.sh"), "--qos=low"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert found.stdout.splitlines() == ["data: 1", "search: 2", "report: 3"]
    assert calls.read_text().splitlines() == [
        f"{folder}: --parsable --qos=low data.sbatch",
        f"{folder}: --parsable --dependency=afterok:1 --qos=low search.sbatch",
        f"{folder}: --parsable --dependency=afterok:2 --qos=low report.sbatch",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partition": "gpu --wrap=x"}, "partition: found"),
        ({"partition": "-x"}, "partition: found"),
        ({"account": "a\n#SBATCH --x"}, "account: found"),
        ({"gpus": -1}, "gpus: found -1, allowed: 0 or more"),
        ({"cpus": 0}, "cpus: found 0"),
        ({"mem": "32 GB"}, "mem: found"),
        ({"mem": "0"}, "mem: found"),
        ({"time": "24"}, "time: found '24', allowed: HH:MM:SS"),
        ({"time": "00:04:00"}, "more than 240 seconds"),
        ({"time": "24:60:00"}, "time: found"),
        ({"time": "24:00:00\n"}, "time: found"),
    ],
)
def test_values_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SlurmSettings(**change)


def test_a_name_that_is_refused() -> None:
    with pytest.raises(SettingError, match="name: found"):
        batch_file("a b", ["octnas"], SETTINGS, folder="/")
