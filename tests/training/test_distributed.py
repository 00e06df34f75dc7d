"""Several processes that train one network."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed import Backend, BackendConfig

from octnas.data.digits import DigitImages
from octnas.data.images import Data
from octnas.errors import SettingError, TrainingError
from octnas.nn.supernet import build_supernet
from octnas.nn.weights import load_weights
from octnas.space.search_space import SearchSpace
from octnas.training.checkpoint import Checkpoints
from octnas.training.distributed import BACKEND, joined, launch, reported
from octnas.training.loop import Step
from octnas.training.sampled import architecture_draw, sampling_steps
from octnas.training.settings import Recipe, Sampling, SupernetSettings
from octnas.training.supernet import (
    SupernetJob,
    read_result,
    train_elastic_rank,
    train_supernet,
)
from tests.training import rank_work
from tests.training.small import digits

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2, batch_size=32, lr=0.05, warmup_epochs=0.5, checkpoint_seconds=0)


@pytest.fixture
def job(digit_space: SearchSpace, tmp_path: Path) -> SupernetJob:
    return SupernetJob(
        space=digit_space,
        budgets=(),
        data=Data(digits(320, 60, 60, 80), tmp_path),
        settings=SupernetSettings(threads=1, recipe=RECIPE),
        seed=3,
        device="cpu",
        weights=tmp_path / "weights.safetensors",
        checkpoints=Checkpoints(tmp_path / "checkpoints", 0.0),
        folder=tmp_path / "together",
    )


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["by_macs", "sandwich"])
def test_gradients_are_the_mean_over_the_processes(
    job: SupernetJob, tmp_path: Path, sampling: Sampling
) -> None:
    """Of different architectures of the same MACs, each on its own half of the batch."""
    settings = replace(job.settings, sampling=sampling, samples=1)
    job = replace(job, settings=settings)
    launch(rank_work.gradients_of, job, tmp_path, processes=2, restarts=0)
    found = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1)]
    drawn = [architecture_draw(job.space, settings, job.seed, rank)(0) for rank in (0, 1)]
    assert drawn[0] != drawn[1]
    assert job.space.cost(drawn[0]).macs == job.space.cost(drawn[1]).macs
    own = []
    for rank in (0, 1):
        supernet = build_supernet(job.space, seed=job.seed, switchable=True)
        backward = sampling_steps(supernet, job.space, settings, seed=job.seed, rank=rank)
        images, labels = rank_work.first_batch(job, rank, 2)
        assert len(labels) == RECIPE.batch_size // 2
        backward(Step(0, images, labels, supernet, F.cross_entropy))
        own.append([p.grad for p in supernet.parameters()])
    largest = 0.0
    for here, there, one, two in zip(*found, *own, strict=True):
        assert torch.equal(here, there)
        assert torch.allclose(here, (one + two) / 2, atol=1e-7)
        largest = max(largest, float((one - two).abs().max()))
    assert largest > 1e-3


@pytest.mark.slow
def test_a_dead_process_is_restarted_from_the_checkpoint(job: SupernetJob) -> None:
    launch(train_elastic_rank, job, processes=2, restarts=0)
    unbroken, expected = weights_of(job), read_result(job).history
    job.checkpoints.remove()
    job.weights.unlink()
    rows: list[float] = []
    with reported(job.folder, lambda row: rows.append(row["train_loss"])):
        launch(rank_work.dies_once, job, processes=2, restarts=1)
    assert (job.folder / "died").exists()
    assert [row["train_loss"] for row in read_result(job).history] == rows
    assert rows == [row["train_loss"] for row in expected]
    for name, value in weights_of(job).items():
        # Running statistics are those of rank 0, also after it went on.
        assert torch.equal(value, unbroken[name]), name


@pytest.mark.slow
def test_another_number_of_processes_keeps_batch_and_schedule(
    job: SupernetJob, few_digits: DigitImages
) -> None:
    with pytest.raises(TrainingError, match=r"process 1 of the training failed \(.*SIGKILL"):
        launch(rank_work.dies_once, job, processes=2, restarts=0)
    steps: list[int] = []
    # The same checkpoint resumes in one process, with the whole batch.
    arguments = {"seed": job.seed, "device": CPU, "on_step": steps.append}
    _, history = train_supernet(
        job.space, few_digits, job.settings, checkpoints=job.checkpoints, **arguments
    )
    _, alone = train_supernet(job.space, few_digits, job.settings, **arguments)
    total = 2 * (few_digits.count("train") // RECIPE.batch_size)
    first = steps[0]
    assert 4 <= first < total
    assert steps == [*range(first, total), *range(total)]
    assert [row["lr"] for row in history] == [row["lr"] for row in alone]
    assert history[0]["train_loss"] != alone[0]["train_loss"]


@pytest.mark.slow
def test_an_error_of_a_process_is_one_line(job: SupernetJob) -> None:
    with pytest.raises(TrainingError, match=r"process \d of the .* failed .*no images"):
        launch(rank_work.refuses, job, processes=2, restarts=0)


@pytest.mark.slow
def test_nothing_listens_but_on_the_loopback_interface(tmp_path: Path) -> None:
    launch(rank_work.listens, tmp_path, processes=2, restarts=0)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [["127.0.0.1"]] * 2


def test_the_rendezvous_file_may_have_any_name(tmp_path: Path) -> None:
    """A URL would end at the #, and processes of another training would share the file."""
    folder = tmp_path / "C# or not? 100%"
    folder.mkdir()
    with joined("cpu", rank=0, processes=1, rendezvous=str(folder / "rendezvous")):
        assert (folder / "rendezvous").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_processes_with_gpus_also_average_cpu_tensors() -> None:
    """The logits of learnable sampling."""
    devices = BackendConfig(Backend(BACKEND[True])).get_device_backend_map()
    assert devices == {"cpu": "gloo", "cuda": "nccl"}


@pytest.mark.parametrize(("rank", "gpus", "expected"), [(0, 4, 0), (3, 4, 3), (3, 2, 1)])
def test_every_process_has_its_own_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, gpus: int, expected: int
) -> None:
    """Also in Ray's workers, where no launcher counts them."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with joined("cuda", rank=rank, processes=4, rendezvous=str(tmp_path / "rendezvous")):
        assert chosen == [expected]


def test_batches_that_processes_cannot_share_evenly(few_digits: DigitImages) -> None:
    from octnas.data.batches import Part

    with pytest.raises(SettingError, match="batch_size: found 32, allowed: a multiple of the 3"):
        few_digits.train_batches(32, 0, Part(0, 3))


def weights_of(job: SupernetJob) -> dict[str, torch.Tensor]:
    supernet = build_supernet(job.space, seed=0, switchable=True)
    load_weights(supernet, job.weights)
    return supernet.state_dict()
