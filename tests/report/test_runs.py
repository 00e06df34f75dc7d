from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from octnas.report.data import ReportData
from octnas.report.runs import (
    ComparedRun,
    differing,
    flat,
    groups,
    rank_rows,
    ranked,
    write_runs_page,
)
from octnas.report.verdicts import areas_by_seed
from octnas.results.networks import SEARCHED
from octnas.results.verdict import Verdict
from tests.report.test_page import ATTACK, Page

Make = Callable[..., ReportData]


def compared(label: str, data: ReportData, digest: str = "d", **settings: object) -> ComparedRun:
    return ComparedRun(label, replace(data, digest=digest, recipe="r"), settings)


@pytest.fixture
def three(make_data: Make) -> list[ComparedRun]:
    """Two of the same images, the second one better, and one of others."""
    return [
        compared("low", make_data(searched=(0.60, 0.61, 0.62), uniform=(0.5, 0.51, 0.52)), seed=0),
        compared("high", make_data(searched=(0.80, 0.81, 0.82), uniform=(0.5, 0.51, 0.5)), seed=1),
        compared("other", make_data(searched=(0.9, 0.9, 0.91)), "e", seed=0),
    ]


def test_only_equal_images_and_recipes_are_a_group(three: list[ComparedRun]) -> None:
    assert [[run.label for run in group] for group in groups(three)] == [["low", "high"], ["other"]]
    other = replace(three[1], data=replace(three[1].data, recipe="another"))
    assert len(groups([three[0], other])) == 2


def test_ranks_are_by_hypervolume_with_one_reference(three: list[ComparedRun]) -> None:
    first, second = ranked(three[:2])
    assert (first.run.label, second.run.label) == ("high", "low")
    macs, worst = three[0].data.space.vanilla_macs, 1 - 0.5
    areas = areas_by_seed(three[1].data.of_role(SEARCHED), macs, worst)
    assert first.area == pytest.approx(sum(areas) / 3)
    assert first.behind is None
    assert second.behind is not None
    assert second.behind.verdict is Verdict.WORSE
    assert second.behind.points == pytest.approx(second.area - first.area)


def test_what_may_be_said(three: list[ComparedRun], make_data: Make) -> None:
    rows = {row[0]: row for row in rank_rows(three)}
    assert rows["high"][3] == "first"
    assert rows["low"][3].startswith("behind the first (−")
    assert rows["other"][3].startswith("not ranked")
    one_seed = [
        compared("a", make_data(searched=(0.7,))),
        compared("b", make_data(searched=(0.8,))),
    ]
    said = {row[0]: row[3] for row in rank_rows(one_seed)}
    assert "the noise of training is unknown" in said["a"]
    bare = [three[0], compared("nothing", make_data())]
    assert {row[0]: row[2] for row in rank_rows(bare)}["nothing"] == "not trained"


def test_a_run_that_goes_on_is_not_ranked(three: list[ComparedRun]) -> None:
    going = replace(three[1].data, unfinished={"retrain": "has begun"})
    rows = {row[0]: row for row in rank_rows([three[0], replace(three[1], data=going)])}
    assert rows["high"][2:4] == ("not finished", "not ranked: its networks are not all trained")
    assert rows["low"][3] == "first"


def test_settings_that_differ() -> None:
    document = {"a": {"b": [1, {"c": 2}], "d": "x"}, "e": None}
    assert flat(document) == {"a.b": [1, {"c": 2}], "a.d": "x", "e": None}
    runs = [ComparedRun(str(n), None, {"same": 1, "own": n}) for n in range(2)]  # type: ignore[arg-type]
    more = ComparedRun("2", None, {"same": 1})  # type: ignore[arg-type]
    assert differing(runs) == {"own": ["0", "1"]}
    assert differing([*runs, more]) == {"own": ["0", "1", "–"]}


def test_the_page_escapes_labels_and_settings(three: list[ComparedRun], tmp_path: Path) -> None:
    strange = [replace(three[0], label=ATTACK, settings={ATTACK: ATTACK}), *three[1:]]
    write_runs_page(strange, tmp_path / "bad.html")
    write_runs_page([replace(three[0], settings={"x": "y"}), *three[1:]], tmp_path / "good.html")
    bad, good = (Page((tmp_path / name).read_text()) for name in ("bad.html", "good.html"))
    assert bad.open == []
    assert [tag for tag, _ in bad.elements] == [tag for tag, _ in good.elements]
    assert len(bad.figures()) == 2
    assert bad.text("th", "td").count(ATTACK) == 4
