"""`octnas compress`: from a trained network to report and exports in one command."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from octnas.errors import ConfigError, DataError
from octnas.nn.backbone import create_backbone
from octnas.pipeline.minimal import TrainedNetwork, minimal_experiment, read_trained
from tests.cli.conftest import Octnas
from tests.data.trees import make_tree
from tests.nn.reference import randomise

BACKBONE = "thumbnail_resnet"
ARGS = {"layers": [1, 1], "channels": [4, 8], "num_classes": 2}
SHORT = (
    "tracking.enabled=false",
    "search.trials=6",
    "search.spread=2",
    "search.calibration_batches=1",
    "search.images_per_batch=8",
    "data.workers=0",
    "retrain.seeds=[0]",
    "retrain.workers=1",
    "retrain.baselines=[uniform, vanilla]",
    "retrain.recipe.epochs=1",
    "retrain.recipe.warmup_epochs=0",
    "retrain.recipe.batch_size=4",
)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder that `timm.create_model("local-dir:…")` loads."""
    folder = tmp_path / "my net"
    folder.mkdir()
    torch.manual_seed(0)
    save_file(randomise(create_backbone(BACKBONE, ARGS)).state_dict(), folder / "model.safetensors")
    about = {
        "architecture": BACKBONE,
        "num_classes": 2,
        "model_args": {"layers": [1, 1], "channels": [4, 8]},
        "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.5, 0.5, 0.5], "crop_pct": 1.0},
    }
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def test_from_a_folder_to_report_and_exports(
    octnas: Octnas, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_tree(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    bounds = ("--memory", "0.9", "--peak", "0.95", "--budget", "0.85")
    given = ("compress", str(trained), "--data", str(images), *bounds)
    sets = [word for one in SHORT for word in ("--set", one)]
    result = octnas(*given, *sets)
    assert result.code == 0, result.err
    assert "written  runs/my-net/experiment.yaml" in result.out
    assert "  before fine-tuning: " in result.out
    assert "your network  " in result.out
    budget = "0.85 of vanilla and 0.9 of vanilla's activation and 0.95 of vanilla's peak memory"
    assert f"budget {budget}: " in result.out
    assert len((tmp_path / "runs/my-net/experiment.yaml").read_text().splitlines()) <= 20
    run = tmp_path / "runs" / "my-net"
    assert (run / "report" / "index.html").exists()
    cards = [path.read_text() for path in run.glob("export/searched-*/README.md")]
    assert cards
    assert all("fine-tuned from my-net" in card for card in cards)
    again = octnas(*given, *sets)
    assert again.out.count("skipped, finished") == 7
    other = octnas(*given[:-1], "0.9")
    assert other.code == 2
    assert "runs/my-net/experiment.yaml: exists with other settings; continue with" in other.err


def test_bounds_that_need_a_table_or_are_no_shares(
    octnas: Octnas, trained: Path, tmp_path: Path
) -> None:
    given = ("compress", str(trained), "--data", str(make_tree(tmp_path / "images")))
    result = octnas(*given, "--latency", "0.7")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--latency: needs a table; measure one with `octnas latency`" in result.err
    result = octnas(*given, "--memory", "-1", "--run-dir", str(tmp_path / "run"))
    assert result.code == 2
    assert "activation_share: found -1" in result.err


def test_without_a_budget_another_bound_is_enough(trained: Path, tmp_path: Path) -> None:
    found = minimal_experiment(
        make_tree(tmp_path / "images"),
        read_trained(str(trained), ""),
        [{"latency_share": 0.7}],
        Path("a table.json"),
    )
    assert '  budgets: [{"latency_share": 0.7}]' in found.text
    assert f'latency: {{table: "{Path.cwd() / "a table.json"}"}}' in found.text


def test_a_folder_of_other_files_is_left_alone(
    octnas: Octnas, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    images = str(make_tree(tmp_path / "images"))
    result = octnas("compress", str(trained), "--data", images, "--run-dir", str(tmp_path / "mine"))
    assert result.code == 2
    assert "mine: not a run directory, and not empty" in result.err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_home_is_expanded(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(trained.parent))
    assert read_trained("~/my net").weights == str(trained / "model.safetensors")
    file = read_trained("~/my net/model.safetensors", BACKBONE)
    assert file.weights == str(trained / "model.safetensors")


def named(folder: Path, *classes: str) -> TrainedNetwork:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "label_names": classes}))
    return read_trained(str(folder))


def test_classes_of_another_order_are_noted(trained: Path, tmp_path: Path) -> None:
    images = make_tree(tmp_path / "images")
    assert "classes:" not in minimal_experiment(images, read_trained(str(trained))).text
    assert "classes:" not in minimal_experiment(images, named(trained, "blue", "red")).text
    found = minimal_experiment(images, named(trained, "red", "blue"))
    assert '  classes: ["red", "blue"]' in found.text
    with pytest.raises(DataError, match=r"found a class 'blue', allowed: the 2 classes"):
        minimal_experiment(images, named(trained, "red", "green"))


def test_how_images_are_prepared_is_that_of_the_network(trained: Path) -> None:
    found = read_trained(str(trained))
    assert (found.backbone, found.args) == (BACKBONE, {"layers": [1, 1], "channels": [4, 8]})
    assert found.config["mean"] == [0.5, 0.5, 0.5]
    assert read_trained("timm", "resnet50").config["input_size"] == (3, 224, 224)


def test_networks_for_large_images_have_channels_that_hardware_likes(
    trained: Path, tmp_path: Path
) -> None:
    images = make_tree(tmp_path / "images")
    large = minimal_experiment(images, read_trained("timm", "resnet50")).text
    assert "\n  channel_multiple: 8 " in large
    assert "channel_multiple" not in minimal_experiment(images, read_trained(str(trained))).text


def test_an_octave_network_is_refused(trained: Path) -> None:
    (trained / "config.json").write_text(json.dumps({"architecture": "octnas_network"}))
    with pytest.raises(ConfigError, match="is an octave network already"):
        read_trained(str(trained))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothing.pth",), "weights: found 'nothing.pth', allowed: a file, a folder that timm"),
        (("w.pth",), "model: found '', allowed: the name of a timm ResNet, such as --model"),
        (("w.pth", "--model", "resnet5"), "backbone: found 'resnet5', allowed: a model that timm"),
        ((".",), "config.json: no such file"),
        (("w.pth", "--model", "resnet18"), "--data: found 'nowhere', allowed: a folder with train"),
    ],
)
def test_mistakes_are_one_line(
    octnas: Octnas,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pth").touch()
    result = octnas("compress", *words, "--data", "nowhere")
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
