from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from octnas.export.card import model_card
from octnas.export.check import Comparison
from octnas.export.record import Variant
from octnas.export.settings import Tolerance
from octnas.export.source import Origin, Source
from tests.export.trained import make_source

VARIANT = Variant(
    format="onnx",
    precision="int8",
    files=("model_int8.onnx",),
    bytes=1_230_000,
    macs=1,
    comparison=Comparison(1000, 0.25, 0.975, 0.8125),
    tolerance=Tolerance(1.0, 0.9),
    source_top1=0.811,
)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path)


def test_the_hub_reads_its_metadata(source: Source) -> None:
    card = ModelCard(model_card(source, 0, ()))
    assert card.data.library_name == "timm"
    assert card.data.pipeline_tag == "image-classification"
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_name) == (0.5, "digits")
    assert card.data.license is None


def test_results_are_by_seed(source: Source) -> None:
    text = model_card(source, 0, ())
    assert "| 0 (these weights) | 50.00 | 1.2500 |" in text
    assert "| 1 | 60.00 | 1.2500 |" in text
    # 0.5 and 0.6: mean 0.55, standard deviation 0.1 / √2
    assert "Mean over seeds: 55.00 ± 7.07 % top-1." in text


def test_the_classes_are_in_the_order_of_the_logits(source: Source) -> None:
    card = model_card(source, 0, ())
    assert "0 `class 0`, 1 `class 1`" in card
    odd = replace(source, class_names=("a`b\n# c", *(f"n{number}" for number in range(150))))
    card = model_card(odd, 0, ())
    assert "0 `a'b # c`, 1 `n0`" in card
    assert "99 `n98`, and 51 more in `export.json`." in card


def test_every_site_has_its_alpha(source: Source) -> None:
    text = model_card(source, 0, ())
    assert "| stem | 0.5 | 8 of 16 |" in text
    assert "| layer1 | 0.25 | 4 of 16 |" in text
    assert "| layer3.0.conv1 | 0 | 0 of 64 |" in text


def test_a_pruned_network_has_widths(source: Source) -> None:
    args = {"backbone": "thumbnail_resnet", "widths": {"stem": 12, "layer1": 9}}
    shape = replace(source.network.architecture, backbone="pruned_resnet", backbone_args=args)
    result = source.retrained
    network = replace(result.network, role="pruned", architecture=shape)
    text = model_card(replace(source, retrained=replace(result, network=network)), 0, ())
    assert "| layer1 | 9 |" in text
    assert "Torch-Pruning" in text
    assert "octave convolution network" not in text
    assert "α by site" not in text


def test_variants_and_the_command_for_tensorrt(source: Source) -> None:
    text = model_card(source, 0, (VARIANT,))
    assert "| `model_int8.onnx` | onnx | int8 | 1.23 MB | 2.5e-01 | 97.50% | 81.25% |" in text
    assert "1,000 images, trained network 81.10% top-1" in text
    assert (
        "trtexec --onnx=model_int8.onnx --minShapes=images:1x1x16x16 "
        "--optShapes=images:8x1x16x16 --maxShapes=images:64x1x16x16 --stronglyTyped "
        "--saveEngine=model_int8.plan"
    ) in text
    assert "The exported graphs" not in text
    macs = source.network.cost.macs
    assert f"{macs + 500:,} MACs, 500 more" in model_card(source, 500, (VARIANT,))


def test_an_unknown_license_is_stated(source: Source) -> None:
    assert "License of the data: unknown." in model_card(source, 0, ())
    assert "trained from scratch" in model_card(source, 0, ())
    assert "License of the data: CC0." in model_card(replace(source, data_license="CC0"), 0, ())


def test_where_the_weights_come_from(source: Source) -> None:
    tuned = Origin("my-net", fine_tuned=True, taught=True, top1=0.581)
    card = model_card(replace(source, origin=tuned), 0, ())
    assert (
        "Fine-tuned from my-net, whose top-1 on val is 58.10 %; this network's is 50.00 %." in card
    )
    assert "fine-tuned from my-net, which taught them as well. Its license applies." in card
    taught = Origin("the original", fine_tuned=False, taught=True, licensed=False)
    card = model_card(replace(source, origin=taught), 0, ())
    assert "The weights were trained from scratch, taught by the original. License" in card
    assert "whose top-1" not in card
