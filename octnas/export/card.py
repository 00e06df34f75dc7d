"""The model card of an exported network, in the Hugging Face hub's layout."""

from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCardData

from octnas.export.onnx_file import FILES as ONNX_FILES
from octnas.export.record import Variant
from octnas.export.source import Source
from octnas.export.tensorrt_engine import trtexec_line
from octnas.nn.cost import cost

CARD_FILE = "README.md"
UNKNOWN = "unknown"
_CLASSES_SHOWN = 100


def model_card(source: Source, moved: int, variants: Sequence[Variant]) -> str:
    """The card as Markdown with the hub's metadata before it.

    Args:
        source: the network.
        moved: MACs that exported graphs have beyond the architecture's.
        variants: all that the folder holds.
    """
    parts = (
        _head(source),
        _results(source),
        _files(source, moved, variants),
        _loading(source, variants),
        _data(source),
        _licence(source),
        _alphas(source),
    )
    return f"---\n{_metadata(source)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(source: Source) -> str:
    result = EvalResult(
        task_type="image-classification",
        dataset_type=source.data["source"],
        dataset_name=source.data["source"],
        dataset_split="val",
        metric_type="accuracy",
        metric_name="top-1",
        metric_value=round(source.retrained.runs[_own(source)].metrics["val_top1"], 4),
    )
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "octnas", "octave-convolution"],
        # Without a licence: a training from scratch settles nothing.
        model_name=source.network.slug,
        eval_results=[result],
    )
    text: str = data.to_yaml()
    return text


def _own(source: Source) -> int:
    """Which of the trainings these weights come from."""
    return [run.seed for run in source.retrained.runs].index(source.seed)


def _head(source: Source) -> str:
    network, size = source.network, "×".join(map(str, source.network.architecture.input_size))
    share = network.cost.macs / source.vanilla_macs
    return (
        f"# {network.name}\n\n"
        f"An octave network ({network.architecture.backbone}, images of {size}, "
        f"{len(source.class_names)} classes), whose channels are in part kept at half resolution "
        "([Chen et al. 2019](https://arxiv.org/abs/1904.05049)). Found and trained by octnas; "
        f"architecture `{network.architecture.id}`.\n\n"
        f"{network.cost.macs / 1e6:,.3f} M multiply-adds for one image ({share:.1%} of those at "
        f"α = 0), {network.cost.params:,} parameters, {network.cost.activation_bytes:,} bytes of "
        "activations in float32."
    )


def _results(source: Source) -> str:
    rows = [
        f"| {run.seed}{' (these weights)' if run.seed == source.seed else ''} "
        f"| {100 * run.metrics['val_top1']:.2f} | {run.metrics['val_loss']:.4f} |"
        for run in source.retrained.runs
    ]
    found = source.retrained
    std = found.std("val_top1")
    spread = "" if std is None else f" ± {100 * std:.2f}"
    note = f"Mean over seeds: {100 * found.mean('val_top1'):.2f}{spread} % top-1." if std else ""
    table = "\n".join(("| seed | top-1, % | loss |", "| --- | --- | --- |", *rows))
    return f"## Results\n\nOn the val part, at the end of training:\n\n{table}\n\n{note}".rstrip()


def _files(source: Source, moved: int, variants: Sequence[Variant]) -> str:
    if not variants:
        return "## Files\n\nNone."
    rows = [
        f"| `{variant.files[0]}` | {variant.format} | {variant.precision} "
        f"| {variant.bytes / 1e6:.2f} MB | {variant.comparison.difference:.1e} "
        f"| {variant.comparison.agreement:.2%} | {variant.comparison.top1:.2%} |"
        for variant in variants
    ]
    head = "| file | format | precision | size | difference | agreement | top-1 |"
    table = "\n".join((head, "| --- | --- | --- | --- | --- | --- | --- |", *rows))
    images = {v.comparison.images: v.source_top1 for v in variants}
    text = (
        "## Files\n\nEach was run against the trained network on images of the val part ("
        + "; ".join(f"{n:,}, of which it finds {top1:.2%}" for n, top1 in images.items())
        + "). Difference: the largest of a logit, as a share of the image's largest. Agreement: "
        f"share of the images with the same answer.\n\n{table}"
    )
    if moved and any(variant.macs for variant in variants):
        text += (
            f"\n\nThe exported graphs have {source.network.cost.macs + moved:,} multiply-adds, "
            f"{moved:,} more than the architecture, since engines are faster where some 1×1 "
            "convolutions come after upsampling instead of before."
        )
    return text


