"""The export stage: what it refuses, and what it goes on with."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from octnas.errors import ExportError
from octnas.export import formats
from octnas.pipeline.stages import run_stages
from tests.export.test_formats import spoilt
from tests.pipeline.tiny import open_tiny


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_missing_library_is_said_before_anything_is_done(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "export.formats=[timm, tensorrt]")
    with pytest.raises(ExportError, match="format tensorrt: tensorrt: not installed"):
        run_stages(run)
    assert not run.directory.stage("data").exists()


def test_every_network_is_written_before_what_was_refused_is_said(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    monkeypatch.setattr(formats, "FORMATS", {**formats.FORMATS, "timm": spoilt})
    run = open_tiny(tmp_path / "copy", fresh="export")
    with pytest.raises(ExportError, match="refused on the val images") as caught:
        run_stages(run, ("export",))
    assert len(str(caught.value).splitlines()) == 7
    folder = run.directory.stage("export")
    assert len(list(folder.glob("*/export.json"))) == 7
    assert not list(folder.glob("*/model.safetensors"))
    monkeypatch.undo()
    run_stages(open_tiny(tmp_path / "copy"), ("export",))
    assert len(list(folder.glob("*/model.safetensors"))) == 7
