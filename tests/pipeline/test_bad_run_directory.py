"""A run directory that was cut off, changed or written by somebody: one clear line, nothing run."""

import pickle
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import octnas.runtime.lock as lease
from octnas.errors import OctnasError
from octnas.io.files import write_json
from octnas.measure.settings import LatencySettings
from octnas.pipeline.latency import measure_chosen
from octnas.pipeline.network_latency import time_retrained
from octnas.pipeline.records import read_chosen
from octnas.pipeline.run import look_at_run
from octnas.runtime.lock import held
from tests.data.trees import make_tree, prepared
from tests.mutations import mutated_bytes, mutated_json
from tests.pipeline.readers import NOT_READ, READERS, Read, images_of
from tests.space.test_latency import table_of


@pytest.fixture(scope="module")
def run(finished: Path, ranked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run that may be spoilt, and is mended after each time."""
    place = tmp_path_factory.mktemp("spoilt") / "runs" / "tiny"
    shutil.copytree(finished / "runs" / "tiny", place)
    for stage in ("truth", "rank"):
        shutil.copytree(ranked / "runs" / "tiny" / stage, place / stage)
    config = yaml.safe_load((place / "config.yaml").read_text())
    config["latency"]["table"] = str(place / "table.json")
    config["ranking"]["seeds"] = [0, 1]
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    looked_at = look_at_run(place)
    write_json(place / "space" / "latency.json", table_of(looked_at.space).to_dict())
    measure_chosen(looked_at, read_chosen(looked_at))
    time_retrained(looked_at, LatencySettings(name="desk", repeats=4))
    with held(place):
        pass
    make_tree(place / "tree")
    prepared(images_of(place), place / "prepared")
    return place


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner whom nobody knows is not waited for for long."""
    for name, value in (("LEASE", 0.02), ("_LOOK", 0.01)):
        monkeypatch.setattr(lease, name, value)


def test_every_file_of_a_run_is_listed(run: Path) -> None:
    """A new one goes into `READERS`, or is one that nothing reads."""
    listed = {path for pattern in (*READERS, *NOT_READ) for path in run.glob(pattern)}
    assert {path for path in run.rglob("*") if path.is_file()} <= listed


def read_spoilt(path: Path, content: bytes, read: Read, run: Path) -> str:
    """What a reader says of a file with other contents; empty where nothing is wrong with it."""
    whole = path.read_bytes()
    marker = run / "retrain" / "stage.json"
    kept = marker.read_bytes()
    path.write_bytes(content)
    try:
        read(run)
    except OctnasError as error:
        return str(error)
    finally:
        path.write_bytes(whole)
        marker.write_bytes(kept)
    return ""


def test_unspoilt_files_are_read(run: Path) -> None:
    for pattern, read in READERS.items():
        path = next(iter(sorted(run.glob(pattern))))
        assert read_spoilt(path, path.read_bytes(), read, run) == "", pattern


# Torch warns of a network without channels, which is refused right after.
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("examples", [4, pytest.param(60, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pattern", READERS)
def test_a_spoilt_file_is_one_clear_line(run: Path, pattern: str, examples: int) -> None:
    """Whatever the file holds, the reader says what is wrong with it, or finds nothing wrong."""
    path, read = next(iter(sorted(run.glob(pattern)))), READERS[pattern]
    whole = path.read_bytes()
    strategies = [mutated_bytes(whole)]
    if path.suffix in (".json", ".jsonl", ".journal"):
        strategies = [mutated_json(whole), mutated_json(whole), *strategies]
    refused = []

    # Without shrinking, which takes minutes where an example takes a second.
    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(strategies))
    def check(content: bytes) -> None:
        message = read_spoilt(path, content, read, run)
        # An experiment file may have several mistakes, a line for each.
        assert len(message.splitlines()) <= (99 if path.suffix == ".yaml" else 1), message
        refused.append(bool(message))

    check()
    assert len(refused) >= min(examples, 4)


class Bomb:
    """Runs something when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (partial(Path.touch, self.mark), ())


def test_the_bomb_goes_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("pattern", READERS)
def test_a_pickle_in_the_place_of_a_file_is_refused_and_not_run(
    run: Path, pattern: str, tmp_path: Path
) -> None:
    path, mark = next(iter(sorted(run.glob(pattern)))), tmp_path / "mark"
    message = read_spoilt(path, pickle.dumps(Bomb(mark)) + b"\n", READERS[pattern], run)
    assert not mark.exists()
    # What is behind the last line break of files that are added to was cut off with its process.
    # An owner that cannot be read has been killed as it began.
    assert message or pattern == "owner/*.json"
    assert len(message.splitlines()) == bool(message)
