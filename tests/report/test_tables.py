import csv
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
from scipy.stats import t

from octnas.report.data import Latencies, ReportData, Timing, most_known_first
from octnas.report.page import page
from octnas.report.tables import NOT_MEASURED, SHORT, retrained_rows
from octnas.report.write import markdown, write_all
from octnas.results.networks import Retrained
from octnas.space.search_space import SearchSpace


def test_a_row_holds_the_numbers_of_its_network(full: ReportData, space: SearchSpace) -> None:
    searched, *_ = retrained_rows(full)
    stem, body, head = 3 * 16 * 9 * 64, 16 * 32 * 9 * 64, 32 * 64 * 16
    assert space.vanilla_macs == stem + body + head + 640
    # α = 0 to .5: body costs q + (1 - q)(1 - .5) of its vanilla MACs, with q = 1/4.
    assert searched["macs"] == stem + body * (0.25 + 0.75 * 0.5) + head + 640
    assert searched["macs_share"] == searched["macs"] / space.vanilla_macs
    assert searched["params"] == space.params
    # Half of body's 32 channels at a quarter of the pixels, in float32.
    assert searched["activation_bytes"] == 4 * (16 * 64 + 16 * 64 + 16 * 16 + 64 * 16)
    assert searched["seeds"] == 3
    assert searched["val_top1_mean_percent"] == pytest.approx(82.0)
    assert searched["val_top1_std_points"] == pytest.approx(100 * stdev((0.80, 0.82, 0.84)))
    assert searched["val_loss_mean"] == pytest.approx(1 - 0.82)
    assert searched["val_loss_std"] == pytest.approx(stdev((0.80, 0.82, 0.84)))
    assert searched["seconds_mean"] == pytest.approx((10 + 11 + 12) / 3)


def test_differences_are_to_the_uniform_network_of_the_budget(full: ReportData) -> None:
    rows = {row["role"]: row for row in retrained_rows(full)}
    assert rows["searched"]["difference_to_uniform_points"] == pytest.approx(100 * (0.82 - 0.72))
    assert rows["increasing"]["difference_to_uniform_points"] == pytest.approx(100 * (0.81 - 0.72))
    assert rows["uniform"]["difference_to_uniform_points"] is None
    assert rows["vanilla"]["difference_to_uniform_points"] is None


def test_no_difference_to_another_budgets_uniform(
    make_retrained: Callable[..., Retrained], full: ReportData
) -> None:
    retrained = (
        make_retrained("searched", (0.8, 0.9), "one"),
        make_retrained("uniform", (0.7, 0.8), "other"),
    )
    rows = retrained_rows(replace(full, retrained=retrained))
    assert [row["difference_to_uniform_points"] for row in rows] == [None, None]


