"""What the README and the pages beside it show is what runs."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import octnas
from octnas.cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    name: (ROOT / name).read_text()
    for name in (
        "README.md",
        "search_spaces/README.md",
        "runs/README.md",
        "tests/benchmarks/README.md",
        "CONTRIBUTING.md",
    )
}
ALL = "\n".join(PAGES.values())


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200
    assert len(README.split()) <= 2500


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Files that exist, and headings of this or another page."""
    for file, anchor in re.findall(r"\]\((?!https:)([^)#]*)#?([^)]*)\)", PAGES[page]):
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), f"{page}: {file}"
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
            assert anchor in slugs, f"{page}: {anchor}"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_python_examples_print_what_their_comments_say(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    printed = []
    for block in blocks():
        if "local-dir" in block:  # needs the folder that `make demo` makes
            continue
        exec(block, names)
        printed += re.findall(r"print\(.*\)  # (.*)", block)
    assert len(printed) == 2
    assert capsys.readouterr().out.splitlines() == printed


@pytest.mark.parametrize("deep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_table_of_costs(deep: bool) -> None:
    rows = re.findall(r"\| ResNet-(\d+) \| ([\d.]+) M \| (.*) \|", ALL)
    assert len(rows) == 4
    for depth, params, macs in rows:
        if (int(depth) > 50) != deep:
            continue
        for alpha, gmacs in zip((0, 0.125, 0.25, 0.5, 0.75), macs.split(" | "), strict=True):
            found = octnas.cost(f"resnet{depth}", alpha)
            assert f"{found.macs / 1e9:.3f}" == gmacs
            assert f"{found.params / 1e6:.3f}" == params


def test_every_command_exists() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    shown = set(re.findall(r"(?:^|`)octnas (\w+)", ALL, flags=re.MULTILINE))
    assert {"run", "init", "cost", "supernet"} <= shown
    assert shown - commands == set()


def shown_commands() -> list[list[str]]:
    """Every `octnas …` in a block that is not Python, its lines joined, comments left out."""
    found = []
    for text in PAGES.values():
        for language, block in re.findall(r"```(\w*)\n(.*?)\n *```", text, flags=re.DOTALL):
            if language:
                continue
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["octnas"]:
                    found.append(words[1:])
    return found


@pytest.mark.parametrize("words", shown_commands(), ids=" ".join)
def test_every_command_is_taken_with_its_options(words: list[str]) -> None:
    """The program parses it, without doing anything; files need not be there."""
    command, context = get_command(app), None
    rest = list(words)
    while True:
        name = rest.pop(0) if context is not None or rest else ""
        if context is None:
            context = command.make_context("octnas", [name, *rest], resilient_parsing=True)
        command = command.commands[name]  # type: ignore[attr-defined]
        if not hasattr(command, "commands"):
            break
        if rest[0] not in command.commands:  # `octnas latency EXPERIMENT` measures
            rest.insert(0, "measure")
    context = command.make_context(name, rest)
    assert context.command is command


def test_there_are_commands_to_parse() -> None:
    assert len(shown_commands()) > 20
    assert ["init", "--minimal", "--data", "PATH"] in shown_commands()


def test_every_benchmark_has_the_options_that_are_shown() -> None:
    """Of its own or of all of them; what follows ``--set`` is octnas's."""
    folder = Path(__file__).parent / "benchmarks"
    joined = ALL.replace("\\\n", " ")
    shown = re.findall(r"^python tests/benchmarks/(\w+\.py) (.*)", joined, flags=re.MULTILINE)
    assert len({script for script, _ in shown}) >= 5
    for script, rest in shown:
        source = (folder / script).read_text() + (folder / "arguments.py").read_text()
        for option in re.findall(r"--[a-z-]+", rest):
            assert f'"{option}"' in source, f"{script} {option}"


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", ALL, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_results_are_those_of_the_example() -> None:
    """Every "mean ± deviation (M MACs)" of the table is a row of its file."""
    shown = set(re.findall(r"([\d.]+) ± ([\d.]+)\*{0,2} \(([\d.]+) M\)", ALL))
    with (ROOT / "runs/examples/tiny-imagenet-16/networks.csv").open() as file:
        rows = list(csv.DictReader(file))
    known = {
        (
            f"{float(row['val_top1_mean_percent']):.1f}",
            f"{float(row['val_top1_std_points']):.1f}",
            f"{int(row['macs']) / 1e6:.3f}",
        )
        for row in rows
    }
    assert len(shown) == 13
    assert shown <= known
