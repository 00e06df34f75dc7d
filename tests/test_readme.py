"""What the README shows is what runs."""

import re
from pathlib import Path

import pytest

import octnas

README = (Path(__file__).parents[1] / "README.md").read_text()


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


def test_the_table_of_costs() -> None:
    rows = re.findall(r"\| ResNet-(\d+) \| ([\d.]+) M \| (.*) \|", README)
    assert len(rows) == 4
    for depth, params, macs in rows:
        for alpha, gmacs in zip((0, 0.125, 0.25, 0.5, 0.75), macs.split(" | "), strict=True):
            found = octnas.cost(f"resnet{depth}", alpha)
            assert f"{found.macs / 1e9:.3f}" == gmacs
            assert f"{found.params / 1e6:.3f}" == params


def test_every_command_exists() -> None:
    from typer.main import get_command

    from octnas.cli.main import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    shown = set(re.findall(r"`?octnas (\w+)", README)) - {"searches"}
    assert {"run", "init", "cost", "supernet"} <= shown
    assert shown - commands == set()