def test_csv_round_trip(full: ReportData, tmp_path: Path) -> None:
    write_all(full, tmp_path, png=False)
    with (tmp_path / "networks.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    rows = retrained_rows(full)
    for line, row in zip(read, rows, strict=True):
        assert list(line) == list(row)
        for column, value in row.items():
            assert ("" if value is None else type(value)(line[column])) == (
                "" if value is None else value
            )


def test_one_seed_has_no_standard_deviation(
    make_data: Callable[..., ReportData], tmp_path: Path
) -> None:
    write_all(make_data(budget="a, b", searched=(0.8,)), tmp_path, png=False)
    with (tmp_path / "networks.csv").open(encoding="utf-8", newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["budget"] == "a, b"
    assert (line["seeds"], line["val_top1_std_points"], line["val_loss_std"]) == ("1", "", "")


def table_of(data: ReportData) -> str:
    """The page's table of retrained networks, with the line above it."""
    return page(data).partition('id="table-device"')[2].partition("</table>")[0]


def test_html_tables_show_what_people_read(full: ReportData) -> None:
    retrained = table_of(full)
    assert "82.0 ± 2.0" in retrained
    assert "+10.00" in retrained
    assert retrained.count("<tr") == 1 + len(full.retrained)
    # Median, 95th percentile, top-5, other sizes; and once above the table.
    assert retrained.count("not measured") == 1 + 4 * len(full.retrained)


def test_what_was_measured_stands_in_the_row(full: ReportData) -> None:
    searched, vanilla = full.retrained[0], full.retrained[-1]
    identity = searched.network.architecture.id
    runs = tuple(
        replace(run, metrics={**run.metrics, "val_top5": 0.9, "val_top1@24": 0.5 + run.seed / 100})
        for run in searched.runs
    )
    clock = Latencies("phone", "eager", "float32", 8, 1, {identity: Timing(0.002, 0.0025)})
    data = replace(
        full,
        retrained=(replace(searched, runs=runs), *full.retrained[1:]),
        latencies=(clock,),
        by_class={
            identity: np.array([0.5, 0.9, 0.7]),
            vanilla.network.architecture.id: np.array([0.9, 0.8, 0.75]),
        },
        class_names=("cat", "dog", "owl"),
        digest="d1",
    )
    row, uniform, *_ = retrained_rows(data)
    assert row["val_top5_mean_percent"] == pytest.approx(90)
    assert row["val_top1_by_size_percent"] == "24: 51.0"
    assert row["latency_device"] == "phone, eager, float32, batch 8, threads 1"
    assert (row["latency_median_ms"], row["latency_p95_ms"]) == (2.0, 2.5)
    # In the order of the loss, and none that gained.
    assert row["classes_lost"] == "cat -40.0; owl -5.0"
    assert (row["data_digest"], row["seed_list"], row["initialisation"]) == (
        "d1",
        "0 1 2",
        "from scratch",
    )
    # The interval of three seeds each with the same spread.
    expected = 100 * t.ppf(0.975, 4) * sqrt(2 * 0.02**2 / 3)
    assert row["difference_half_width_points"] == pytest.approx(expected)
    assert uniform["latency_median_ms"] is None
    assert uniform["val_top5_mean_percent"] is None


def test_a_prediction_is_no_measurement(full: ReportData) -> None:
    identity = full.retrained[0].network.architecture.id
    clock = Latencies("phone", "eager", "float32", 1, 1, predicted={identity: 0.004})
    data = replace(full, latencies=(clock,))
    row = retrained_rows(data)[0]
    assert (row["latency_median_ms"], row["latency_predicted_ms"]) == (None, 4.0)
    assert "4.000 predicted" in table_of(data)


def test_a_table_is_of_one_device(full: ReportData) -> None:
    """Never a row of one beside a row of another, whichever knows what."""
    first, second, *_ = (one.network.architecture.id for one in full.retrained)
    desk = Latencies("desk", "eager", "float32", 1, 1, predicted={first: 0.004, second: 0.003})
    phone = Latencies("phone", "eager", "float32", 1, 1, {first: Timing(0.1), second: Timing(0.2)})
    guess = replace(desk, threads=2, measured={second: Timing(0.5)})
    assert most_known_first([desk, guess, phone], [first, second]) == (phone, guess, desk)
    data = replace(full, latencies=(guess, phone, desk))
    rows = retrained_rows(data)
    assert {row["latency_device"] for row in rows} == {"desk, eager, float32, batch 1, threads 2"}
    assert [SHORT[-1].text(row) for row in rows[:3]] == ["4.000 predicted", "500.000", NOT_MEASURED]
    text = markdown(data, ())
    assert "| 4.000 predicted |" in text
    assert "| 500.000 |" in text
    assert "desk, eager, float32, batch 1, threads 2" in text


def test_the_original_is_the_first_row(tuned: ReportData) -> None:
    original, *others = retrained_rows(tuned)
    assert (original["role"], original["name"]) == ("original", "your network")
    assert (original["macs_share"], original["initialisation"]) == (1, "as it came")
    assert original["val_top1_mean_percent"] == pytest.approx(83.0)
    assert original["val_top1_std_points"] is original["seconds_mean"] is None
    assert len(others) == len(tuned.retrained)
    assert {row["initialisation"] for row in others} == {"from the original"}
    assert "your network" in page(tuned)
