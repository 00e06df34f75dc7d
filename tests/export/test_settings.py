import pytest

from octnas.errors import SettingError
from octnas.export.settings import ExportSettings


def test_formats_with_one_precision_ignore_the_setting() -> None:
    settings = ExportSettings(formats=("timm", "onnx", "pt2"), precisions=("int8",))
    assert settings.variants == (("timm", "fp32"), ("onnx", "int8"), ("pt2", "fp32"))


def test_tolerances_grow_as_precision_falls() -> None:
    settings = ExportSettings(int8_agreement=0.85)
    fp32, fp16, int8 = map(settings.tolerance, ("fp32", "fp16", "int8"))
    assert fp32.difference < fp16.difference < int8.difference
    assert fp32.agreement > fp16.agreement > int8.agreement == 0.85


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("formats", ("coreml",), "one or more of timm, onnx, openvino, pt2, tensorrt"),
        ("formats", (), "one or more of timm"),
        ("formats", ("timm", "timm"), "each once"),
        ("precisions", ("bf16",), "one or more of fp32, fp16, int8"),
        ("val_images", -1, "0 or more"),
        ("calibration_images", 0, "1 or more"),
        ("int8_agreement", 1.5, "0 to 1"),
    ],
)
def test_what_cannot_be_is_refused(key: str, value: object, words: str) -> None:
    with pytest.raises(SettingError, match=key) as caught:
        ExportSettings(**{key: value})  # type: ignore[arg-type]
    assert words in str(caught.value)
