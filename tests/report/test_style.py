import pytest

from octnas.report.style import (
    format_bytes,
    format_count,
    format_points,
    format_seconds,
    format_top1,
    plot_text,
    plural,
)


@pytest.mark.parametrize(
    ("macs", "text"),
    [
        (3_104_000_000, "3.104 G"),
        (22_100_000_000, "22.10 G"),
        (999_960_000, "1.000 G"),
        (812_340, "812.3 k"),
        (1_000, "1.000 k"),
        (812, "812"),
        (0, "0"),
    ],
)
def test_macs_have_four_digits_and_a_unit(macs: int, text: str) -> None:
    assert format_count(macs) == text


def test_top1_names_its_spread_only_where_it_is_known() -> None:
    assert format_top1(81.84, 0.42) == "81.8 ± 0.4"
    assert format_top1(81.84, None) == "81.8"


@pytest.mark.parametrize(
    ("points", "text"), [(0.5, "+0.50"), (-1.234, "−1.23"), (-0.001, "0.00"), (0.0, "0.00")]
)
def test_differences_have_a_sign(points: float, text: str) -> None:
    assert format_points(points) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.96, "10.0 s"), (95.0, "1 min 35 s"), (7_260.0, "2 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_bytes_and_plurals() -> None:
    assert (format_bytes(2**20), format_bytes(512)) == ("1.049 MB", "512 B")
    assert (plural(1, "seed"), plural(1_200, "seed")) == ("1 seed", "1,200 seeds")


def test_plot_text_is_cut_before_it_is_escaped() -> None:
    assert plot_text("<b>x & y</b>") == "&lt;b&gt;x &amp; y&lt;/b&gt;"
    assert plot_text("<<<<", limit=3) == "&lt;&lt;…"
