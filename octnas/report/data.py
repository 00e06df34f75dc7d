"""Everything that a report shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from octnas.costs import Budget
from octnas.front import Candidate, Front
from octnas.ranking import Ranking
from octnas.report.latencies import Latencies
from octnas.results import Retrained
from octnas.space import SearchSpace
from octnas.verdict import Matrix


@dataclass(frozen=True)
class Effect:
    """How much a site decides, by the model of all scores that the search fits.

    Attributes:
        percent: by how much the supernet's loss grows where the site goes from its smallest α to
            its largest, the others as they are in the evaluated candidates.
        std: of that, by the model's posterior.
    """

    percent: float
    std: float


@dataclass(frozen=True)
class StageTime:
    """What a stage took.

    Attributes:
        hours: of computing, interruptions left out; None where it was not recorded.
        what: in words, such as ``"1 process of 2 threads"``.
    """

    hours: float | None
    what: str


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
        val_looks: how often a network was tried on the val part, by what for.
        controls: roles of what the searched networks are held against, as they were asked for.
        rankings: the ranking check by source of the scores; empty where there was none.
        supernet_history: per epoch: ``epoch``, ``train_loss``, ``lr``; may be empty.
        facts: shown as they are: data, seeds, device, versions, configuration file.
        latencies: of the networks, by device; tables begin with the first one. Empty where nothing
            was measured.
        effects: by site; empty where there are too few candidates to tell.
        by_class: accuracy by class (0 to 1), mean over seeds, by architecture id; shape
            ``(classes,)``.
        class_names: of those classes.
        digest: of the images.
        skipped: images and folders that could not be used.
        recipe: digest of what else decides accuracy: the recipe and what it is trained on.
        times: of the stages that have begun, by name.
        unfinished: stages of a run that is still going on, with how far they are.
        links: to what shows more: commands or addresses by name.
        run: the run directory, as a shell's command names it.
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
    val_looks: Mapping[str, int] = field(default_factory=dict)
    controls: tuple[str, ...] = ()
    latencies: tuple[Latencies, ...] = ()
    effects: Mapping[str, Effect] = field(default_factory=dict)
    by_class: Mapping[str, Matrix] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    digest: str = ""
    skipped: int = 0
    recipe: str = ""
    times: Mapping[str, StageTime] = field(default_factory=dict)
    unfinished: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    run: str = "RUN"

    def share(self, macs: int) -> float:
        """MACs as a share of the vanilla network's."""
        return macs / self.space.vanilla_macs

    def find(self, role: str, budget: str = "") -> Retrained | None:
        """The retrained network of a role at a budget; None if there is none (yet)."""
        for retrained in self.retrained:
            if (retrained.network.role, retrained.network.budget) == (role, budget):
                return retrained
        return None
