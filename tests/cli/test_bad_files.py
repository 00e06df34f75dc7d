"""Whatever a file holds, the program does what it says or says why not: never a traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from octnas.space.architecture import Architecture
from tests.cli.conftest import Octnas, Result
from tests.mutations import mutated_bytes, mutated_json
from tests.pipeline.tiny import EXPERIMENT

ARCHITECTURE = Architecture("resnet18", (3, 32, 32), {"layer1": 0.5})
EXAMPLES = [5, pytest.param(200, marks=pytest.mark.slow)]


def check(content: bytes, examples: int, run: Callable[[bytes], Result]) -> set[int]:
    """Run with files that differ from one that is right; the exit codes that were seen."""
    codes = set()

    # Without shrinking, which takes minutes where an example takes a second.
    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(mutated_json(content), mutated_bytes(content)))
    def one(spoilt: bytes) -> None:
        done = run(spoilt)
        codes.add(done.code)
        assert done.code in (0, 2), done.err
        if done.code:
            assert done.err.startswith("octnas: "), done.err
            assert "Traceback" not in done.err

    one()
    return codes


@pytest.mark.parametrize("examples", EXAMPLES)
def test_an_experiment(octnas: Octnas, tmp_path: Path, examples: int) -> None:
    file, out = tmp_path / "experiment.yaml", tmp_path / "jobs"

    def run(content: bytes) -> Result:
        file.write_bytes(content)
        return octnas("slurm", str(file), "--out", str(out))

    # JSON is YAML, too.
    whole = json.dumps(yaml.safe_load(EXPERIMENT.read_text())).encode()
    assert run(whole).code == 0
    assert 2 in check(whole, examples, run)


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("command", ["show", "validate"])
def test_an_architecture(octnas: Octnas, tmp_path: Path, command: str, examples: int) -> None:
    file = tmp_path / "one.json"

    def run(content: bytes) -> Result:
        file.write_bytes(content)
        return octnas("architecture", command, str(file))

    whole = json.dumps(ARCHITECTURE.to_dict()).encode()
    assert run(whole).code == 0
    assert 2 in check(whole, examples, run)
    assert list(tmp_path.iterdir()) == [file]
