"""Plans of whole runs: counts are checked, not times."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from octnas.errors import DataError, RunDirectoryError, SettingError
from octnas.pipeline import pace
from octnas.pipeline import plan as planning
from octnas.pipeline.estimate import Plan
from octnas.pipeline.pace import EvaluationPace, TrainingPace
from octnas.pipeline.plan import plan_run
from octnas.pipeline.stages import run_stages
from octnas.space.architecture import Architecture
from octnas.training.settings import Recipe, RetrainSettings
from tests.pipeline.tiny import EXPERIMENT, TINY, open_tiny

STEP, WEIGHTS, CHECKPOINT = 2.0, 1000, 3000
TRAINING = TrainingPace(STEP, 50, 0, WEIGHTS, CHECKPOINT)
EVALUATION = EvaluationPace(3.0, 5.0, 2.0, 70, 0)


def plan_tiny(path: Path, *overrides: str, run_dir: Path | None = None) -> Plan:
    return plan_run(
        EXPERIMENT,
        (*TINY, "device=cpu", *overrides),
        run_dir=run_dir or path / "runs" / "tiny",
        steps=2,
    )


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixed times instead of measured ones."""
    monkeypatch.setattr(planning, "supernet_pace", lambda *_: TRAINING)
    monkeypatch.setattr(planning, "training_pace", lambda *_: TRAINING)
    monkeypatch.setattr(planning, "evaluation_pace", lambda *_: EVALUATION)


@pytest.mark.parametrize("sampling", ["by_macs", "sandwich", "learnable"])
def test_the_real_steps_are_timed_and_nothing_is_written(tmp_path: Path, sampling: str) -> None:
    found = plan_tiny(tmp_path, f"supernet.sampling={sampling}", "supernet.recipe.ema=0.9")
    assert not list(tmp_path.iterdir())
    assert [stage.stage for stage in found.stages] == ["data", "supernet", "search", "retrain"]
    for stage in found.stages[1:]:
        assert stage.wall_hours > 0
        assert stage.cpu_hours > 0
        assert stage.memory > 10_000_000
        assert stage.disk > 0
    assert found.stages[1].scratch > 3 * found.stages[1].disk
    assert found.total.gpu_hours == 0
    assert found.counted == "the settings"


@pytest.mark.usefixtures("paced")
def test_counts_of_the_tiny_experiment(tmp_path: Path) -> None:
    # Training leaves out the last incomplete batch of every epoch, evaluation does not.
    data, supernet, search, retrain = plan_tiny(
        tmp_path, "data.train_images=300", "data.search_val_images=65", "search.images_per_batch=64"
    ).stages
    assert data.wall_hours == data.disk == 0
    # 300 images in batches of 64, two epochs.
    assert supernet.wall_hours * 3600 == pytest.approx(4 * 2 * STEP)
    assert (supernet.disk, supernet.scratch) == (WEIGHTS, 3 * CHECKPOINT)
    # One batch to calibrate with; 20 candidates on two batches, two chosen ones on one.
    assert search.wall_hours * 3600 == pytest.approx(20 * (3.0 + 2 * 5.0) + 2 * (3.0 + 5.0))
    assert search.memory == 70 + 65 * 16 * 16 * 4
    # Two budgets with two baselines each, and vanilla; two seeds; then 64 images of val.
    training = 4 * 2 * STEP + 64 * 5.0 / 64
    assert retrain.wall_hours * 3600 == pytest.approx((2 * 3 + 1) * 2 * training)
    assert (retrain.disk, retrain.scratch) == (14 * WEIGHTS, 3 * CHECKPOINT)


@pytest.mark.usefixtures("paced")
def test_processes_of_a_supernet_share_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning.os, "sched_getaffinity", lambda _: range(8))
    found = plan_tiny(tmp_path, "supernet.processes=4", "retrain.workers=3").stages
    assert found[1].wall_hours * 3600 == pytest.approx(4 * 2 * STEP)
    assert found[1].cpu_hours == pytest.approx(4 * found[1].wall_hours)
    assert found[1].memory == 4 * TRAINING.memory
    assert (found[3].memory, found[3].scratch) == (3 * TRAINING.memory, 9 * CHECKPOINT)
    assert any(
        "communication" in note for note in plan_tiny(tmp_path, "supernet.processes=2").notes
    )


