"""Networks in the backends that are timed: eager and compiled torch, ONNX Runtime, OpenVINO."""

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
    """Installed backends, without ``compile``, which would first compile for minutes."""
    return tuple(name for name in BACKENDS if name == "eager" or find_spec(name) is not None)


def check_installed(backend: str) -> None:
    """Raise `SettingError` unless the packages of a backend are installed."""
    needed = () if backend in ("eager", "compile") else ("onnx", "onnxscript", backend)
    if missing := [name for name in needed if find_spec(name) is None]:
        install = f'pip install "octnas[export]" ({", ".join(missing)}: not installed)'
        raise SettingError("backends", backend, install)


def check_device(name: str) -> None:
    """Raise `SettingError` unless torch knows the device and can compute on it."""
    try:
        # And back, which fails on "meta".
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError("device", name, f"cpu or a device of this machine ({reason})") from None


def prepare(backend: str, model: nn.Module, images: Tensor, settings: BenchSettings) -> Step:
    """A function that runs one batch, or training step, and returns when it is done.

    Args:
        backend: one of `BACKENDS`.
        model: a timm ResNet, octave or plain; it is not changed.
        images: ``(N, C, H, W)`` on the CPU.
        settings: mode, device, precision and threads.

    Raises:
        SettingError: the backend is not installed.
        MeasureError: the backend's logits differ from the model's.
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
    """A function that runs one batch, and may return before it is done.

    Args:
        engine: to run on.
        model: deployed; from tensors to a tensor or a tuple of them. Its device and memory format
            may be changed.
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
    """A function that runs one batch and returns when it is done."""

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
    """Wait until the device has finished all its work."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(torch.device(device))


def _compiled(model: nn.Module, backend: str, device: str) -> Callable[..., Any]:
    if backend == "eager":
        return model
    # With CUDA graphs, else small batches would measure kernel launches.
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
            outputs = call(*tensors)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    return infer


def _training_step(backend: str, model: nn.Module, images: Tensor, settings: BenchSettings) -> Step:
    images = images.to(settings.device, memory_format=torch.channels_last)
    targets = torch.zeros(len(images), dtype=torch.long, device=images.device)
    step = sgd_step(model, settings.device, settings.precision, backend)
    return lambda: step(images, targets)


def sgd_step(
    model: nn.Module, device: str, precision: str, backend: str = "eager"
) -> Callable[[Tensor, Tensor], None]:
    """A training step to be timed, from images and labels on any device; returns when it is done.

    The model is moved to the device, to training mode and to channels-last memory; ``bfloat16`` is
    by autocast.
    """
    network = model.train().to(device)
    to_channels_last(network)
    forward = _compiled(network, backend, device)
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
