"""The page in Chromium, at the width of a desktop and of a phone."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octnas.report.data import Effect, Latencies, ReportData, StageTime, Timing
from octnas.report.page import write_page
from tests.report.browser import launched, opened
from tests.report.test_ranking import ranking

DESK, PHONE = 1280, 390
Make = Callable[..., ReportData]
LONG = "uniform α of a very long name that nobody would choose & <b>markup</b>"


def latencies(data: ReportData) -> tuple[Latencies, ...]:
    """A laptop at two batch sizes, and a phone with one network."""
    ids = [one.network.architecture.id for one in data.retrained]
    some = {name: Timing(0.001 * (1 + n), 0.002 * (1 + n)) for n, name in enumerate(ids)}
    return (
        Latencies("laptop", "eager", "float32", 1, 1, some),
        Latencies("laptop", "eager", "float32", 8, 1, {ids[0]: Timing(0.02)}),
        Latencies("phone", "onnxruntime", "float32", 1, 1, {}, {ids[0]: 0.03}),
    )


@pytest.fixture(scope="module")
def data(make_data: Make) -> ReportData:
    """The search has won against both baselines, and against vanilla."""
    made = make_data(
        budget=LONG,
        searched=(0.90, 0.91, 0.92),
        uniform=(0.70, 0.71, 0.72),
        increasing=(0.60, 0.61, 0.62),
        vanilla=(0.80, 0.81, 0.82),
    )
    return replace(
        made,
        latencies=latencies(made),
        effects={"stem": Effect(12.0, 1.0), "body": Effect(-3.0, 2.0)},
        rankings={"supernet": ranking()},
        correct={one.network.architecture.id: np.ones((3, 9)) for one in made.retrained[:1]},
        times={"supernet": StageTime(0.5, "1 process of 2 CPU threads")},
        links={"MLflow": "https://example.org/", "Optuna": "optuna-dashboard study.journal"},
        digest="d1",
        run="'runs/by hand'",
    )


@pytest.fixture(scope="module")
def file(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    write_page(data, path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


def names(page: Any) -> list[str]:
    """The first cells of the rows that are shown."""
    found: list[str] = page.locator("#networks tbody tr:visible th").all_inner_texts()
    return found


@pytest.mark.parametrize(("width", "scheme"), [(DESK, "light"), (PHONE, "dark")])
def test_nothing_is_cut_off_empty_or_overlapping(
    browser: Any, file: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    with opened(browser, file, width, scheme) as page:
        # The page itself is no wider than the window.
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for plot in page.locator(".plot").all():
            box = plot.locator("svg.main-svg").first.bounding_box()
            assert box["width"] > 0.8 * (width - 40)
            assert plot.locator(".point, path.js-line").count() > 0
            labels = plot.locator(".annotation-text, .xtick text, .ytick text")
            edges = [label.bounding_box() for label in labels.all()]
            outer = plot.bounding_box()
            for edge in filter(None, edges):
                assert edge["x"] >= outer["x"] - 1
                assert edge["x"] + edge["width"] <= outer["x"] + outer["width"] + 1
            assert not overlapping(list(filter(None, edges)))
        for button in page.locator(".legend button").all():
            box = button.bounding_box()
            assert box["x"] + box["width"] <= width
        shot = tmp_path / f"{width}-{scheme}.png"
        page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 50_000


def overlapping(boxes: list[dict[str, float]]) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Pairs of labels that overlap by more than a pixel."""
    return [
        (a, b)
        for number, a in enumerate(boxes)
        for b in boxes[number + 1 :]
        if min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"]) > 1
        and min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"]) > 1
    ]


def test_the_table_is_sorted_and_filtered(browser: Any, file: Path, data: ReportData) -> None:
    with opened(browser, file, DESK) as page:
        planned = names(page)
        assert planned == [one.network.name for one in data.retrained]
        page.locator("#networks thead button").nth(3).click()
        by_macs = sorted(data.retrained, key=lambda one: one.network.cost.macs)
        assert names(page) == [one.network.name for one in by_macs]
        page.locator("#networks thead button").nth(3).click()
        assert names(page) == [one.network.name for one in reversed(by_macs)]
        page.locator("#filter").fill("increasing")
        assert [name.partition(",")[0] for name in names(page)] == ["increasing"]
        assert page.locator("#shown").inner_text() == "1 of 4 networks"
    with opened(browser, file, PHONE) as page:
        page.locator("#sort").select_option(label="top-1, %")
        assert names(page)[0].startswith("increasing")
        page.locator("#descending").check()
        assert names(page)[0].startswith("searched")


def test_selecting_by_table_and_by_figure(browser: Any, file: Path, data: ReportData) -> None:
    vanilla = data.retrained[-1].network
    with opened(browser, file, DESK) as page:
        heads = page.locator("#selected thead th")
        assert [*heads.all_inner_texts()][1:-1] == [data.retrained[0].network.name]
        page.locator("#networks tbody button").last.click()
        assert heads.all_inner_texts()[2] == "vanilla"
        cells = page.locator("#selected tbody tr").first.locator("td").all_inner_texts()
        assert [cell.strip() for cell in cells] == ["0 of 16", "0 of 16", "+12.0 ± 1.0 %"]
        assert vanilla.architecture.id in page.url
        page.get_by_role("button", name="remove").first.click()
        assert heads.count() == 3
        # A point of the figure, by the event that a click makes.
        identity = data.retrained[1].network.architecture.id
        page.evaluate(
            "id => document.getElementById('retrained')"
            ".emit('plotly_click', {points: [{customdata: id}]})",
            identity,
        )
        assert "uniform" in heads.all_inner_texts()[2]
        # Both are marked in the figure.
        ring = (
            "(() => { const p = document.getElementById('retrained'); return p.data.at(-1).x; })()"
        )
        assert len(page.evaluate(ring)) == 2


