"""Figures as PNG files, drawn by an installed Chromium or Chrome, which plotly needs as well."""

import base64
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs

from octnas.io.files import write_bytes

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH, HEIGHT = 960, 540  # pixels
_SCALE = 2
_SECONDS = 120
_INK = "#1c2024"

_PAGE = """<!doctype html><meta charset="utf-8"><script>{plotly}</script><body><script>
"use strict";
const figures = [{figures}];
Promise.all(figures.map(async ([name, figure, height]) => {{
  const options = {{format: "png", width: {width}, height, scale: {scale}}};
  const image = document.createElement("p");
  image.textContent = name + " " + await Plotly.toImage(figure, options);
  document.body.append(image);
}})).catch(error => {{ document.body.append("failed: " + error); }});
</script>"""


class PngError(Exception):
    """The figures cannot be drawn here, for the reason given."""


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome, if any."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def write_pngs(figures: Mapping[str, go.Figure], folder: Path) -> list[Path]:
    """Write figures as ``NAME.png``; all are drawn in one call of the browser.

    Raises:
        PngError: there is no browser, or it does not draw all of them.
    """
    browser = find_browser()
    if browser is None:
        raise PngError(f"needs one of {', '.join(BROWSERS)} on the PATH; none was found")
    if not figures:
        return []
    images = _images(_drawn(browser, _page(figures)))
    if missing := figures.keys() - images.keys():
        raise PngError(f"{browser} drew no {', '.join(sorted(missing))}")
    paths = {name: folder / f"{name}.png" for name in figures}
    for name, path in paths.items():
        write_bytes(path, images[name])
    return list(paths.values())


def _page(figures: Mapping[str, go.Figure]) -> str:
    entries = []
    for name, figure in figures.items():
        # PNG files cannot follow the viewer's light or dark mode.
        shown = go.Figure(figure).update_layout(paper_bgcolor="white", font_color=_INK)
        # Room for the rows of a heat map, or for the legend of other figures.
        rows = max((len(trace.z) for trace in shown.data if trace.type == "heatmap"), default=0)
        height = max(HEIGHT + 8 * len(shown.data), 160 + 46 * rows)
        entries.append(f'["{name}", {shown.to_json()}, {height}]')
    return _PAGE.format(
        plotly=get_plotlyjs(), figures=", ".join(entries), width=WIDTH, scale=_SCALE
    )


def _drawn(browser: str, page: str) -> str:
    """The page after the browser has run its script."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.html"
        file.write_text(page, encoding="utf-8")
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--no-first-run",
            f"--user-data-dir={folder}/profile",
            "--virtual-time-budget=20000",
            "--dump-dom",
        ]
        # Root, as in a container, has no sandbox; the page is trusted.
        command += ["--no-sandbox"] if os.geteuid() == 0 else []
        try:
            done = subprocess.run(  # noqa: S603
                [*command, file.as_uri()], capture_output=True, text=True, timeout=_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PngError(f"{browser}: {error}") from None
    return done.stdout


def _images(page: str) -> dict[str, bytes]:
    found = re.findall(r"<p>(\w+) data:image/png;base64,([A-Za-z0-9+/=]+)</p>", page)
    return {name: _smaller(base64.b64decode(content)) for name, content in found}


def _smaller(png: bytes) -> bytes:
    """The same image in 64 colours, which a figure does not exceed: a quarter of the bytes."""
    content = BytesIO()
    Image.open(BytesIO(png)).convert("RGB").quantize(64).save(content, "PNG", optimize=True)
    return content.getvalue()
