"""Breaking a run off, and going on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from octnas.runtime.lock import held
from tests.cli.conftest import Octnas
from tests.pipeline.tiny import EXPERIMENT, TINY, open_tiny

# A process that is started in the background ignores Ctrl-C, and so would its children.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from octnas.cli.main import main
main()
"""
LONG = {
    "supernet": "supernet.recipe.epochs=3000",
    "search": "search.trials=3000",
    "retrain": "retrain.recipe.epochs=3000",
}
# A file of each of Ray's workers, beside that of the driver.
WORKERS = f"stops/*/{'?' * 32}"
BEGUN = {
    "supernet": "supernet/stage.json",
    "together": "supernet/together/progress.jsonl",
    "search": "search/study.journal",
    "processes": "retrain/*/*",
    "retrain together": "retrain/*/*/together/progress.jsonl",
    "by Ray together": "supernet/together/progress.jsonl",
    "by Tune": WORKERS,
}
STAGES = {"by Tune": "retrain"}
CHANGES = {
    "together": ("supernet.processes=2",),
    "by Ray together": ("supernet.processes=2", "supernet.executor=ray"),
    "by Tune": ("retrain.workers=2", "retrain.executor=ray"),
    "processes": ("retrain.workers=2",),
    "retrain together": ("retrain.processes=2",),
}


MEASURE = ("octnas.pipeline.latency.make_table", ("latency", str(EXPERIMENT)))
NETWORKS = ("octnas.pipeline.run.look_at_run", ("latency", "networks", "run"))
PACK = ("octnas.measure.pack.write_pack", ("latency", "pack", str(EXPERIMENT), "pack"))
PLAN = ("octnas.pipeline.plan.plan_run", ("plan", str(EXPERIMENT)))
BENCH = ("octnas.measure.bench.bench", ("bench",))
IMAGES = ("octnas.cli.bench._bench_data", ("bench", "--data", str(EXPERIMENT)))
STEPS = ("octnas.cli.bench._bench_steps", ("bench", "--supernet", str(EXPERIMENT)))
WATCH = ("octnas.pipeline.report.write_if_ready", ("report", str(EXPERIMENT), "--watch"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (MEASURE, "the same command resumes from here"),
        (PACK, "the same command resumes from here"),
        (NETWORKS, "nothing is kept"),
        (PLAN, "nothing is kept"),
        (BENCH, "nothing is kept"),
        (IMAGES, "nothing is kept"),
        (STEPS, "nothing is kept"),
        (WATCH, "the page stays as last written"),
    ],
)
def test_what_takes_long_says_what_is_kept(
    octnas: Octnas,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, tuple[str, ...]],
    kept: str,
    number: signal.Signals,
) -> None:
    work, arguments = command
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, lambda *_, **__: signal.raise_signal(number))
    # As in a terminal, also where the tests run in the background.
    before = signal.signal(number, signal.default_int_handler)
    try:
        result = octnas(*arguments)
    finally:
        signal.signal(number, before)
    assert result.code == 128 + number
    assert result.err == f"octnas: {number.name}: stopped; {kept}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "number", "all_at_once"),
    [
        ("supernet", signal.SIGTERM, False),
        ("together", signal.SIGTERM, False),
        ("together", signal.SIGINT, True),
        ("search", signal.SIGTERM, False),
        ("processes", signal.SIGINT, True),
        ("processes", signal.SIGTERM, False),
        ("retrain together", signal.SIGTERM, False),
        ("retrain together", signal.SIGINT, True),
        ("by Ray together", signal.SIGTERM, False),
        ("by Tune", signal.SIGTERM, False),
        ("by Tune", signal.SIGINT, True),
    ],
)
def test_a_signal_says_how_to_go_on_leaves_a_checkpoint_and_no_process(
    finished: Path, tmp_path: Path, what: str, number: signal.Signals, all_at_once: bool
) -> None:
    """Between two checkpoints of every minute; a terminal signals all processes of a command."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    stage = STAGES.get(what) or BEGUN[what].split("/")[0]
    open_tiny(tmp_path, fresh=stage)
    changes = (*TINY, *CHANGES.get(what, ()), LONG[stage], "tracking.enabled=false")
    settings = [part for one in changes for part in ("--set", one)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, stage, str(EXPERIMENT), *settings],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until_at_work(process, tmp_path / "runs" / "tiny", BEGUN[what])
        if all_at_once:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    said = f"octnas: {number.name}: stopped; the same command, without --fresh, resumes from here"
    assert err.splitlines()[-1] == said
    assert "Traceback" not in err
    checkpoints = list((tmp_path / "runs" / "tiny" / stage).rglob("*.checkpoint"))
    assert len(checkpoints) >= (stage != "search")
    deadline = time.monotonic() + 20
    while session(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with held(tmp_path / "runs" / "tiny"):
        pass


def wait_until_at_work(process: subprocess.Popen[str], run: Path, begun: str) -> None:
    """A moment after what tells that a stage is at work."""
    deadline = time.monotonic() + 200
    while not list(run.glob(begun)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    # Processes of their own begin by importing torch.
    while begun.endswith(("*", "?")) and len(session(process.pid)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(3 if begun.startswith(("supernet", "search")) else 10)


def session(leader: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found
