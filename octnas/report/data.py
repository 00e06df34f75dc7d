"""Everything that a report shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from octnas.costs import Budget
from octnas.front import Candidate, Front
from octnas.ranking import Ranking
from octnas.results import Retrained
from octnas.space import SearchSpace
from octnas.verdict import Matrix


@dataclass(frozen=True)
class ReportData:
    """What a report is written from; it may be written before anything is retrained.

    Attributes:
        name: the experiment's name.
        space: what was searched.
        budgets: in the order in which they are shown.
        candidates: everything that the search evaluated, scored in the supernet on the rank part.
        front: of the candidates.
        chosen: the chosen candidate by budget name; its metrics hold ``read_loss``, ``read_top1``
            and ``rank_top1``.
        retrained: networks that were trained alone, searched ones and baselines; may be empty.
        correct: whether each val image was right, by architecture id, of shape ``(seeds, images)``,
            where that was kept.
        val_looks: how often a network was tried on the val part.
        rankings: the ranking check by source of the scores; empty where there was none.
        supernet_history: per epoch: ``epoch``, ``train_loss``, ``lr``; may be empty.
        facts: shown as they are: data, seeds, device, versions, configuration file.
    """

    name: str
    space: SearchSpace
    budgets: tuple[Budget, ...]
    candidates: tuple[Candidate, ...]
    front: Front
    chosen: Mapping[str, Candidate]
    retrained: tuple[Retrained, ...]
    rankings: Mapping[str, Ranking]
    supernet_history: tuple[Mapping[str, float], ...]
    facts: Mapping[str, str]
    correct: Mapping[str, Matrix] = field(default_factory=dict)
    val_looks: int = 0

    def share(self, macs: int) -> float:
        """MACs as a share of the vanilla network's."""
        return macs / self.space.vanilla_macs

    def find(self, role: str, budget: str = "") -> Retrained | None:
        """The retrained network of a role at a budget; None if there is none (yet)."""
        for retrained in self.retrained:
            if (retrained.network.role, retrained.network.budget) == (role, budget):
                return retrained
        return None
