import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from octnas.errors import TrackingError
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker
from tests.tracking.conftest import MakeTracker


def client(runs: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{runs}/mlflow.db")


def run_id(runs: Path, key: str, run: str = "digits") -> str:
    document = json.loads((runs / run / "tracking.json").read_text())
    return str(document["runs"][key])


def found(runs: Path, key: str, run: str = "digits") -> Any:
    return client(runs).get_run(run_id(runs, key, run))


def history(runs: Path, key: str, metric: str) -> list[tuple[int, float]]:
    points = client(runs).get_metric_history(run_id(runs, key), metric)
    return [(point.step, point.value) for point in points]


def all_runs(runs: Path) -> list[Any]:
    experiment = client(runs).get_experiment_by_name("digits")
    return list(client(runs).search_runs([experiment.experiment_id]))


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def test_disabled_does_nothing_and_imports_no_mlflow(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from octnas.tracking.settings import TrackingSettings
from octnas.tracking.tracker import Tracker
folder = Path({str(tmp_path)!r})
settings = TrackingSettings(enabled=False, uri="http://[malformed")
tracker = Tracker(settings, experiment="e", store=folder, ids_file=folder / "ids.json")
tracker.start("a", "A", params={{"x": 1}})
tracker.metrics("a", {{"loss": 1.0}}, 0)
tracker.batch("unknown", [(0, {{"loss": 1.0}})])
tracker.artifact("a", folder / "missing")
tracker.finish("a")
assert tracker.view_command() == ""
Tracker(TrackingSettings(), experiment="e", store=folder, ids_file=folder / "ids.json")
assert "mlflow" not in sys.modules
"""
    assert python(code) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_parameters_tags_and_a_nested_run(make_tracker: MakeTracker, runs: Path) -> None:
    tracker = make_tracker()
    params = {"seed": 3, "space": {"grid": [0, 0.5], "stem": {"alpha": None}}, "nothing": {}}
    tracker.start("experiment", "digits", params=params, tags={"commit": "abc"})
    tracker.start("retrain/vanilla", "vanilla", parent="experiment")
    run = found(runs, "experiment")
    assert run.data.params == {
        "seed": "3",
        "space.grid": "[0, 0.5]",
        "space.stem.alpha": "None",
        "nothing": "{}",
    }
    assert run.data.tags["commit"] == "abc"
    assert (run.info.run_name, run.info.status) == ("digits", "RUNNING")
    nested = found(runs, "retrain/vanilla")
    assert nested.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert nested.info.experiment_id == run.info.experiment_id


def test_what_is_too_long_or_badly_named_is_made_to_fit(
    make_tracker: MakeTracker, runs: Path
) -> None:
    tracker = make_tracker()
    params: dict[str, object] = {f"p{i}": "α" * 7000 for i in range(250)}
    params["k" * 300] = 1
    tracker.start("a", "n" * 400, params=params, tags={"t": "x" * 9000})
    tracker.metrics("a", {"top1@32[val]": 0.5}, 0)
    run = found(runs, "a")
    assert len(run.data.params) == 251
    assert run.data.params["p249"] == "α" * 5999 + "…"
    assert run.data.params["k" * 247 + "..."] == "1"
    assert run.data.tags["t"] == "x" * 7999 + "…"
    assert run.info.run_name == "n" * 249 + "…"
    assert run.data.metrics == {"top1_32_val_": 0.5}


def test_a_second_process_goes_on_with_the_same_runs(make_tracker: MakeTracker, runs: Path) -> None:
    first = make_tracker()
    first.start("experiment", "digits", params={"seed": 1, "workers": 2})
    first.metrics("experiment", {"loss": 2.0}, 0)
    first.finish("experiment")
    before = run_id(runs, "experiment")
    assert found(runs, "experiment").info.status == "FINISHED"

    second = make_tracker()
    params = {"seed": 1, "workers": 4, "new": 5}
    second.start("experiment", "renamed", params=params, tags={"host": "b"})
    second.metrics("experiment", {"loss": 1.0}, 1)
    run = found(runs, "experiment")
    assert run.info.run_id == before
    assert (run.info.run_name, run.info.status) == ("renamed", "RUNNING")
    assert run.data.params == {"seed": "1", "workers": "2", "new": "5"}
    assert run.data.tags["octnas.changed.workers"] == "4"
    assert "octnas.changed.seed" not in run.data.tags
    assert history(runs, "experiment", "loss") == [(0, 2.0), (1, 1.0)]
    assert len(all_runs(runs)) == 1


def test_a_run_that_was_not_started_in_this_process_can_be_added_to(
    make_tracker: MakeTracker, runs: Path
) -> None:
    make_tracker().start("experiment", "digits")
    make_tracker().metrics("experiment", {"loss": 2.0}, 0)
    assert history(runs, "experiment", "loss") == [(0, 2.0)]


def test_again_keeps_the_old_run_as_superseded(make_tracker: MakeTracker, runs: Path) -> None:
    tracker = make_tracker()
    tracker.start("a", "A", params={"x": 1}, again=True)  # nothing to supersede
    old = run_id(runs, "a")
    tracker.start("a", "A", params={"x": 2}, again=True)
    assert run_id(runs, "a") != old
    assert found(runs, "a").data.params == {"x": "2"}
    assert "octnas.superseded" not in found(runs, "a").data.tags
    superseded = client(runs).get_run(old)
    assert superseded.data.tags["octnas.superseded"] == "true"
    assert superseded.info.status == "KILLED"  # it had not finished
    assert superseded.data.params == {"x": "1"}


def test_a_run_that_was_deleted_in_mlflow_is_created_anew(
    make_tracker: MakeTracker, runs: Path
) -> None:
    make_tracker().start("a", "A")
    old = run_id(runs, "a")
    client(runs).delete_run(old)
    make_tracker().start("a", "A")
    assert run_id(runs, "a") != old
    (runs / "digits" / "tracking.json").write_text(
        (runs / "digits" / "tracking.json").read_text().replace(run_id(runs, "a"), "0" * 32)
    )
    make_tracker().start("a", "A")  # no such run at all
    assert run_id(runs, "a") != "0" * 32


def test_a_batch_may_be_larger_than_a_call(make_tracker: MakeTracker, runs: Path) -> None:
    tracker = make_tracker()
    tracker.start("search", "search")
    tracker.batch("search", [(step, {"loss": step / 2, "macs": step}) for step in range(1250)])
    tracker.batch("search", [])
    assert history(runs, "search", "loss") == [(step, step / 2) for step in range(1250)]
    assert len(history(runs, "search", "macs")) == 1250


def test_values_that_are_not_finite(make_tracker: MakeTracker, runs: Path) -> None:
    tracker = make_tracker()
    tracker.start("a", "A")
    tracker.batch("a", [(0, {"x": math.nan}), (1, {"x": math.inf}), (2, {"x": -math.inf})])
    (_, nan), (_, high), (_, low) = history(runs, "a", "x")
    assert math.isnan(nan)
    assert high == -low == pytest.approx(1.7976931348623157e308)


def test_artifacts_lie_beside_the_store(make_tracker: MakeTracker, runs: Path) -> None:
    tracker = make_tracker()
    tracker.start("a", "A")
    model = runs / "digits" / "model α"
    (model / "deep").mkdir(parents=True)
    (model / "deep" / "w.bin").write_bytes(b"\0")
    for text in ("old", "new"):
        (model / "config.json").write_text(text)
        tracker.artifact("a", model)
        tracker.artifact("a", model, "exports/best")
        tracker.artifact("a", model / "config.json", "exports")
        tracker.artifact("a", model / "config.json")
    folder = Path(urlsplit(found(runs, "a").info.artifact_uri).path)
    assert folder.is_relative_to(runs / "mlartifacts")
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    inside = ["config.json", "deep/w.bin"]
    assert files == {
        *(f"model α/{name}" for name in inside),
        *(f"exports/best/model α/{name}" for name in inside),
        "exports/config.json",
        "config.json",
    }
    assert (folder / "exports" / "config.json").read_text() == "new"
    with pytest.raises(FileNotFoundError):
        tracker.artifact("a", runs / "missing")


def test_how_runs_end(make_tracker: MakeTracker, runs: Path) -> None:
    tracker = make_tracker()
    for key, failed in {"good": False, "bad": True}.items():
        tracker.start(key, key)
        tracker.finish(key, failed=failed)
    assert found(runs, "good").info.status == "FINISHED"
    assert found(runs, "bad").info.status == "FAILED"
    assert found(runs, "good").info.end_time >= found(runs, "good").info.start_time


def test_a_key_that_was_never_started_is_a_mistake_in_the_program(
    make_tracker: MakeTracker,
) -> None:
    with pytest.raises(KeyError, match="'b'"):
        make_tracker().metrics("b", {"x": 1.0}, 0)
    with pytest.raises(KeyError, match="'b'"):
        make_tracker().start("a", "A", parent="b")


def test_run_directories_share_an_experiment(make_tracker: MakeTracker, runs: Path) -> None:
    make_tracker(run="one").start("experiment", "one")
    make_tracker(run="two").start("experiment", "two")
    make_tracker(run="three", experiment="mine").start("experiment", "three")
    assert {run.info.run_name for run in all_runs(runs)} == {"one", "two"}
    mine = client(runs).get_experiment_by_name("mine")
    assert found(runs, "experiment", "three").info.experiment_id == mine.experiment_id


def test_the_ids_hold_for_one_store_and_experiment(make_tracker: MakeTracker, runs: Path) -> None:
    make_tracker().start("a", "A")
    make_tracker().start("b", "B")
    old = run_id(runs, "a")
    document = json.loads((runs / "digits" / "tracking.json").read_text())
    assert document["schema"] == 1
    assert document["tracking_uri"] == f"sqlite:///{runs}/mlflow.db"
    assert set(document["runs"]) == {"a", "b"}
    make_tracker(experiment="another").start("a", "A")
    assert run_id(runs, "a") != old
    with pytest.raises(KeyError):
        make_tracker(experiment="another").metrics("b", {"x": 1.0}, 0)
    assert [file.name for file in (runs / "digits").iterdir()] == ["tracking.json"]


def test_the_environment_names_a_store(
    make_tracker: MakeTracker, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    database = (runs / "mlflow.db").rename(tmp_path / "elsewhere" / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    tracker = make_tracker()
    tracker.start("a", "A")
    assert not (runs / "mlflow.db").exists()
    assert str(database) in tracker.view_command()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://not-used.invalid")
    make_tracker(uri=f"sqlite:///{database}").metrics("a", {"x": 1.0}, 0)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"schema": 2, "runs": {}}', '{"schema": 1}', '{"schema": 1, "runs": 0}']
)
def test_an_unusable_ids_file(content: str, make_tracker: MakeTracker, runs: Path) -> None:
    (runs / "digits").mkdir()
    (runs / "digits" / "tracking.json").write_text(content)
    with pytest.raises(TrackingError, match=r"tracking\.json: .*remove it"):
        make_tracker().start("a", "A")
    assert (runs / "digits" / "tracking.json").read_text() == content


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
tracker = Tracker(TrackingSettings(), experiment="e", store=runs, ids_file=runs / "r" / "ids.json")
tracker.start("a", "A")
tracker.artifact("a", Path({__file__!r}))
tracker.finish("a")
import mlflow
assert mlflow.active_run() is None and "MLFLOW_TRACKING_URI" not in os.environ
assert mlflow.telemetry.get_telemetry_client() is None
"""
    assert python(code) == ""
    assert sorted(entry.name for entry in runs.iterdir()) == ["mlartifacts", "mlflow.db", "r"]
    [artifact] = (runs / "mlartifacts").rglob("*.py")
    assert artifact.read_text() == Path(__file__).read_text()


def test_no_credentials_in_anything_that_is_written(
    make_tracker: MakeTracker, runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = make_tracker()
    url = "postgresql://me:pa55word@host/db?password=pa55word"
    params = {"storage": url, "list": [url], "deep": {"uri": url}}
    tracker.start("a", url, params=params, tags={"url": url})
    make_tracker().start("a", "A", params={**params, "storage": url + "2"}, tags={"again": url})
    tracker.finish("a")
    assert "postgresql://me:***@host" in found(runs, "a").data.params["storage"]
    assert_nowhere("pa55word", runs)
    assert "pa55word" not in "".join(capfd.readouterr())


def assert_nowhere(secret: str, folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    assert [file for file in files if secret.encode() in file.read_bytes()] == []


def test_the_settings_do_not_show_the_uri() -> None:
    assert "pa55word" not in repr(TrackingSettings(uri="http://me:pa55word@host"))


def test_the_command_that_shows_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(folder: str = "runs", uri: str = "") -> str:
        settings = TrackingSettings(uri=uri)
        store = tmp_path / folder
        return Tracker(
            settings, experiment="e", store=store, ids_file=store / "ids.json"
        ).view_command()

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
tracker = Tracker(TrackingSettings(), experiment="e", store=runs, ids_file=runs / name / "ids.json")
tracker.start("a", name)
tracker.batch("a", [(step, {"x": step}) for step in range(500)])
tracker.finish("a")
"""
    arguments = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*arguments, f"r{index}"]) for index in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    experiment = client(tmp_path).get_experiment_by_name("e")
    runs = client(tmp_path).search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"r0", "r1", "r2", "r3"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [file.name for file in tmp_path.glob("*mlflow.db*")] == ["mlflow.db"]
