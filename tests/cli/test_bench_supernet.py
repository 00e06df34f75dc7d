"""``octnas bench --supernet`` as a user types it; no test looks at how long anything takes."""

import json

import pytest

from tests.cli.conftest import Octnas
from tests.pipeline.tiny import EXPERIMENT

SMALL = ("--set", "space.backbone_args.channels=[4, 8, 8]", "--threads", "1", "--repeats", "6")
COMMAND = ("bench", "--supernet", str(EXPERIMENT), *SMALL)
WAYS = ["uniform", "by_macs", "sandwich"]


def test_a_table_for_a_reader(octnas: Octnas) -> None:
    result = octnas(*COMMAND, "--batch", "4")
    assert result.code == 0
    assert "training steps of 4 images, cpu, float32, threads: 1, medians of 6 × 4" in result.out
    rows = [line for line in result.out.splitlines() if line.startswith("│")]
    names = [row.split("│")[1].strip() for row in rows]
    assert names == ["vanilla", *WAYS, *(f"{way}, by role" for way in WAYS)]


def test_json_and_the_experiments_batch(octnas: Octnas) -> None:
    changes = ("supernet.recipe.batch_size=6", "supernet.samples=1", "supernet.teacher=0.5")
    sets = [word for change in changes for word in ("--set", change)]
    result = octnas(*COMMAND, *sets, "--precision", "bfloat16", "--json")
    assert result.code == 0
    document = json.loads(result.out)
    assert document["settings"]["batch_size"] == 6
    networks = {row["what"]: row["networks"] for row in document["rows"]}
    assert networks["vanilla"] == networks["uniform"] == networks["by_macs, by role"] == 1
    # Both ends and one that is drawn; the teacher is the dearest whatever the experiment says.
    assert networks["sandwich"] == networks["sandwich, by role"] == 3
    for row in document["rows"]:
        assert row["images_per_second"] == pytest.approx(6 * row["steps_per_second"])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--batch", "1"), "batch: found 1, allowed: 2 or more"),
        (("--batch", "x"), "batch: found 'x'"),
        (("--repeats", "5"), "repeats: found 5, allowed: 6 or more"),
        (("--device", "moon"), "device: found 'moon'"),
        (("--precision", "int8"), "precision: found 'int8'"),
        (("--set", "supernet.macs=[0, 0.001]"), "MACs hold none"),
        (("--data", "x.yaml"), "one of --data and --supernet"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    octnas: Octnas, extra: tuple[str, ...], message: str
) -> None:
    result = octnas(*COMMAND, *extra)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