def _loading(source: Source, variants: Sequence[Variant]) -> str:
    formats = dict.fromkeys(variant.format for variant in variants)
    sections = [_LOADING[name] for name in formats if name in _LOADING]
    if "onnx" in formats:
        sections.append(_tensorrt(source, variants))
    mean, std = source.preparation["mean"], source.preparation["std"]
    how = (
        f"Images: {'×'.join(map(str, source.network.architecture.input_size))}, scaled to 0–1, "
        f"then less {_numbers(mean)} and over {_numbers(std)}; resized "
        f"({source.preparation['interpolation']}) so that the centre crop is "
        f"{source.preparation['crop_pct']:g} of the side."
    )
    return "\n\n".join(("## Loading", how, *sections))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


_LOADING = {
    "timm": """```python
import octnas, octnas.nn, timm  # octnas registers the network with timm

network = timm.create_model("local-dir:FOLDER", pretrained=True)  # or hf-hub:NAME/REPOSITORY
network = octnas.load("FOLDER")  # the same
```""",
    "onnx": """```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(["logits"], {"images": images})[0]  # float32, any number of images
```""",
    "openvino": """```python
import openvino

# CPUs that can would compute in bfloat16 without the hint.
model = openvino.Core().compile_model(
    "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
)
logits = model([images])[0]
```""",
    "pt2": """```python
import torch

network = torch.export.load("model.pt2").module()
```""",
}


def _tensorrt(source: Source, variants: Sequence[Variant]) -> str:
    size = source.network.architecture.input_size
    lines = [
        trtexec_line(variant.precision, size)
        for variant in variants
        if variant.format == "onnx" and variant.precision in ONNX_FILES
    ]
    built = any(variant.format == "tensorrt" for variant in variants)
    note = "" if built else " (not tried here)"
    return f"TensorRT, on the GPU that will run it{note}:\n\n```\n" + "\n".join(lines) + "\n```"


def _data(source: Source) -> str:
    counts = ", ".join(f"{count:,} {part}" for part, count in source.data["counts"].items())
    return (
        f"## Data\n\n{source.data['source']}, {source.data['classes']:,} classes; images: "
        f"{counts}; digest `{source.data['digest']}`.\n\n"
        f"Classes, in the order of the logits: {_classes(source.class_names)}."
    )


def _classes(names: Sequence[str]) -> str:
    """By number, as code, in which Markdown interprets nothing; of many the first ones."""
    shown = [f"{number} `{_line(name)}`" for number, name in enumerate(names[:_CLASSES_SHOWN])]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f", and {more:,} more in `export.json`" if more else "")


def _line(name: str) -> str:
    return " ".join(name.replace("`", "'").split())


def _licence(source: Source) -> str:
    return (
        "## Licence\n\nThe weights were trained from scratch: they come from no other weights. "
        f"Licence of the data: {source.data_license or UNKNOWN}."
    )


def _alphas(source: Source) -> str:
    rows = [
        f"| {site.name} | {site.alpha:g} | {site.low_channels} of {site.channels} |"
        for site in cost(source.network.architecture).sites
    ]
    table = "\n".join(("| site | α | channels at half resolution |", "| --- | --- | --- |", *rows))
    return f"## α by site\n\nIn the order in which data reaches them.\n\n{table}"
