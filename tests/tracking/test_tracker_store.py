import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from octnas.errors import TrackingError
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker
from tests.tracking.conftest import MakeTracker
from tests.tracking.reading import (
    all_runs,
    assert_nowhere,
    client,
    found,
    history,
    python,
    run_id,
    settled,
)


def test_disabled_does_nothing_and_imports_no_mlflow(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker
folder = Path({str(tmp_path)!r})
settings = TrackingSettings(enabled=False, uri="http://[malformed")
tracker = Tracker(settings, experiment="e", directory=folder / "run")
tracker.start("a", "A", params={{"x": 1}})
tracker.metrics("a", {{"loss": 1.0}}, 0)
tracker.batch("unknown", [(0, {{"loss": 1.0}})])
tracker.artifact("a", folder / "missing")
tracker.finish("a")
assert tracker.view_command() == ""
Tracker(TrackingSettings(), experiment="e", directory=folder / "run")
assert "mlflow" not in sys.modules
"""
    assert python(code) == ""
    assert list(tmp_path.iterdir()) == []


def test_run_directories_share_an_experiment(make_tracker: MakeTracker, runs: Path) -> None:
    make_tracker(run="one").start("experiment", "one")
    make_tracker(run="two").start("experiment", "two")
    make_tracker(run="three", experiment="mine").start("experiment", "three")
    assert {run.info.run_name for run in all_runs(runs)} == {"one", "two"}
    mine = client(runs).get_experiment_by_name("mine")
    assert found(runs, "experiment", "three").info.experiment_id == mine.experiment_id


def test_old_drafts_of_the_database_are_removed(make_tracker: MakeTracker, runs: Path) -> None:
    """Only after an hour: another process may still be writing new ones."""
    runs.mkdir(exist_ok=True)
    old, new = (runs / f".mlflow.db.draft-{name}" for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    make_tracker().start("a", "A")
    assert found(runs, "a")
    assert (old.exists(), new.exists()) == (False, True)
    assert sorted(path.name for path in runs.iterdir()) == [new.name, "digits", "mlflow.db"]


def test_run_ids_belong_to_one_store_and_experiment(make_tracker: MakeTracker, runs: Path) -> None:
    make_tracker().start("a", "A")
    make_tracker().start("b", "B")
    old = run_id(runs, "a")
    document = json.loads((runs / "digits" / "tracking.json").read_text())
    assert document["schema"] == 2
    assert document["tracking_uri"] == f"sqlite:///{runs}/mlflow.db"
    assert set(document["runs"]) == {"a", "b"}
    other = run_id(runs, "b")
    # Another experiment gets all records.
    make_tracker(experiment="another").metrics("b", {"x": 1.0}, 0)
    assert run_id(runs, "a") != old
    assert found(runs, "b").data.metrics == {"x": 1.0}
    assert run_id(runs, "b") != other
    assert {file.name for file in (runs / "digits").iterdir()} == {"mlflow", "tracking.json"}
    # The first one gets what it lacks once it is used again.
    make_tracker().metrics("b", {"x": 2.0}, 1)
    assert (run_id(runs, "a"), run_id(runs, "b")) == (old, other)
    assert history(runs, "b", "x") == [(0, 1.0), (1, 2.0)]


def test_run_ids_from_before_the_outbox_are_resumed(make_tracker: MakeTracker, runs: Path) -> None:
    make_tracker().start("a", "A")
    old = run_id(runs, "a")
    document = json.loads((runs / "digits" / "tracking.json").read_text())
    former = {"schema": 1, "runs": document["runs"]}
    former |= {key: document[key] for key in ("tracking_uri", "experiment_id")}
    shutil.rmtree(runs / "digits" / "mlflow")
    (runs / "digits" / "tracking.json").write_text(json.dumps(former))
    tracker = make_tracker()
    tracker.metrics("a", {"x": 1.0}, 0)
    tracker.start("a", "A")
    tracker.close()
    assert run_id(runs, "a") == old
    assert found(runs, "a").data.metrics == {"x": 1.0}
    assert len(all_runs(runs)) == 1


def test_the_environment_names_a_store(
    make_tracker: MakeTracker, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    database = (runs / "mlflow.db").rename(tmp_path / "elsewhere" / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    tracker = make_tracker()
    tracker.start("a", "A")
    settled(runs)
    assert not (runs / "mlflow.db").exists()
    assert str(database) in tracker.view_command()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://not-used.invalid")
    make_tracker(uri=f"sqlite:///{database}").metrics("a", {"x": 1.0}, 0)


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 3, "runs": {}}'])
def test_an_invalid_progress_file(content: str, make_tracker: MakeTracker, runs: Path) -> None:
    (runs / "digits").mkdir()
    (runs / "digits" / "tracking.json").write_text(content)
    with pytest.raises(TrackingError, match=r"tracking\.json: .*remove it"):
        make_tracker().start("a", "A")
    assert (runs / "digits" / "tracking.json").read_text() == content


@pytest.mark.slow
def test_creating_the_store_is_quiet_and_leaves_nothing_else(tmp_path: Path) -> None:
    runs = tmp_path / "ünder #1" / "my runs"
    code = f"""
import logging, os, sys, warnings
logging.basicConfig(level=logging.INFO)  # a program that wants to see much
warnings.filterwarnings("ignore", "The ``noload`` loader strategy is deprecated")
from pathlib import Path
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker
runs = Path({str(runs)!r})
tracker = Tracker(TrackingSettings(), experiment="e", directory=runs / "r")
tracker.start("a", "A")
tracker.artifact("a", Path({__file__!r}))
tracker.close()
import mlflow
assert mlflow.active_run() is None and "MLFLOW_TRACKING_URI" not in os.environ
assert mlflow.telemetry.get_telemetry_client() is None
"""
    assert python(code) == ""
    assert sorted(entry.name for entry in runs.iterdir()) == ["mlartifacts", "mlflow.db", "r"]
    [artifact] = (runs / "mlartifacts").rglob("*.py")
    assert artifact.read_text() == Path(__file__).read_text()


def test_no_credentials_are_written(
    make_tracker: MakeTracker, runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = make_tracker()
    url = "postgresql://me:pa55word@host/db?password=pa55word"
    params = {"storage": url, "list": [url], "deep": {"uri": url}}
    tracker.start("a", url, params=params, tags={"url": url})
    other = make_tracker()
    other.start("a", "A", params={**params, "storage": url + "2"}, tags={"again": url})
    tracker.close()
    other.close()
    assert "postgresql://me:***@host" in found(runs, "a").data.params["storage"]
    assert_nowhere("pa55word", runs)
    assert "pa55word" not in "".join(capfd.readouterr())


def test_the_settings_do_not_show_the_uri() -> None:
    assert "pa55word" not in repr(TrackingSettings(uri="http://me:pa55word@host"))


def test_the_view_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(folder: str = "runs", uri: str = "") -> str:
        settings = TrackingSettings(uri=uri)
        directory = tmp_path / folder / "one"
        return Tracker(settings, experiment="e", directory=directory).view_command()

    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    quiet = "MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"
    options = "--port 5000 --workers 1"
    database = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert command() == f"{quiet} mlflow ui --backend-store-uri {database} {options}"
    assert f"'sqlite:///{tmp_path}/my runs/mlflow.db'" in command("my runs")
    uri = "postgresql://me:secret@host/db"
    assert "--backend-store-uri 'postgresql://me:***@host/db'" in command(uri=uri)
    assert command(uri="https://me:secret@host:5000/x") == "https://me:***@host:5000/x"
    assert command(uri="databricks") == "databricks"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f" {Path(sys.executable).with_name('mlflow')} ui " in command()


@pytest.mark.slow
def test_processes_may_create_the_store_at_the_same_time(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker
runs, name = Path(sys.argv[1]), sys.argv[2]
tracker = Tracker(TrackingSettings(), experiment="e", directory=runs / name)
tracker.start("a", name)
tracker.batch("a", [(step, {"x": step}) for step in range(500)])
tracker.close()
"""
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*arguments, f"r{index}"]) for index in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    experiment = client(tmp_path).get_experiment_by_name("e")
    runs = client(tmp_path).search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"r0", "r1", "r2", "r3"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [file.name for file in tmp_path.glob("*mlflow.db*")] == ["mlflow.db"]
