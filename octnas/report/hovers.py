"""What the figures' hover boxes say; plotly interprets tags in them, so names are escaped."""

from collections.abc import Mapping

from octnas.costs import low_channels
from octnas.front import Candidate
from octnas.report.compare import described
from octnas.report.data import ReportData
from octnas.report.formats import format_alpha, format_loss, format_macs, format_percent, plot_text
from octnas.results import PLAIN, Retrained

# A hover box must fit on a phone.
ALPHAS_PER_LINE = 3
MOST_ALPHAS = 36
NAME_LIMIT = 40


def candidate_hover(data: ReportData, candidate: Candidate) -> str:
    """What a candidate is, and α at the sites where there was a choice."""
    share = format_percent(data.share(candidate.macs))
    lines = [
        f"<b>{plot_text(candidate.id)}</b> {plot_text(candidate.origin, NAME_LIMIT)}",
        f"{format_macs(candidate.macs)} MACs, {share} of vanilla",
        f"loss {format_loss(candidate.loss)}",
    ]
    return "<br>".join([*lines, *_alphas(data, candidate.alphas)])


def _alphas(data: ReportData, given: Mapping[str, float]) -> list[str]:
    """α of the sites where there was a choice, some to a line."""
    realised = data.space.realise(given)
    sites = data.space.searchable
    alphas = [f"{plot_text(site.name)} {format_alpha(realised[site.name])}" for site in sites]
    if len(alphas) > MOST_ALPHAS:
        # What is longer than a screen cannot be read; clicking shows all of it.
        alphas = [*alphas[:MOST_ALPHAS], f"and {len(sites) - MOST_ALPHAS} more: click"]
    steps = range(0, len(alphas), ALPHAS_PER_LINE)
    return [" · ".join(alphas[start : start + ALPHAS_PER_LINE]) for start in steps]


def retrained_hover(data: ReportData, one: Retrained) -> str:
    """What a retrained network is, and how well it does."""
    network = one.network
    share = format_percent(data.share(network.cost.macs))
    lines = [
        f"<b>{plot_text(network.name, NAME_LIMIT)}</b>",
        network.architecture.id,
        described(one),
        f"{share} of vanilla",
    ]
    if network.role not in PLAIN:
        lines += _alphas(data, network.architecture.alphas)
    return "<br>".join(lines)


def alpha_hover(data: ReportData, name: str, site_name: str, alpha: float) -> str:
    """The realised channels of one site of one network."""
    site = data.space.site[site_name]
    low = low_channels(alpha, site.channels, data.space.channel_multiple, site.groups)
    return (
        f"<b>{plot_text(name, NAME_LIMIT)}</b><br>"
        f"{plot_text(site_name)}: α {format_alpha(alpha)}<br>"
        f"{low} of {site.channels} channels at half resolution"
    )


def loss_hover(name: str, epoch: float, loss: float) -> str:
    """The training loss of a network at one epoch."""
    return f"<b>{plot_text(name, NAME_LIMIT)}</b><br>epoch {epoch:g}: {format_loss(loss)}"
