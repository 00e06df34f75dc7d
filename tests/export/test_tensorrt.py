"""TensorRT engines: built where there is TensorRT and a GPU, refused elsewhere."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from octnas.errors import ExportError
from octnas.export.engines import export_tensorrt, trtexec_command
from octnas.export.formats import export_network
from octnas.export.settings import ExportSettings
from octnas.export.source import Loaded
from tests.export.trained import images, make_source


def test_the_command_has_the_smallest_typical_and_largest_batch() -> None:
    assert trtexec_command("fp32", (3, 224, 224)) == (
        "trtexec --onnx=model.onnx --minShapes=images:1x3x224x224 "
        "--optShapes=images:8x3x224x224 --maxShapes=images:64x3x224x224 "
        "--saveEngine=model.plan"
    )
    assert "--stronglyTyped" in trtexec_command("fp16", (3, 224, 224))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu(tmp_path: Path) -> None:
    source = make_source(tmp_path)
    loaded = Loaded.read(source, images().batches("train", 32), tmp_path)
    with pytest.raises(ExportError, match="building an engine needs a GPU, and none was found"):
        export_tensorrt(loaded, "fp32", tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(
    find_spec("tensorrt") is None or not torch.cuda.is_available(),
    reason="needs TensorRT and a GPU",
)
def test_engines_agree_with_their_source(tmp_path: Path) -> None:
    settings = ExportSettings(formats=("tensorrt",), val_images=0, int8_agreement=0.8)
    outcome = export_network(make_source(tmp_path), images(), settings, tmp_path / "network")
    assert outcome.refused == ()
    assert [variant.precision for variant in outcome.variants] == ["fp32", "fp16", "int8"]
