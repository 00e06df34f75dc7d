"""Where an architecture spends its multiply-adds, by stage of the network."""

from collections.abc import Mapping

from octnas.costs import conv_macs, low_channels
from octnas.space import SearchSpace

CLASSIFIER = "classifier"
_STEM = "conv1"


def stage_of(name: str) -> str:
    """The stage of a site or convolution: ``"layer2.0.conv1"`` → ``"layer2"``."""
    stage = name.partition(".")[0]
    return "stem" if stage == _STEM else stage


def macs_by_stage(space: SearchSpace, alphas: Mapping[str, float]) -> dict[str, int]:
    """MACs by stage in the order of the network, the linear layers last.

    Args:
        space: of the architecture.
        alphas: realised, for every site.
    """
    found: dict[str, float] = {}
    for conv in space.convs:
        stage = stage_of(conv.name)
        alpha_in = 0.0 if conv.site_in is None else alphas[conv.site_in]
        macs = conv_macs(conv, alpha_in, alphas[conv.site_out])
        found[stage] = found.get(stage, 0.0) + macs
    return {stage: round(macs) for stage, macs in found.items()} | {CLASSIFIER: space.other_macs}


def low_by_site(space: SearchSpace, alphas: Mapping[str, float]) -> list[int]:
    """The channels at half resolution of every site, in the order of the sites.

    Args:
        space: of the architecture.
        alphas: realised, for every site.
    """
    return [
        low_channels(alphas[site.name], site.channels, space.channel_multiple, site.groups)
        for site in space.sites
    ]
