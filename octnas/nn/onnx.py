"""Networks as ONNX files, and OpenVINO's core."""

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from octnas.errors import ExportError, first_cause, require
from octnas.runtime.temporary import level

# Native to torch's exporter, and read by all recent engines.
OPSET = 18


def save_onnx(
    model: nn.Module,
    images: Tensor | Sequence[Tensor],
    path: Path,
    *,
    any_batch: bool = False,
) -> None:
    """Write a network as one ONNX file, for images of exactly this shape.

    Args:
        model: in eval mode, as `octnas.deploy` returns it; else kernels would be split in the
            graph, at every image.
        images: ``(N, C, H, W)``, or all inputs of a part of a network.
        path: the file, weights included.
        any_batch: for any number of images at a time; ``images`` then has two or more.

    Raises:
        SettingError: the ONNX exporter is not installed.
        ExportError: it does not support an operation of the network.
    """
    installed = find_spec("onnx") is not None and find_spec("onnxscript") is not None
    require(installed, "onnx", "no onnx and onnxscript", 'pip install "octnas[export]"')
    inputs = (images,) if isinstance(images, Tensor) else tuple(images)
    whole = len(inputs) == 1
    # The exporter prints its progress, and warns about its own code.
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        level(logging.getLogger("torch.onnx"), logging.ERROR),
        level(logging.getLogger("onnxscript"), logging.ERROR),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        names = ["images"] if whole else [f"input{index}" for index in range(len(inputs))]
        batch = [{0: torch.export.Dim("batch")} for _ in inputs] if any_batch else None
        try:
            program = torch.onnx.export(
                model,
                inputs,
                input_names=names,
                # A part of a network has one output or two.
                output_names=["logits"] if whole else None,
                opset_version=OPSET,
                dynamic_shapes=batch,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(
                f"torch {torch.__version__} cannot write this network as ONNX ({_cause(error)}); "
                "another version may"
            ) from error
        assert program is not None
        # Stack traces, with paths of this machine.
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
        program.save(path, external_data=False)


def _cause(error: BaseException) -> str:
    """The first cause in short; the exporter's own message takes pages."""
    return " ".join(str(first_cause(error)).split(". ")[0].split())[:300]


@cache
def openvino_core() -> Any:
    """The process's only `openvino.Core`, which is never released.

    Each core moves the signal handlers' stack; releasing two, oldest first, leaves it on freed
    memory, and the next Ctrl-C is a segmentation fault (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()
