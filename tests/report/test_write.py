import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from octnas.report import png
from octnas.report.data import ReportData
from octnas.report.document import macs_by_stage, page_document
from octnas.report.png import find_browser
from octnas.report.write import escaped, markdown, write_all
from octnas.space.architecture import Architecture

ATTACK = "<img src=x>|[a](b)`*_"


def test_the_front_as_csv_and_json(full: ReportData, tmp_path: Path) -> None:
    write_all(replace(full, digest="d1", recipe="r1"), tmp_path, png=False)
    with (tmp_path / "front.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    front = full.front.candidates
    assert [int(row["macs"]) for row in rows] == [one.macs for one in front]
    assert json.loads(rows[0]["alphas"]) == full.space.quantize(front[0].alphas)
    document = json.loads((tmp_path / "front.json").read_text(encoding="utf-8"))
    assert document["schema"] == 1
    assert (document["data_digest"], document["recipe_digest"]) == ("d1", "r1")
    assert list(rows[0]) == list(document["front"][0])
    assert [one["architecture"] for one in document["front"]] == [one.id for one in front]
    assert [one["name"] for one in document["networks"]] == [r.network.name for r in full.retrained]
    definition = Architecture.from_dict(document["networks"][0]["definition"])
    assert definition == full.retrained[0].network.architecture


def test_the_document_of_the_page(full: ReportData) -> None:
    document = page_document(full)
    searched, uniform, *_ = document["networks"]
    assert searched["found"]
    assert not uniform["found"]
    verdict, points, half = searched["against"][uniform["id"]]
    assert verdict == "better"
    assert points == pytest.approx(10.0)
    assert 0 < half < points
    assert uniform["against"] == {}
    own = document["architectures"][searched["id"]]
    assert own["low"] == [0, 16, 0]
    assert sum(own["stages"]) == own["macs"]
    assert document["sites"][2]["searchable"] is False


def test_stages_add_up_to_all_macs(full: ReportData) -> None:
    alphas = full.space.quantize({"stem": 0.5, "body": 1.0})
    stages = macs_by_stage(full.space, alphas)
    assert list(stages) == ["stem", "body", "head", "classifier"]
    assert sum(stages.values()) == full.space.cost(alphas).macs
    assert stages["classifier"] == full.space.other_macs


def test_markdown_tells_the_story_and_escapes_names(full: ReportData) -> None:
    text = markdown(replace(full, name=ATTACK), ["front"])
    assert "**The search did not win: at no budget" in text
    assert "## Caveats" in text
    assert "![Candidates and front, by score](figures/front.png)" in text
    assert "not measured" in text
    assert text.startswith(f"# {escaped(ATTACK)}\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(full.retrained)
    assert {line.count("|") for line in rows} == {8}


def test_nothing_of_markdown_is_left_in_names() -> None:
    assert escaped("<b>`x`|*a*\n# @me") == (
        "&lt;b&gt;\\`x\\`\\|\\*a\\* \\# @\N{ZERO WIDTH SPACE}me"
    )


def test_without_a_browser_it_says_what_is_missing(
    full: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "find_browser", lambda: None)
    (said,) = write_all(full, tmp_path, png=True)
    assert "needs one of chromium" in said
    assert "needs one of chromium" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("figures/*.png"))


@pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome is installed")
def test_figures_as_png(full: ReportData, tmp_path: Path) -> None:
    assert write_all(full, tmp_path, png=True) == []
    names = {path.name for path in tmp_path.glob("figures/*.png")}
    assert names == {
        f"{name}.png" for name in ("front", "retrained", "alpha", "hypervolume", "training")
    }
    for name in names:
        content = (tmp_path / "figures" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
        # Width and height in pixels, in the header of every PNG file.
        width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
        assert width == 2 * png.WIDTH
        assert png.HEIGHT <= height / 2 < 2 * png.HEIGHT
        assert f"figures/{name}" in (tmp_path / "report.md").read_text(encoding="utf-8")
    # Old pictures do not stay beside new results.
    write_all(full, tmp_path, png=False)
    assert not list(tmp_path.glob("figures/*.png"))
