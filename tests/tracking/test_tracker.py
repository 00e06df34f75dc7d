import math
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from octnas.tracking.outbox import Outbox
from tests.tracking.conftest import MakeTracker
from tests.tracking.reading import all_runs, client, found, history, run_id


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


def test_long_values_and_invalid_names_are_adapted(make_tracker: MakeTracker, runs: Path) -> None:
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


def test_a_second_process_resumes_the_same_runs(make_tracker: MakeTracker, runs: Path) -> None:
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


def test_each_step_of_a_metric_is_sent_once(make_tracker: MakeTracker, runs: Path) -> None:
    for last in (2, 4):
        tracker = make_tracker()
        tracker.start("a", "A")
        for step in range(last):
            tracker.metrics("a", {"loss[val]": float(step), "lr": 0.5}, step)
            tracker.metrics("a", {"loss[val]": 9.0}, step)
    # A metric that is new at this step is added.
    tracker.metrics("a", {"loss[val]": 9.0, "top1": 0.25}, 3)
    assert history(runs, "a", "loss_val_") == [(step, float(step)) for step in range(4)]
    assert history(runs, "a", "lr") == [(step, 0.5) for step in range(4)]
    assert history(runs, "a", "top1") == [(3, 0.25)]
    # A run that is started over has no steps.
    tracker.start("a", "A", again=True)
    tracker.metrics("a", {"lr": 0.5}, 0)
    assert history(runs, "a", "lr") == [(0, 0.5)]


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


def test_again_resumes_a_run_that_was_just_started_over_and_is_empty(
    make_tracker: MakeTracker, runs: Path
) -> None:
    """As after a process that was killed just then."""

    def begin(x: int, *, again: bool = True, loss: float | None = None) -> int:
        tracker = make_tracker()
        tracker.start("a", "A", params={"x": x}, again=again)
        if loss is not None:
            tracker.metrics("a", {"loss": loss}, 0)
        tracker.close(failed=True)
        return len(all_runs(runs))

    assert begin(1, again=False) == 1
    assert begin(1) == 2
    assert begin(1) == 2
    assert begin(2) == 3
    assert begin(2, loss=1.0) == 3
    assert begin(2) == 4


def test_kept_files_of_sent_records_are_removed_later(
    make_tracker: MakeTracker, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their process was killed between sending and removing."""
    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "discard", lambda *_: None)
        tracker = make_tracker()
        tracker.start("a", "A")
        tracker.artifact("a", runs / "mlflow.db")
        tracker.close()
    kept = runs / "digits" / "mlflow" / "files"
    assert len(list(kept.iterdir())) == 1
    tracker = make_tracker()
    tracker.start("a", "A")
    tracker.close()
    assert not list(kept.iterdir())


@pytest.mark.parametrize("recorded", [False, True])
def test_leftovers_of_a_killed_process_are_sent_without_new_records(
    make_tracker: MakeTracker, runs: Path, recorded: bool
) -> None:
    """A process was killed before the end of its run was recorded, or sent."""
    killed = make_tracker()
    killed.start("a", "A")
    killed.start("b", "B", parent="a")
    assert killed._sender is not None
    killed._sender.close(9)
    outbox = Outbox(runs / "digits" / "mlflow")
    outbox.add("metrics", "a", rows=[[0, {"loss": 1.0}]], once=True)
    if recorded:
        outbox.add("finish", "a", failed=False)
    lines: list[str] = []
    make_tracker(say=lines.append).close()
    assert found(runs, "a").info.status == "FINISHED"
    assert history(runs, "a", "loss") == [(0, 1.0)]
    assert found(runs, "b").info.status == "RUNNING"
    assert not lines
    size = outbox.path.stat().st_size
    make_tracker().close()
    assert outbox.path.stat().st_size == size


def test_a_run_that_was_deleted_in_mlflow_is_created_again(
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


def test_a_batch_larger_than_one_request(make_tracker: MakeTracker, runs: Path) -> None:
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


def test_artifacts_are_stored_beside_the_database(make_tracker: MakeTracker, runs: Path) -> None:
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


def test_a_key_that_was_never_started_is_a_key_error(
    make_tracker: MakeTracker,
) -> None:
    with pytest.raises(KeyError, match="'b'"):
        make_tracker().metrics("b", {"x": 1.0}, 0)
    with pytest.raises(KeyError, match="'b'"):
        make_tracker().start("a", "A", parent="b")
