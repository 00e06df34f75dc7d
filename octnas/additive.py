"""Costs that are sums of terms, each of which depends on the α of one or two sites.

So are MACs, activation memory and, nearly, time; and so counting, sampling and optimising inside a
budget are exact for all of them by the same dynamic programming (`octnas.levels`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from octnas.costs import BYTES_PER_ACTIVATION, ConvShape, conv_activations, conv_macs
from octnas.errors import ArchitectureError
from octnas.space import SearchSpace, Site

Terms = Mapping[tuple[str, ...], np.ndarray]
"""By the sites that a term depends on, in the order of their names; shape: their choices."""

UNITS: Mapping[str, str] = {"macs": "MACs", "activation": "bytes", "latency": "ns"}
"""What each cost is counted in, by its name."""


@dataclass(frozen=True, eq=False)
class AdditiveCost:
    """What an architecture of a search space costs, in whole numbers.

    Attributes:
        name: one of `UNITS`.
        space: whose choices the terms are over.
        constant: what every architecture costs.
        terms: the rest; integers.
        vanilla: what the network at α = 0 everywhere costs, whether it is in the space or not.
    """

    name: str
    space: SearchSpace
    constant: int
    terms: Terms
    vanilla: int

    @property
    def unit(self) -> str:
        """What it is counted in."""
        return UNITS[self.name]

    def of(self, alphas: Mapping[str, float]) -> int:
        """The cost of an architecture; sites that are not named are at their first choice.

        Args:
            alphas: by site, each one of the site's choices.

        Raises:
            ArchitectureError: an α that is no choice of its site.
        """
        at = {site.name: self._index(site, alphas) for site in self.space.sites}
        terms = (int(term[tuple(at[name] for name in sites)]) for sites, term in self.terms.items())
        return self.constant + sum(terms)

    def _index(self, site: Site, alphas: Mapping[str, float]) -> int:
        alpha = alphas.get(site.name, site.choices[0])
        if alpha not in self._indices[site.name]:
            raise ArchitectureError(
                f"α of site {site.name!r}: found {alpha}, allowed: "
                f"{', '.join(f'{choice:g}' for choice in site.choices)}"
            )
        return self._indices[site.name][alpha]

    @cached_property
    def _indices(self) -> dict[str, dict[float, int]]:
        return {
            site.name: {choice: index for index, choice in enumerate(site.choices)}
            for site in self.space.sites
        }


def macs_of(space: SearchSpace) -> AdditiveCost:
    """Multiply-adds of one image."""
    terms = sum_terms([_macs_term(conv, space.site) for conv in space.convs])
    return AdditiveCost("macs", space, space.other_macs, terms, space.vanilla_macs)


def activation_of(space: SearchSpace) -> AdditiveCost:
    """Bytes of the convolutions' outputs of one image in float32 (paper, table 1: memory)."""
    found: list[tuple[tuple[str, ...], np.ndarray]] = []
    for conv in space.convs:
        out = np.array(space.site[conv.site_out].choices)
        found.append(((conv.site_out,), integers(conv_activations(conv, out))))
        # Nothing, but with it MACs can be optimised within levels of this cost.
        sites, macs = _macs_term(conv, space.site)
        found.append((sites, np.zeros_like(macs)))
    terms = {sites: term * BYTES_PER_ACTIVATION for sites, term in sum_terms(found).items()}
    vanilla = space.cost({site.name: 0.0 for site in space.sites}).activation_bytes
    return AdditiveCost("activation", space, 0, terms, vanilla)


def sum_terms(found: Sequence[tuple[tuple[str, ...], np.ndarray]]) -> Terms:
    """Terms of the same sites as one, whichever order they name their two sites in."""
    terms: dict[tuple[str, ...], np.ndarray] = {}
    for sites, term in found:
        # One site at both ends: only what lies on the diagonal can be.
        if len(sites) == 2 and sites[0] == sites[1]:
            sites, term = sites[:1], np.diagonal(term)
        elif sites != tuple(sorted(sites)):
            sites, term = tuple(sorted(sites)), term.T
        terms[sites] = terms.get(sites, 0) + term
    return terms


def _macs_term(conv: ConvShape, site: Mapping[str, Site]) -> tuple[tuple[str, ...], np.ndarray]:
    """One convolution's MACs over the choices of its one or two sites."""
    out = np.array(site[conv.site_out].choices)
    if conv.site_in is None or conv.depthwise:
        return (conv.site_out,), integers(conv_macs(conv, np.zeros_like(out), out))
    into = np.array(site[conv.site_in].choices)
    macs = integers(conv_macs(conv, into[:, None], out[None, :]))
    return (conv.site_in, conv.site_out), macs


def integers(values: np.ndarray) -> np.ndarray:
    """The nearest whole numbers, int64."""
    rounded: np.ndarray = np.rint(values).astype(np.int64)
    return rounded
