"""``octnas architecture``: show, compare and validate architecture files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from octnas.cli.cost import print_cost
from octnas.cli.run import wide_console
from octnas.errors import ArchitectureError

if TYPE_CHECKING:
    from octnas.nn.cost import ModelCost
    from octnas.space.architecture import Architecture
    from octnas.space.search_space import SearchSpace

Files = Annotated[
    list[Path],
    typer.Argument(help="Architecture files, or exported folders.", show_default=False),
]
File = Annotated[
    Path, typer.Argument(help="An architecture file, or exported folder.", show_default=False)
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Show, compare and validate architecture files.")
    for command in (show, diff, validate):
        group.command()(command)
    app.add_typer(group, name="architecture")


def show(files: Files) -> None:
    """Print MACs, parameters and activation memory of architectures, and a row per site."""
    from octnas.nn.cost import cost
    from octnas.nn.load import read_architecture

    for file in files:
        architecture = read_architecture(file)
        print_cost(cost(architecture), architecture.id)


def diff(first: File, second: File) -> None:
    """Print the differences between two architectures; exit with 1 if there are any."""
    from octnas.nn.load import read_architecture

    one, other = read_architecture(first), read_architecture(second)
    if one == other:
        typer.echo(f"the same architecture: {one.id}")
        return
    _print_difference(one, other)
    raise typer.Exit(1)


def validate(
    files: Files,
    space: Annotated[
        Path | None,
        typer.Option(
            help="A run directory, or its space.json; each α must be one of its choices.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Validate architecture files, one line each; exit with 2 if one is invalid."""
    from octnas.nn.load import read_architecture

    choices = None if space is None else _read_space(space)
    wrong = []
    for file in files:
        try:
            architecture = read_architecture(file)
            if choices is not None:
                _check_choices(file, architecture, choices)
        except ArchitectureError as error:
            wrong.append(str(error))
        else:
            typer.echo(f"{file}: {architecture.id}, {architecture.backbone}")
    if wrong:
        raise ArchitectureError("\n".join(wrong))


def _check_choices(file: Path, architecture: "Architecture", space: "SearchSpace") -> None:
    try:
        space.check_choices(architecture)
    except ArchitectureError as error:
        raise ArchitectureError(f"{file}: {error}") from error


def _read_space(path: Path) -> "SearchSpace":
    """The search space of a run directory, or of the file itself."""
    from octnas.io.files import read_json
    from octnas.space.search_space import SearchSpace

    file = path / "space" / "space.json" if path.is_dir() else path
    return read_json(
        file, SearchSpace, error=ArchitectureError, remedy="give a run directory or its space.json"
    )


def _print_difference(one: "Architecture", other: "Architecture") -> None:
    from octnas.nn.cost import cost

    costs = cost(one), cost(other)
    table = Table("", one.id, other.id)
    documents = one.to_dict(), other.to_dict()
    for key in documents[0]:
        if key != "alphas" and documents[0][key] != documents[1][key]:
            table.add_row(key, *(str(document[key]) for document in documents))
    for name, cells in _site_cells(*costs):
        if cells[0] != cells[1]:
            table.add_row(name, *cells)
    for name, values in _totals(*costs):
        table.add_row(name, *values)
    console = wide_console(100)
    console.print(table)


def _site_cells(one: "ModelCost", other: "ModelCost") -> list[tuple[str, list[str]]]:
    """α and low channels of every site of either."""
    by_name: list[dict[str, Any]] = [{s.name: s for s in found.sites} for found in (one, other)]
    rows = []
    for name in dict.fromkeys([*by_name[0], *by_name[1]]):
        sites = [sites.get(name) for sites in by_name]
        rows.append(
            (
                f"α of {name}",
                [
                    "no such site" if s is None else f"{s.alpha:g} ({s.low_channels}/{s.channels})"
                    for s in sites
                ],
            )
        )
    return rows


def _totals(one: "ModelCost", other: "ModelCost") -> list[tuple[str, list[str]]]:
    both = (one, other)
    return [
        ("MACs", [f"{found.macs:,}" for found in both]),
        ("share of vanilla", [f"{found.macs / found.vanilla_macs:.1%}" for found in both]),
        ("activation bytes", [f"{found.activation_bytes:,}" for found in both]),
    ]
