"""The model card of an exported network, in the layout of the Hugging Face Hub."""

from collections.abc import Iterable, Sequence

from huggingface_hub import EvalResult, ModelCardData

from octnas.export.engines import trtexec_command
from octnas.export.record import Variant
from octnas.export.source import Source
from octnas.nn.cost import cost
from octnas.results.networks import PRUNED, SeedResult

CARD_FILE = "README.md"
_CLASSES_SHOWN = 100


def model_card(source: Source, moved: int, variants: Sequence[Variant]) -> str:
    """The card as Markdown, with the Hub's metadata first; see `octnas.export.record`."""
    parts = (
        _head(source),
        _results(source),
        _files(source, moved, variants),
        _loading(source, variants),
        _data(source),
        f"## License\n\n{_origin(source)} License of the data: {source.data_license or 'unknown'}.",
        _widths(source) if source.network.role == PRUNED else _alphas(source),
    )
    return f"---\n{_metadata(source)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _origin(source: Source) -> str:
    """Where the weights come from, in a sentence or two."""
    origin = source.origin
    if origin is None:
        return "The weights were trained from scratch, without pretrained weights."
    if origin.fine_tuned:
        how = f"fine-tuned from {origin.name}{', which taught them as well' * origin.taught}"
    else:
        how = f"trained from scratch, taught by {origin.name}"
    return f"The weights were {how}.{' Its license applies.' * origin.licensed}"


def _own(source: Source) -> SeedResult:
    """The result of these weights."""
    (own,) = (run for run in source.retrained.runs if run.seed == source.seed)
    return own


def _metadata(source: Source) -> str:
    result = EvalResult(
        task_type="image-classification",
        dataset_type=source.data["source"],
        dataset_name=source.data["source"],
        dataset_split="val",
        metric_type="accuracy",
        metric_name="top-1",
        metric_value=round(_own(source).metrics["val_top1"], 4),
    )
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "octnas", *["octave-convolution"] * _octaves(source)],
        # No license: it depends on the data's, which may be unknown.
        model_name=source.network.slug,
        eval_results=[result],
    )
    text: str = data.to_yaml()
    return text


def _octaves(source: Source) -> bool:
    """Whether the network has channels at half resolution."""
    return any(source.network.architecture.alphas.values())


def _size(source: Source) -> str:
    return "×".join(map(str, source.network.architecture.input_size))


