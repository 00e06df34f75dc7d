"""A backend is timed only if it computes what the model computes."""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import timm
import torch
from torch import Tensor, nn

from octnas import octavize
from octnas.errors import MeasureError, SettingError
from octnas.measure import backends
from octnas.measure.backends import check_device, installed_backends, prepare
from octnas.measure.settings import BenchSettings
from octnas.nn.deploy import deploy
from tests.nn.reference import images, randomise

Wrong = Callable[[nn.Module], None]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = randomise(timm.create_model("thumbnail_resnet"))
    return octavize(made, 0.5).eval()


@pytest.fixture
def x() -> Tensor:
    return images(2, 3, 16, 16)


def settings(**kwargs: object) -> BenchSettings:
    return BenchSettings(model="thumbnail_resnet", input_size=16, **kwargs)  # type: ignore[arg-type]


def shifted(model: nn.Module) -> None:
    model.fc.bias += 0.01 * model.fc.bias.new_ones(())


def lost(model: nn.Module) -> None:
    model.fc.bias.fill_(float("nan"))


def slightly_scaled(model: nn.Module) -> None:
    model.fc.weight *= 1.01


@pytest.mark.parametrize("wrong", [shifted, lost, slightly_scaled])
@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        *(
            pytest.param(
                name, marks=[pytest.mark.slow, pytest.mark.skipif(not find_spec(name), reason=name)]
            )
            for name in ("onnxruntime", "openvino")
        ),
    ],
)
def test_a_wrong_backend_is_not_timed(
    backend: str, wrong: Wrong, model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(source: nn.Module) -> nn.Module:
        fixed = deploy(source)
        wrong(fixed)
        return fixed

    monkeypatch.setattr(backends, "deploy", broken)
    with pytest.raises(MeasureError, match=f"^{backend}: logits differ .* allowed: 0.001; nothing"):
        prepare(backend, model, x, settings(backends=(backend,)))


def test_logits_of_nothing_prove_nothing(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model.fc.weight.mul_(1e-6)
        model.fc.bias.mul_(1e-6)
    with pytest.raises(MeasureError, match=r"^eager: "):
        prepare("eager", model, x, settings())


def test_bfloat16_has_its_own_tolerance(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare("eager", model, x, settings(precision="bfloat16"))()

    def half(source: nn.Module) -> nn.Module:
        fixed = deploy(source)
        fixed.fc.weight *= 0.5
        return fixed

    monkeypatch.setattr(backends, "deploy", half)
    with pytest.raises(MeasureError, match=r"allowed: 0\.1;"):
        prepare("eager", model, x, settings(precision="bfloat16"))


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_the_model_is_left_as_it_is(mode: str, model: nn.Module, x: Tensor) -> None:
    for trains in (False, True):
        model.train(trains)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        before = x.clone()
        step = prepare("eager", model, x, settings(mode=mode))
        for _ in range(2):
            step()
        assert all(module.training is trains for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
        for key, value in model.state_dict().items():
            assert torch.equal(value, state[key]), key
        assert torch.equal(x, before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_step_trains(
    precision: str, model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, loss, backward and update, each once per call."""
    losses: list[Tensor] = []
    plain = backends.F.cross_entropy

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        assert logits.shape == (2, 1000)
        assert logits.dtype == getattr(torch, precision)
        losses.append(plain(logits, targets))
        return losses[-1]

    monkeypatch.setattr(backends.F, "cross_entropy", cross_entropy)
    step = prepare("eager", model, x, settings(mode="training", precision=precision))
    assert losses == []
    for _ in range(40):
        step()
    assert len(losses) == 40
    assert losses[-1] < losses[0]


def test_a_backend_that_is_not_installed(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert installed_backends() == ("eager",)
    with pytest.raises(SettingError, match=r"^backends: found 'openvino', .*octnas\[export\]"):
        prepare("openvino", model, x, settings(backends=("openvino",)))


def test_compiling_is_never_a_default() -> None:
    assert "compile" not in installed_backends()
    assert installed_backends()[0] == "eager"


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "cpu:x", "meta"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(SettingError, match=f"^device: found '{name}'") as caught:
        check_device(name)
    assert len(str(caught.value).splitlines()) == 1
    check_device("cpu")


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed")
def test_signals_are_survived_when_openvino_networks_are_gone() -> None:
    """Ctrl-C after a benchmark: each of OpenVINO's cores moves the stack that signals use."""
    program = """
import os, signal, torch
from octnas.measure.backends import inference
from octnas.measure.settings import Engine
networks = [
    inference(Engine("openvino"), torch.nn.Conv2d(3, 8, 3).eval(), (torch.zeros(1, 3, 8, 8),))
    for _ in range(2)
]
while networks:
    networks.pop(0)()
signal.signal(signal.SIGUSR1, lambda *_: print("survived"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "survived"), done.stderr
