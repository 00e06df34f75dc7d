"""A run directory that was cut off, changed or written by somebody: one clear line, nothing run."""

import pickle
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import octnas
from octnas.data.image_list import read_images
from octnas.errors import OctnasError
from octnas.export.record import check_room, read_variants
from octnas.pipeline.export import source
from octnas.pipeline.looking import look_at_run
from octnas.pipeline.opening import Run
from octnas.pipeline.records import read_results
from octnas.pipeline.report import gather
from octnas.pipeline.search import _driver
from octnas.pipeline.so_far import results_so_far
from octnas.pipeline.supernet import trained_supernet
from octnas.report.page import write_page
from octnas.search.storage import opened
from octnas.tracking.outbox import Outbox
from octnas.tracking.progress import unsent
from tests.mutations import mutated_bytes, mutated_json


def look(path: Path) -> None:
    """What `octnas report`, `compare` and `plan` read."""
    write_page(gather(look_at_run(path)), path / "report" / "index.html", 0)


def _resume(run: Run) -> None:
    with opened("", run.directory.stage("search") / "study.journal") as storage:
        _driver(run, storage, lambda _: None).ask()


def resume(path: Path) -> None:
    """What a search reads that goes on."""
    _resume(look_at_run(path))


def retraining(path: Path) -> None:
    """What retraining reads that goes on, and the report of it."""
    (path / "retrain" / "stage.json").unlink(missing_ok=True)
    results_so_far(look_at_run(path))


def tracking(path: Path) -> None:
    """What `octnas sync` reads before it sends anything."""
    outbox = Outbox(path / "mlflow")
    unsent(outbox, path / "tracking.json", "sqlite:///x.db")
    outbox.open()
    for entry in outbox.entries():
        outbox.file(entry) if "path" in entry.values else None


def supernet(path: Path) -> None:
    """What the search begins with."""
    trained_supernet(look_at_run(path)).load()


def exported(path: Path) -> None:
    """What whoever is given a network reads."""
    octnas.load(path / "export" / "vanilla")


def exported_before(path: Path) -> None:
    """What `octnas export` reads that adds formats."""
    run = look_at_run(path)
    result = next(one for one in read_results(run) if one.network.slug == "vanilla")
    made, folder = source(run, result, run.config.export), path / "export" / "vanilla"
    check_room(made, folder)
    read_variants(made, folder)


def images(path: Path) -> None:
    """The list of images; of digits there is a summary alone."""
    assert (path / "data" / "images.json").exists()
    look_at_run(path).data.images  # noqa: B018
    if (path / "data" / "images.tsv").exists():
        read_images(path / "data")


Read = Callable[[Path], None]
READERS: Mapping[str, Read] = {
    "config.yaml": look,
    "run.json": look,
    "looks.jsonl": look,
    "data/images.json": look,
    "space/space.json": look,
    "space/stage.json": look,
    "supernet/history.json": look,
    "search/candidates.json": look,
    "search/chosen.json": look,
    "search/seconds.json": look,
    "retrain/results.json": look,
    "retrain/*/seed-0/judged.safetensors": look,
    "search/study.json": resume,
    "search/study.journal": resume,
    "search/outcomes.jsonl": resume,
    "retrain/plan.json": retraining,
    "retrain/*/seed-0/result.json": retraining,
    "tracking.json": tracking,
    "mlflow/outbox.jsonl": tracking,
    "supernet/weights.safetensors": supernet,
    "export/vanilla/architecture.json": exported,
    "export/vanilla/model.safetensors": exported,
    "export/vanilla/export.json": exported_before,
}


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run that may be spoilt, and is mended after each time."""
    place = tmp_path_factory.mktemp("spoilt") / "runs" / "tiny"
    shutil.copytree(finished / "runs" / "tiny", place)
    return place


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
    assert message
    assert len(message.splitlines()) == 1
