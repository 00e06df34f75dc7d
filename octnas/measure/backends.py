"""One network in one backend, ready to be called again and again."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from octnas.errors import MeasureError, SettingError
from octnas.measure.settings import BACKENDS, BenchSettings, Engine
from octnas.nn.conv import to_channels_last
from octnas.nn.deploy import deploy
from octnas.nn.onnx import openvino_core, save_onnx

Step = Callable[[], None]
Infer = Callable[[], tuple[Tensor, ...]]


def installed_backends() -> tuple[str, ...]:
    """Backends that can be used here without compiling anything first."""
    return tuple(name for name in BACKENDS if name == "eager" or find_spec(name) is not None)


def check_installed(backend: str) -> None:
    """Raise `SettingError` unless all is installed that a backend needs here."""
    needed = () if backend in ("eager", "compile") else ("onnx", "onnxscript", backend)
    if missing := [name for name in needed if find_spec(name) is None]:
        install = f'pip install "octnas[export]" ({", ".join(missing)}: not installed)'
        raise SettingError("backends", backend, install)


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
    engine = Engine(backend, settings.device, settings.precision, settings.threads)
    infer = inference(engine, deploy(model), (images,))
    _check(backend, infer()[0], expected, settings.precision)
    return as_step(infer, engine)


def inference(engine: Engine, model: nn.Module, inputs: Sequence[Tensor]) -> Infer:
    """A function without arguments that computes one batch, and may return before it is done.

    Args:
        engine: what computes.
        model: in eval mode, deployed; from tensors to a tensor or a tuple of them. It may be
            brought to another device and memory format.
        inputs: on the CPU.

    Raises:
        SettingError: the backend is not installed.
    """
    if engine.backend in ("eager", "compile"):
        return _torch(engine, model, inputs)
    check_installed(engine.backend)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_onnx(model, inputs, path)
        open_session = _onnxruntime if engine.backend == "onnxruntime" else _openvino
        return open_session(path, inputs, engine.threads)


def as_step(infer: Infer, engine: Engine) -> Step:
    """A function that computes one batch and returns when it is done."""

    def step() -> None:
        infer()
        wait(engine.device)

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


def _compiled(model: nn.Module, backend: str, device: str) -> Callable[..., Any]:
    if backend == "eager":
        return model
    # CUDA graphs, without which small batches measure the launching of kernels.
    mode = "reduce-overhead" if device.startswith("cuda") else None
    compiled: Callable[..., Any] = torch.compile(model, mode=mode, fullgraph=True, dynamic=False)
    return compiled


def _torch(engine: Engine, model: nn.Module, inputs: Sequence[Tensor]) -> Infer:
    dtype = torch.bfloat16 if engine.precision == "bfloat16" else torch.float32
    how: Any = {"device": engine.device, "dtype": dtype, "memory_format": torch.channels_last}
    call = _compiled(model.to(**how), engine.backend, engine.device)
    tensors = [x.to(**how) for x in inputs]

    def infer() -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return _as_tuple(call(*tensors))

    return infer


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


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
    network = model.train().to(device)
    to_channels_last(network)
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


def _onnxruntime(path: Path, inputs: Sequence[Tensor], threads: int) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return lambda: tuple(map(torch.from_numpy, session.run(None, feed)))


def _openvino(path: Path, inputs: Sequence[Tensor], threads: int) -> Infer:
    import openvino

    core = openvino_core()
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        config["INFERENCE_NUM_THREADS"] = threads
    request = core.compile_model(core.read_model(path), "CPU", config).create_infer_request()
    feed = {index: openvino.Tensor(x.numpy()) for index, x in enumerate(inputs)}
    return lambda: tuple(map(torch.from_numpy, request.infer(feed).values()))
