"""Which of a run's retrained networks is meant."""

import re
from collections.abc import Sequence

from octnas.errors import SettingError
from octnas.results import SEARCHED, Retrained


def by_architecture(results: Sequence[Retrained], identity: str) -> Retrained:
    """The network whose id begins so.

    Raises:
        SettingError: none does, or several do; with what there is.
    """
    ids = {result.network.architecture.id: result for result in reversed(results)}
    found = [result for own, result in ids.items() if identity and own.startswith(identity)]
    if len(found) != 1:
        there = ", ".join(
            f"{result.network.architecture.id} ({result.network.name})" for result in results
        )
        raise SettingError("architecture", identity, f"the beginning of one of {there}")
    return found[0]


def by_budget(results: Sequence[Retrained], budget: str, vanilla_macs: int) -> Retrained:
    """The searched network of a budget.

    Args:
        results: the retrained networks.
        budget: its name, such as ``"uniform α 0.5"`` (``"uniform-0.5"`` will do); or a share of
            the vanilla network's MACs, such as ``"0.5x"``: of the searched networks below it the
            one with most MACs, since val results choose nothing.
        vanilla_macs: at α = 0.

    Raises:
        SettingError: there is none; with what there is.
    """
    searched = [result for result in results if result.network.role == SEARCHED]
    if share := re.fullmatch(r"(\d*\.?\d+)\s*[x×]", budget.strip()):
        most = float(share[1]) * vanilla_macs
        found = [result for result in searched if result.network.cost.macs <= most]
        if found:
            return max(found, key=lambda result: result.network.cost.macs)
    else:
        found = [r for r in searched if _plain(r.network.budget) == _plain(budget)]
        if found:
            return found[0]
    there = ", ".join(
        f"{result.network.budget} ({result.network.cost.macs / vanilla_macs:.3f}x)"
        for result in searched
    )
    raise SettingError("budget", budget, f"one of {there}, or a share such as 0.5x above one")


def _plain(name: str) -> str:
    """A budget's name without what is hard to type."""
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))
