import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from octnas.report.data import ReportData
from octnas.report.page import page, write_page
from octnas.results.front import Front
from octnas.results.networks import INCREASING, SEARCHED, UNIFORM, VANILLA

Make = Callable[..., ReportData]
ATTACK = "<script>alert(1)</script>"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """What a browser would find in a page: elements, and the text in each kind of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, *within: str) -> str:
        return "".join(text for tag, text in self.texts if tag in within)

    def figures(self) -> list[dict[str, Any]]:
        scripts = [text for tag, text in self.texts if tag == "script"]
        return [json.loads(text) for text in scripts if text.startswith('{"data"')]


def strings(document: object) -> Iterator[str]:
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for value in document.values():
            yield from strings(value)
    elif isinstance(document, list):
        for value in document:
            yield from strings(value)


@pytest.fixture(scope="module")
def html(full: ReportData) -> str:
    return page(full)


def test_plotly_is_inlined_exactly_once(html: str) -> None:
    assert html.count(get_plotlyjs()) == 1


def test_all_elements_are_closed_and_all_figures_there(html: str) -> None:
    parsed = Page(html)
    assert parsed.open == []
    plots = [attrs["id"] for _, attrs in parsed.elements if attrs.get("class") == "plot"]
    assert plots == ["retrained", "front", "hypervolume", "training"]
    assert len(parsed.figures()) == len(plots)


def test_nothing_is_loaded_from_outside(html: str) -> None:
    parsed = Page(html)
    for tag, attrs in parsed.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            assert attrs.get(name, "data:").startswith("data:"), (tag, attrs)
        assert "url(" not in attrs.get("style", "")
    style = parsed.text("style")
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (
        attrs["content"]
        for _, attrs in parsed.elements
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    own_script = html.replace(get_plotlyjs(), "")
    assert not re.search(r"https?://", own_script)


def test_names_cannot_become_markup(make_data: Make) -> None:
    top1 = dict.fromkeys((SEARCHED, UNIFORM, INCREASING, VANILLA), (0.8, 0.9))
    bad = make_data(budget=ATTACK, name=ATTACK, facts={ATTACK: ATTACK}, **top1)
    strange = tuple(replace(one, origin=ATTACK) for one in bad.candidates)
    bad = replace(bad, candidates=strange)
    parsed, benign = Page(page(bad)), Page(page(make_data(**top1)))
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in benign.elements]
    assert parsed.text("h1", "title", "h3", "dt", "dd").count(ATTACK) == 5
    for figure in parsed.figures():
        assert not any("<script" in text for text in strings(figure))
    assert any("&lt;script&gt;alert(1)" in text for text in strings(parsed.figures()))


def test_dollar_signs_are_not_placeholders(make_data: Make) -> None:
    assert "costs $plotly" in Page(page(make_data(facts={"a": "costs $plotly"}))).text("dd")


def test_report_before_retraining(make_data: Make) -> None:
    parsed = Page(page(make_data()))
    plots = [attrs["id"] for _, attrs in parsed.elements if attrs.get("class") == "plot"]
    assert plots == ["front", "hypervolume", "training"]
    text = parsed.text("p")
    assert "Not retrained yet" in text
    assert "No network has been retrained yet" in text
    assert "How networks are compared" not in text


def test_report_of_nothing_says_so(make_data: Make) -> None:
    bare = replace(
        make_data(facts={}), candidates=(), front=Front(()), chosen={}, supernet_history=()
    )
    parsed = Page(page(bare))
    assert parsed.figures() == []
    assert "No architecture has been scored" in parsed.text("p")
    assert "training was not recorded" in parsed.text("p")


def test_page_states_the_method_and_what_won(html: str) -> None:
    text = Page(html).text("p", "li", "strong")
    assert "95\N{NO-BREAK SPACE}% intervals hold for all budgets jointly" in text
    assert "Searched against uniform α: better at 1 of 1 budget." in text
    assert "smaller than the noise" in text


def test_write_page_leaves_one_file(full: ReportData, tmp_path: Path, html: str) -> None:
    write_page(full, tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html


@pytest.mark.parametrize(
    ("module", "absent"), [("octnas.report", "plotly"), ("octnas.report.page", "torch")]
)
def test_import_stays_light(module: str, absent: str) -> None:
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
