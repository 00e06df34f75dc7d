"""One network in one backend, ready to be called again and again."""

import copy
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octnas.errors import MeasureError, SettingError, require
from octnas.measure.settings import BACKENDS, BenchSettings
from octnas.nn.deploy import deploy
from octnas.nn.onnx import save_onnx

Step = Callable[[], None]


def installed_backends() -> tuple[str, ...]:
    """Backends that can be used here without compiling anything first."""
    return tuple(name for name in BACKENDS if name == "eager" or find_spec(name) is not None)


def check_device(name: str) -> None:
    """Raise `SettingError` unless torch knows the device and the machine computes on it."""
    try:
        # There and back, as logits go: "meta" is a device that nothing comes back from.
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError("device", name, f"cpu or a device of this machine ({reason})") from None


def prepare(backend: str, model: nn.Module, images: Tensor, settings: BenchSettings) -> Step:
    """A function without arguments that runs one batch and returns when it is done.

    Args:
        backend: of `BACKENDS`.
        model: a timm ResNet, octave or plain; it is left as it is.
        images: ``(N, C, H, W)`` on the CPU.
        settings: the rest.

    Raises:
        SettingError: the backend is not installed.
        MeasureError: the backend computes something else than the model.
    """
    model = copy.deepcopy(model)
    if settings.mode == "training":
        return _training_step(backend, model, images, settings)
    with torch.inference_mode():
        expected = model.eval()(images)
    if backend in ("eager", "compile"):
        infer = _torch(backend, model, images, settings)
    else:
        library = find_spec(backend)
        require(library is not None, "backends", backend, 'pip install "octnas[export]"')
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            save_onnx(deploy(model), images, path)
            open_session = _onnxruntime if backend == "onnxruntime" else _openvino
            infer = open_session(path, images, settings.threads)
    _check(backend, infer(), expected, settings.precision)

    def step() -> None:
        infer()
        wait(settings.device)

    return step


def _check(backend: str, found: Tensor, expected: Tensor, precision: str) -> None:
    error = float((found.float().cpu() - expected).norm() / expected.norm())
    allowed = 1e-3 if precision == "float32" else 0.1
    if not (error <= allowed and expected.abs().max() > 1e-3):
        raise MeasureError(
            f"{backend}: logits differ from the model's by {error:.1e} of their norm, allowed: "
            f"{allowed:g}; nothing was timed"
        )


def wait(device: str) -> None:
    """Until the device has done what it was asked for."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))


def _on_device(model: nn.Module, images: Tensor, device: str) -> tuple[nn.Module, Tensor]:
    return (
        model.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        images.to(device, memory_format=torch.channels_last),
    )


def _compiled(model: nn.Module, backend: str, device: str) -> Callable[[Tensor], Tensor]:
    if backend == "eager":
        return model
    # CUDA graphs, without which small batches measure the launching of kernels.
    mode = "reduce-overhead" if device.startswith("cuda") else None
    compiled: Callable[[Tensor], Tensor] = torch.compile(
        model, mode=mode, fullgraph=True, dynamic=False
    )
    return compiled


def _torch(
    backend: str, model: nn.Module, images: Tensor, settings: BenchSettings
) -> Callable[[], Tensor]:
    fixed, images = _on_device(deploy(model), images, settings.device)
    if settings.precision == "bfloat16":
        fixed, images = fixed.bfloat16(), images.bfloat16()
    call = _compiled(fixed, backend, settings.device)

    def infer() -> Tensor:
        with torch.inference_mode():
            return call(images)

    return infer


def _training_step(backend: str, model: nn.Module, images: Tensor, settings: BenchSettings) -> Step:
    network, images = _on_device(model, images, settings.device)
    targets = torch.zeros(len(images), dtype=torch.long, device=images.device)
    call = _compiled(network, backend, settings.device)
    step = sgd_step(network, settings.device, settings.precision, call)
    return lambda: step(images, targets)


def sgd_step(
    model: nn.Module,
    device: str,
    precision: str,
    call: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Tensor, Tensor], None]:
    """A training step, to be timed: images and labels, on the device or not, and back when done.

    Args:
        model: brought to the device, in training mode and channels-last.
        device: as torch names it.
        precision: ``float32``, or ``bfloat16`` by autocast.
        call: takes the model's place in the forward pass, as what a compiler made of it.
    """
    network: nn.Module = model.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = network if call is None else call
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    place = torch.device(device)

    def step(images: Tensor, targets: Tensor) -> None:
        images = images.to(place, non_blocking=True, memory_format=torch.channels_last)
        optimizer.zero_grad()
        with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.cross_entropy(forward(images), targets.to(place, non_blocking=True))
        loss.backward()
        optimizer.step()
        wait(device)

    return step


def _onnxruntime(path: Path, images: Tensor, threads: int) -> Callable[[], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _openvino(path: Path, images: Tensor, threads: int) -> Callable[[], Tensor]:
    import openvino

    core = openvino.Core()
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    request = core.compile_model(core.read_model(path), "CPU", config).create_infer_request()
    feed = {0: openvino.Tensor(images.numpy())}
    return lambda: torch.from_numpy(request.infer(feed)[0])