def test_a_click_into_the_figure_selects(browser: Any, file: Path) -> None:
    with opened(browser, file, DESK) as page:
        before = page.locator("#selected thead th").count()
        # Of vanilla, whose point lies alone.
        point = page.locator("#retrained .scatterlayer .trace").nth(3).locator(".point").first
        point.scroll_into_view_if_needed()
        box = point.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(100)
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(400)
        assert page.locator("#selected thead th").count() == before + 1


def test_the_axis_switches(browser: Any, file: Path, data: ReportData) -> None:
    title = "document.getElementById('retrained').layout.xaxis.title.text"
    xs = "document.getElementById('retrained').data[0].x"
    lines = "document.getElementById('retrained').layout.shapes.length"
    with opened(browser, file, DESK) as page:
        assert page.evaluate(title) == "MACs"
        assert page.evaluate(lines) > 0
        page.locator("#axis").select_option("activation")
        page.wait_for_timeout(200)
        assert page.evaluate(title).startswith("activation memory")
        assert page.evaluate(xs) == [data.retrained[0].network.cost.activation_bytes]
        assert page.evaluate(lines) == 0
        page.locator("#axis").select_option("measured0")
        page.wait_for_timeout(200)
        assert page.evaluate(xs) == [1.0]
        assert (
            page.evaluate(title) == "ms measured on laptop,<br>eager, float32, batch 1, threads 1"
        )
        other = title.replace("retrained", "front")
        assert page.evaluate(other) == page.evaluate(title)
        # A figure of which nothing is known stays over MACs.
        page.evaluate("plots.find((one) => one.id === 'front').axes.measured1.x = [[null]]")
        page.locator("#axis").select_option("measured1")
        page.wait_for_timeout(200)
        assert page.evaluate(title).startswith("ms measured on laptop")
        assert page.evaluate(other) == "MACs"
        choices = page.locator("#axis option").all_inner_texts()
        assert choices[2:] == [
            "ms measured on laptop, eager, float32, batch 1, threads 1",
            "ms measured on laptop, eager, float32, batch 8, threads 1",
            "ms predicted for phone, onnxruntime, float32, batch 1, threads 1",
        ]


def test_a_winner_is_recommended(browser: Any, file: Path, data: ReportData) -> None:
    searched = data.retrained[0].network
    with opened(browser, file, DESK) as page:
        answer = page.locator("#answer")
        assert answer.locator("h3").inner_text() == f"Take {searched.name}"
        command = answer.locator("code").first.inner_text()
        assert command == (
            f"octnas export 'runs/by hand' --architecture {searched.architecture.id} --to onnx"
        )
        assert "Runner-up" in answer.inner_text()
        page.locator("[name=limit]").fill("0.000001")
        assert "No trained network fits" in answer.inner_text()
        page.locator("[name=cost]").select_option("latency")
        # The searched network takes 1 ms, the others more.
        page.locator("[name=limit]").fill("1.5")
        assert "No trained baseline fits it" in answer.inner_text()
        page.locator("[name=limit]").fill("9")
        assert answer.locator("h3").inner_text() == f"Take {searched.name}"
        page.locator("[name=batch]").select_option("8, threads 1")
        assert "3 networks have no known latency on this device" in answer.inner_text()
        assert "batch 8" in page.locator("#table-device").inner_text()
        page.locator("[name=device]").select_option("phone")
        page.locator("[name=limit]").fill("40")
        assert "ms predicted" in answer.inner_text()


def test_without_a_winner_nothing_is_recommended(
    browser: Any, make_data: Make, tmp_path: Path
) -> None:
    even = make_data(
        searched=(0.70, 0.72, 0.74), uniform=(0.70, 0.72, 0.73), vanilla=(0.7, 0.72, 0.75)
    )
    write_page(even, tmp_path / "even.html")
    with opened(browser, tmp_path / "even.html", DESK) as page:
        answer = page.locator("#answer")
        assert answer.locator("h3").inner_text() == "Keep what you have"
        assert "does not beat every baseline" in answer.inner_text()
        page.locator("[name=limit]").fill("9")
        assert "The vanilla network fits this limit" in answer.inner_text()
        assert page.locator("[name=device]").is_disabled()


def test_an_unfinished_run(browser: Any, make_data: Make, tmp_path: Path) -> None:
    early = replace(make_data(), unfinished={"retrain": "has begun"})
    write_page(early, tmp_path / "early.html", again=60)
    with opened(browser, tmp_path / "early.html", PHONE) as page:
        assert "Not finished: retrain has begun" in page.locator(".unfinished").inner_text()
        assert page.locator("#selected thead th").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE
