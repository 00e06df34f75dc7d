"""``octnas cost``: the cost of a model at given α."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from octnas.cli.run import wide_console
from octnas.errors import ConfigError

if TYPE_CHECKING:
    from octnas.nn.cost import ModelCost


def cost(
    model: Annotated[
        str | None, typer.Argument(help="Name of a timm ResNet.", show_default=False)
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="α of all sites except the stem and the last stage, which are at 0.", min=0, max=1
        ),
    ] = None,
    architecture: Annotated[
        Path | None, typer.Option(help="An architecture file instead of a model and an α.")
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(help="Height and width of the images.", min=1)
    ] = None,
    channel_multiple: Annotated[
        int, typer.Option(help="Round low channels down to a multiple of this.", min=1)
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print MACs, parameters and activation memory, and a row per site."""
    found = _find(model, alpha, architecture, input_size, channel_multiple)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        print_cost(found)


def _find(
    model: str | None,
    alpha: float | None,
    architecture: Path | None,
    side: int | None,
    channel_multiple: int,
) -> "ModelCost":
    if (model is None) == (architecture is None):
        raise ConfigError("octnas cost: give either MODEL or --architecture FILE")
    if architecture is not None and (alpha is not None or channel_multiple != 1):
        raise ConfigError(
            "octnas cost: --alpha and --channel-multiple need MODEL instead of --architecture"
        )
    from octnas.nn.cost import cost as cost_of
    from octnas.nn.load import read_architecture

    given = read_architecture(architecture) if architecture else None
    channels = given.input_size[0] if given else 3
    return cost_of(
        given or model or "",
        alpha,
        input_size=None if side is None else (channels, side, side),
        channel_multiple=channel_multiple,
    )


def print_cost(found: "ModelCost", identity: str = "") -> None:
    """Print totals and a row per site.

    Args:
        found: the costs.
        identity: id to print instead of the architecture's, as for a file that omits sites.
    """
    console = wide_console()
    architecture = found.architecture
    size = "×".join(map(str, architecture.input_size))
    share = found.macs / found.vanilla_macs
    console.print(f"{architecture.backbone}, {size}, architecture {identity or architecture.id}")
    console.print(f"MACs              {found.macs / 1e9:.3f} G ({share:.1%} of vanilla)")
    console.print(f"Parameters        {found.params / 1e6:.3f} M")
    console.print(f"Activation memory {found.activation_bytes / 1e6:.3f} MB (one image, float32)")
    table = Table("site", "α", "low channels", "MACs of its convolutions")
    for site in found.sites:
        low = f"{site.low_channels} of {site.channels}"
        table.add_row(site.name, f"{site.alpha:g}", low, f"{site.macs / 1e6:,.3f} M")
    console.print(table)