@pytest.mark.usefixtures("paced")
def test_finished_stages_only_take_disk(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "device=cpu", "tracking.enabled=false")
    run_stages(run, ("data", "space"))
    files = sorted(run.directory.path.rglob("*"))
    found = plan_run(run.directory.path, steps=2)
    assert [stage.done for stage in found.stages] == [True, False, False, False]
    assert sorted(run.directory.path.rglob("*")) == files
    with pytest.raises(RunDirectoryError, match="train_images: was 256, now 128"):
        plan_run(run.directory.path, ("data.train_images=128",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of eight images to train on, and two of val."""
    for split, count in (("train", 8), ("val", 2)):
        for label in ("a", "b"):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                image = Image.effect_noise((20, 20), 50 + number)
                image.convert("RGB").save(
                    tmp_path / "images" / split / label / f"{label}{split}{number}.png"
                )
    return tmp_path / "images"


def of_folder(folder: Path, *overrides: str) -> tuple[str, ...]:
    counts = "search_val_per_class: 2, read_per_class: 1"
    data = f"{{source: folder, root: {folder}, {counts}, workers: 2}}"
    changes = ("supernet.recipe.batch_size=4", "retrain.recipe.batch_size=4")
    return (f"data={data}", "space.input_size=[3, 16, 16]", *changes, *overrides)


@pytest.mark.usefixtures("paced")
def test_files_are_counted_and_a_few_decoded(tmp_path: Path, folder: Path) -> None:
    found = plan_tiny(tmp_path, *of_folder(folder))
    assert found.images == {"train": 2 * 5, "search_val": 2 * 2, "read": 2 * 1, "val": 2 * 2}
    assert found.counted == "a listing of the unopened files"
    image = found.measured["image"]
    assert image > 0
    wall = 20 * image / min(2, found.machine.cores)
    assert found.stages[0].wall_hours * 3600 == pytest.approx(wall)
    assert found.stages[0].cpu_hours * 3600 == pytest.approx(20 * image)
    assert found.stages[0].disk == 0


@pytest.mark.usefixtures("paced")
def test_a_cache_takes_disk(tmp_path: Path, folder: Path) -> None:
    cache = f"data.cache={{enabled: true, resolution: 18, folder: {tmp_path / 'cache'}}}"
    found = plan_tiny(tmp_path, *of_folder(folder, cache))
    assert found.stages[0].disk == 20 * 3 * 18 * 18
    assert not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("paced")
def test_validation_at_other_sizes_is_counted(tmp_path: Path, folder: Path) -> None:
    """Every val image once more for every training; larger ones from their files."""
    plain, looked = (
        plan_tiny(tmp_path, f"retrain.test_sizes={sizes}").stages[3] for sizes in ("[]", "[8, 32]")
    )
    more = 14 * 64 * (5.0 / 64) * ((8 / 16) ** 2 + (32 / 16) ** 2)
    assert (looked.wall_hours - plain.wall_hours) * 3600 == pytest.approx(more)
    cache = f"data.cache={{enabled: true, folder: {tmp_path / 'cache'}}}"
    overrides = of_folder(folder, cache, "retrain.seeds=[0]", "retrain.baselines=[]")
    smaller, larger = (
        plan_tiny(tmp_path, *overrides, f"retrain.test_sizes=[{size}]") for size in (12, 20)
    )
    scores = 2 * 4 * (5.0 / 4) * ((20 / 16) ** 2 - (12 / 16) ** 2)
    more = (larger.stages[3].wall_hours - smaller.stages[3].wall_hours) * 3600 - scores
    assert more == pytest.approx(2 * 4 * larger.measured["image"])


@pytest.mark.usefixtures("paced")
def test_the_data_stage_replaces_the_listing(tmp_path: Path, folder: Path) -> None:
    image = folder / "val" / "a" / "copy.png"
    image.write_bytes((folder / "train" / "a" / "atrain0.png").read_bytes())
    overrides = of_folder(folder, "device=cpu", "tracking.enabled=false")
    run = open_tiny(tmp_path, *overrides)
    run_stages(run, ("data",))
    found = plan_run(run.directory.path)
    assert found.counted == "the finished data stage"
    assert found.images["train"] == 2 * 5 - 1
    assert found.stages[0].done


def test_mistakes(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SettingError, match="steps: found 1, allowed: 2 or more"):
        plan_run(EXPERIMENT, steps=1)
    with pytest.raises(DataError, match=r"found 16 training images, allowed: more than 16"):
        plan_tiny(tmp_path, *of_folder(folder, "data.search_val_per_class=7"))


OWN = "original={recipe: {epochs: 3, batch_size: 64}}"


@pytest.mark.usefixtures("paced")
def test_a_network_that_is_trained_first_is_counted(tmp_path: Path) -> None:
    found = plan_tiny(tmp_path, OWN, "retrain.fit_images=0")
    stages = {stage.stage: 3600 * stage.wall_hours for stage in found.stages}
    assert list(stages) == ["data", "original", "convert", "search", "retrain"]
    # 256 training images with their backward pass, which counts twice, and 64 of read.
    image = stages["convert"] / (256 * 3 + 64)
    assert image > 5.0 / 64
    assert stages["original"] == pytest.approx(4 * 3 * STEP + 64 * image)
    # Two budgets with two baselines each, and vanilla; two seeds; the original once.
    val = 64 * 5.0 / 64
    assert stages["retrain"] == pytest.approx((2 * 3 + 1) * 2 * (4 * 2 * STEP + val) + val)
    # Three networks of each budget are fitted to 16 images, with 20 iterations after a first pass.
    fitted = plan_tiny(tmp_path, OWN, "retrain.fit_images=16").stages[-1]
    run = open_tiny(tmp_path / "open", "tracking.enabled=false")
    run_stages(run, ("data", "space"))
    shares = sum(budget.max_macs for budget in run.budgets) / run.space.vanilla_macs
    more = 3 * 16 * 21 * 3 * image * shares
    assert 3600 * fitted.wall_hours == pytest.approx(stages["retrain"] + more)
    assert fitted.disk == found.stages[-1].disk + 2 * 3 * WEIGHTS
    assert "supernet step" not in found.measured
    assert found.measured["original step"] == STEP
    assert found.original.startswith("the original, trained first: ")
    assert found.original.endswith(
        "MACs; is sorted, teaches all networks, and is evaluated on val once"
    )
    again = plan_tiny(tmp_path, OWN, "search.score=supernet", "supernet.processes=2")
    assert "supernet step" in again.measured
    assert any("communication" in note for note in again.notes)
    assert plan_tiny(tmp_path).original == ""


@pytest.mark.usefixtures("paced")
def test_what_candidates_are_taught_is_counted(tmp_path: Path) -> None:
    search = [
        next(stage for stage in plan_tiny(tmp_path, OWN, *more).stages if stage.stage == "search")
        for more in ((), ("search.steps=4",))
    ]
    # 20 candidates, and two chosen ones on other images, with 4 steps each.
    assert (search[1].wall_hours - search[0].wall_hours) * 3600 == pytest.approx(22 * 4 * 2.0)


@pytest.mark.parametrize("more", ["search.steps=2", "search.score=supernet"])
def test_lessons_and_the_teacher_of_a_supernet_are_timed(tmp_path: Path, more: str) -> None:
    found = plan_tiny(tmp_path, OWN, more)
    assert all(stage.wall_hours > 0 for stage in found.stages if stage.stage != "data")
    assert not list(tmp_path.iterdir())


def test_the_teacher_is_timed_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[bool] = []

    def training_pace(_: object, *rest: object) -> TrainingPace:
        taught.append(len(rest) == 4 and rest[3] is not None)
        return TRAINING

    monkeypatch.setattr(planning, "training_pace", training_pace)
    monkeypatch.setattr(planning, "evaluation_pace", lambda *_: EVALUATION)
    for more, expected in (
        ((), [False, True, True]),
        (("retrain.distillation=null",), [False, False, False]),
        (("retrain.weights=scratch",), [False, False, False]),
    ):
        taught.clear()
        plan_tiny(tmp_path, OWN, *more)
        assert taught == expected


def test_a_taught_step_has_the_teachers_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []

    def frozen(model: nn.Module, _: Recipe, device: torch.device) -> Callable[[Tensor], Tensor]:
        def teacher(images: Tensor) -> Tensor:
            shown.append(len(images))
            return model(images).detach()

        return teacher

    monkeypatch.setattr(pace, "frozen", frozen)
    args = {"layers": [1, 1, 1], "channels": [4, 8, 8], "in_chans": 1, "num_classes": 3}
    network = Architecture("thumbnail_resnet", (1, 16, 16), {}, backbone_args=args)
    images = pace.RandomImages(("a", "b", "c"), (1, 16, 16), pace.WARM_UP + 2, {"train": 8})
    settings = RetrainSettings(recipe=Recipe(batch_size=4))
    cpu = torch.device("cpu")
    assert pace.training_pace(settings, network, images, cpu).seconds > 0
    assert shown == []
    assert pace.training_pace(settings, network, images, cpu, network).seconds > 0
    assert shown == [4] * images.steps