def _head(source: Source) -> str:
    network = source.network
    share = network.cost.macs / source.vanilla_macs
    what = "A plain network, trained by octnas as a baseline."
    if network.role == PRUNED:
        what = "A network without its least important channels, which Torch-Pruning removed."
    elif _octaves(source):
        what = (
            "An octave convolution network ([Chen et al. 2019](https://arxiv.org/abs/1904.05049)): "
            "a share α of the channels of each layer is kept at half resolution. Found and trained "
            "by octnas."
        )
    return (
        f"# {network.name}\n\n{what}\n\n- Backbone: {network.architecture.backbone}\n"
        f"- Architecture: `{network.architecture.id}`\n"
        f"- Input: {_size(source)}; {len(source.class_names):,} classes\n"
        f"- MACs per image: {network.cost.macs / 1e6:,.3f} M ({share:.1%} of those at α = 0)\n"
        f"- Parameters: {network.cost.params:,}\n"
        f"- Activations in float32: {network.cost.activation_bytes:,} bytes"
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _results(source: Source) -> str:
    found = source.retrained
    rows = []
    for run in found.runs:
        own = " (these weights)" if run.seed == source.seed else ""
        top1, loss = run.metrics["val_top1"], run.metrics["val_loss"]
        rows.append((f"{run.seed}{own}", f"{100 * top1:.2f}", f"{loss:.4f}"))
    text = "## Results\n\nOn the val images, after training:\n\n"
    text += _table(("seed", "top-1, %", "loss"), rows)
    if std := found.std("val_top1"):
        mean = found.mean("val_top1")
        text += f"\n\nMean over seeds: {100 * mean:.2f} ± {100 * std:.2f} % top-1."
    if (origin := source.origin) is not None and origin.top1 is not None:
        how = "Fine-tuned from" if origin.fine_tuned else "Taught by"
        text += (
            f"\n\n{how} {origin.name}, whose top-1 on val is {100 * origin.top1:.2f} %; this "
            f"network's is {100 * _own(source).metrics['val_top1']:.2f} %."
        )
    return text


def _files(source: Source, moved: int, variants: Sequence[Variant]) -> str:
    if not variants:
        return "## Files\n\nNone."
    rows = [
        (
            f"`{variant.files[0]}`",
            variant.format,
            variant.precision,
            f"{variant.bytes / 1e6:.2f} MB",
            f"{variant.comparison.difference:.1e}",
            f"{variant.comparison.agreement:.2%}",
            f"{variant.comparison.top1:.2%}",
        )
        for variant in variants
    ]
    columns = ("file", "format", "precision", "size", "difference", "agreement", "top-1")
    images = {variant.comparison.images: variant.source_top1 for variant in variants}
    text = (
        "## Files\n\nEach file was compared with the trained network on val images ("
        + "; ".join(f"{n:,} images, trained network {top1:.2%} top-1" for n, top1 in images.items())
        + "). Difference: the largest difference of a logit, relative to the largest logit of its "
        "image. Agreement: share of images for which both predict the same class.\n\n"
        + _table(columns, rows)
    )
    if moved and any(variant.macs for variant in variants):
        text += (
            f"\n\nThe exported graphs have {source.network.cost.macs + moved:,} MACs, {moved:,} "
            "more than the architecture: some 1×1 convolutions come after upsampling instead of "
            "before, which inference engines compute faster."
        )
    return text


def _loading(source: Source, variants: Sequence[Variant]) -> str:
    formats = dict.fromkeys(variant.format for variant in variants)
    sections = [_LOADING[name] for name in formats if name in _LOADING]
    if "onnx" in formats:
        sections.append(_tensorrt(source, variants))
    mean, std = (
        ", ".join(f"{value:g}" for value in source.preparation[name]) for name in ("mean", "std")
    )
    how = (
        f"Preprocessing: resize ({source.preparation['interpolation']}) so that the center crop "
        f"of {_size(source)} covers {source.preparation['crop_pct']:g} of the side; scale to 0–1; "
        f"normalize with mean {mean} and standard deviation {std}."
    )
    return "\n\n".join(("## Usage", how, *sections))


_LOADING = {
    "timm": """```python
import octnas, octnas.nn, timm  # octnas.nn registers the network with timm

network = timm.create_model("local-dir:FOLDER", pretrained=True)  # or hf-hub:NAME/REPOSITORY
network = octnas.load("FOLDER")  # equivalent
```""",
    "onnx": """```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(["logits"], {"images": images})[0]  # float32, any batch size
```""",
    "openvino": """```python
import openvino

# Without the hint, CPUs that support bfloat16 compute in it.
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
    precisions = [variant.precision for variant in variants if variant.format == "onnx"]
    commands = "\n".join(trtexec_command(precision, size) for precision in precisions)
    tested = any(variant.format == "tensorrt" for variant in variants)
    note = "" if tested else ", not tested"
    return f"TensorRT (build the engine on the target GPU{note}):\n\n```\n{commands}\n```"


def _data(source: Source) -> str:
    counts = ", ".join(f"{count:,} {part}" for part, count in source.data["counts"].items())
    return (
        f"## Data\n\n{source.data['source']}, {source.data['classes']:,} classes; images: "
        f"{counts}; digest `{source.data['digest']}`.\n\n"
        f"Classes, in the order of the logits: {_classes(source.class_names)}."
    )


def _classes(names: Sequence[str]) -> str:
    """The first classes by number, as code, so that Markdown interprets nothing in their names."""
    shown = [
        f"{number} `{' '.join(name.replace('`', chr(39)).split())}`"
        for number, name in enumerate(names[:_CLASSES_SHOWN])
    ]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f", and {more:,} more in `export.json`" if more else "")


def _widths(source: Source) -> str:
    """The channels that are left at each site."""
    widths = source.network.architecture.backbone_args["widths"]
    table = _table(("site", "channels"), [(site, f"{left:,}") for site, left in widths.items()])
    return f"## Channels by site\n\n{table}"


def _alphas(source: Source) -> str:
    rows = [
        (site.name, f"{site.alpha:g}", f"{site.low_channels} of {site.channels}")
        for site in cost(source.network.architecture).sites
    ]
    table = _table(("site", "α", "channels at half resolution"), rows)
    return f"## α by site\n\nFrom input to output.\n\n{table}"
