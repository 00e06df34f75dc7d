"""A run directory after a kill or a full disk: a truncated file is reported in one line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from octnas.errors import OctnasError
from octnas.nn.supernet import build
from octnas.nn.weights import load_weights
from octnas.pipeline.ranking import trainings
from octnas.pipeline.records import read_results
from octnas.pipeline.report import gather
from octnas.pipeline.retrain import finished as trained
from octnas.pipeline.run import look_at_run
from octnas.pipeline.supernet import trained_supernet
from octnas.training.standalone import WEIGHTS_FILE, training_folder


@pytest.fixture(scope="module")
def run(finished: Path, ranked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished run; every test repairs what it truncates."""
    place = tmp_path_factory.mktemp("truncated") / "tiny"
    shutil.copytree(finished / "runs" / "tiny", place)
    for stage in ("truth", "rank"):
        shutil.copytree(ranked / "runs" / "tiny" / stage, place / stage)
    config = yaml.safe_load((place / "config.yaml").read_text())
    config["ranking"]["seeds"] = [0, 1]
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    return place


def report(path: Path) -> None:
    gather(look_at_run(path))


def ground_truth(path: Path) -> None:
    for training in trainings(look_at_run(path)):
        trained(training)


def supernet(path: Path) -> None:
    trained_supernet(look_at_run(path)).load()


def weights(path: Path) -> None:
    (one, *_) = read_results(look_at_run(path))
    architecture = one.network.architecture
    folder = training_folder(path / "retrain", architecture.id, one.runs[0].seed)
    load_weights(build(architecture, seed=0), folder / WEIGHTS_FILE)


READERS: dict[str, Callable[[Path], None]] = {
    "config.yaml": report,
    "run.json": report,
    "data/images.json": report,
    "space/space.json": report,
    "space/stage.json": report,
    "supernet/history.json": report,
    "search/candidates.json": report,
    "search/chosen.json": report,
    "retrain/results.json": report,
    "retrain/*/seed-*/judged.safetensors": report,
    "rank/ranking.json": report,
    "truth/design.json": ground_truth,
    "truth/*/seed-*/result.json": ground_truth,
    "supernet/weights.safetensors": supernet,
    "retrain/*/seed-*/weights.safetensors": weights,
}


# Half of config.yaml may be an experiment, too; it is replaced as a whole.
@pytest.mark.parametrize(
    ("pattern", "share"),
    [(one, share) for one in READERS for share in (0, 0.5) if (one, share) != ("config.yaml", 0.5)],
)
def test_a_truncated_file_is_one_line(run: Path, pattern: str, share: float) -> None:
    kept = {path: path.read_bytes() for path in run.glob(pattern)}
    READERS[pattern](run)
    try:
        for path, content in kept.items():
            path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(OctnasError) as caught:
            READERS[pattern](run)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 or pattern == "config.yaml"
    assert any(str(path) in message for path in kept)
