from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from octnas import OctaveTensor
from octnas.nn import build
from octnas.nn.calibration import recalibrate
from octnas.nn.norm import OctaveBatchNorm2d
from octnas.nn.shapes import search_space
from tests.nn.reference import assert_sizeable, images, randomise

SPACE = search_space("thumbnail_resnet", (3, 16, 16), (0.0, 0.25, 0.5, 1.0))
BATCHES = [images(8, 3, 16, 16, seed=seed) + 0.5 for seed in range(4)]


def make(alpha: float) -> nn.Module:
    return randomise(build(SPACE.uniform(alpha), seed=0)).double()


def batches() -> list[Tensor]:
    return [batch.double() for batch in BATCHES]


def statistics(model: nn.Module) -> Tensor:
    return torch.cat([value for name, value in model.named_buffers() if value.dim()])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_statistics_are_plain_averages_over_the_batches(alpha: float) -> None:
    model = make(alpha)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def note(name: str) -> object:
        def hook(_module: nn.Module, inputs: tuple[Tensor | OctaveTensor]) -> None:
            (x,) = inputs
            parts = [x.high, x.low] if isinstance(x, OctaveTensor) else [x]
            rows = [row for part in parts for row in part.transpose(0, 1).flatten(1).unbind()]
            mean, var = torch.stack([r.mean() for r in rows]), torch.stack([r.var() for r in rows])
            seen.setdefault(name, []).append((mean, var))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, OctaveBatchNorm2d):
            module.register_forward_pre_hook(note(name))  # type: ignore[arg-type]
    recalibrate(model, batches())
    assert len(seen) == 9
    for name, batch_statistics in seen.items():
        norm = model.get_submodule(name)
        assert isinstance(norm, OctaveBatchNorm2d)
        assert len(batch_statistics) == 4
        for found, values in zip(
            (norm.running_mean, norm.running_var), zip(*batch_statistics, strict=True), strict=True
        ):
            assert found is not None
            expected = torch.stack(values).mean(0)
            assert_sizeable(expected)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        assert norm.momentum == 0.1


def test_the_order_of_batches_does_not_matter() -> None:
    forwards, backwards = make(0.5), make(0.5)
    recalibrate(forwards, batches())
    recalibrate(backwards, reversed(batches()))
    assert_sizeable(statistics(forwards))
    torch.testing.assert_close(statistics(forwards), statistics(backwards), rtol=1e-9, atol=1e-10)


def test_what_was_there_before_does_not_matter() -> None:
    fresh, used = make(0.5), randomise(make(0.5), seed=9)
    used.load_state_dict({**fresh.state_dict(), **{k: v * 3 for k, v in used.named_buffers()}})
    assert not torch.equal(statistics(fresh), statistics(used))
    for model in (fresh, used):
        recalibrate(model, iter(batches()))
    assert torch.equal(statistics(fresh), statistics(used))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_training_mode_and_parameters_stay(training: bool) -> None:
    model = make(0.5).train(training)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    recalibrate(model, batches())
    assert {module.training for module in model.modules()} == {training}
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None


def test_every_module_keeps_its_own_mode() -> None:
    """Part of a network may be frozen, the rest in training."""
    model = make(0.5).train()
    model.layer1.eval()
    before = [module.training for module in model.modules()]
    recalibrate(model, batches())
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


def test_an_interrupted_recalibration_leaves_the_modes_alone() -> None:
    def broken() -> Iterator[Tensor]:
        yield batches()[0]
        raise OSError("disk")

    model = make(0.5).eval()
    with pytest.raises(OSError, match="disk"):
        recalibrate(model, broken())
    assert not any(module.training for module in model.modules())
    assert {m.momentum for m in model.modules() if isinstance(m, OctaveBatchNorm2d)} == {0.1}


def test_no_batch_at_all_is_refused() -> None:
    """Else the statistics would be 0 and 1, and every score nonsense."""
    model = make(0.5)
    with pytest.raises(ValueError, match="batch"):
        recalibrate(model, [])


def test_it_makes_a_difference() -> None:
    model = make(0.5).eval()
    before = model(batches()[0])
    recalibrate(model, batches())
    assert_sizeable(before, model(batches()[0]) - before)
