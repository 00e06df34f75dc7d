"""All files of a report."""

from pathlib import Path

import plotly.graph_objects as go

from octnas.files import write_text
from octnas.report.alpha_figure import alpha_figure
from octnas.report.curves import hypervolume_figure, training_figure
from octnas.report.data import ReportData
from octnas.report.figures import front_figure, retrained_figure
from octnas.report.front_files import write_front_csv, write_front_json
from octnas.report.markdown import markdown
from octnas.report.page import write_page
from octnas.report.png import PngError, write_pngs
from octnas.report.ranking_figure import ranking_figure
from octnas.report.tables import retrained_rows, write_csv

PAGE_FILE = "index.html"
TABLE_FILE = "networks.csv"
FRONT_CSV = "front.csv"
FRONT_JSON = "front.json"
MARKDOWN = "report.md"
FIGURES_FOLDER = "figures"
_ASK = "`octnas report RUN --png` draws them"


def write_all(data: ReportData, folder: Path, *, png: bool) -> list[str]:
    """Write the report; lines about what could not be written.

    Args:
        data: what it says.
        folder: where to write.
        png: whether figures are drawn as PNG files, which takes a browser some seconds.
    """
    write_page(data, folder / PAGE_FILE)
    write_front_csv(data, folder / FRONT_CSV)
    write_front_json(data, folder / FRONT_JSON)
    if data.retrained:
        write_csv(retrained_rows(data), folder / TABLE_FILE)
    figures = all_figures(data)
    for name, figure in figures.items():
        # As `plotly.io.read_json` makes figures of it.
        write_text(folder / FIGURES_FOLDER / f"{name}.json", figure.to_json())
    said, drawn, why_not = [], [], _ASK
    if png:
        try:
            drawn = [path.stem for path in write_pngs(figures, folder / FIGURES_FOLDER)]
        except PngError as error:
            why_not = f"PNG figures: {error}"
            said.append(why_not)
    else:
        # Those of an earlier report would show other results.
        for path in (folder / FIGURES_FOLDER).glob("*.png"):
            path.unlink()
    write_text(folder / MARKDOWN, markdown(data, drawn, why_not))
    return said


def all_figures(data: ReportData) -> dict[str, go.Figure]:
    """The figures that there is something to draw in, by name."""
    figures = {
        "front": front_figure(data),
        "retrained": retrained_figure(data),
        "alpha": alpha_figure(data),
        "hypervolume": hypervolume_figure(data),
        "ranking": ranking_figure(data.rankings),
        "training": training_figure(data),
    }
    return {name: figure for name, figure in figures.items() if figure is not None}
