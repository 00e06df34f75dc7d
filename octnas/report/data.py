"""What a report shows, as values that the pipeline gathers from a run directory."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from octnas.report.style import network_name
from octnas.results.front import Candidate, Front
from octnas.results.networks import Network, Retrained
from octnas.results.ranking import Ranking
from octnas.results.verdict import Matrix
from octnas.space.costs import Budget, Cost
from octnas.space.latency import LONGEST
from octnas.space.search_space import SearchSpace


@dataclass(frozen=True)
class Timing:
    """The measured latency of a whole network, in seconds per batch.

    Attributes:
        median: over all rounds.
        p95: 95th percentile; None where the rounds were not kept.
    """

    median: float
    p95: float | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError for an impossible time."""
        for name, seconds in (("median", self.median), ("p95", self.p95)):
            if seconds is not None and not 0 < seconds <= LONGEST:
                raise ValueError(f"{name}: found {seconds}, allowed: above 0, up to {LONGEST:g} s")


@dataclass(frozen=True)
class Latencies:
    """Latencies on one device with one backend, precision, batch size and thread count.

    Attributes:
        device: its name.
        backend, precision, batch, threads: as `octnas latency` names them.
        measured: by architecture id.
        predicted: seconds by architecture id, from a table of layer times.
        own: whether the table is the run's own, which its latency budgets refer to.
    """

    device: str
    backend: str
    precision: str
    batch: int
    threads: int
    measured: Mapping[str, Timing] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    own: bool = False

    @property
    def conditions(self) -> tuple[str, str, str, int, int]:
        """Equal for latencies that belong together."""
        return (self.device, self.backend, self.precision, self.batch, self.threads)

    @property
    def settings(self) -> str:
        """Such as ``"onnxruntime, float32, batch 1, threads 4"``."""
        threads = self.threads or "any"
        return f"{self.backend}, {self.precision}, batch {self.batch}, threads {threads}"

    @property
    def name(self) -> str:
        """The device with its settings."""
        return f"{self.device}, {self.settings}"


def most_known_first(
    latencies: Sequence[Latencies], identities: Collection[str]
) -> tuple[Latencies, ...]:
    """Sort by how many of some networks were measured, then by how many are predicted.

    Tables show one device at a time, at first the first.
    """
    asked = set(identities)

    def known(one: Latencies) -> tuple[int, int]:
        return len(asked & one.measured.keys()), len(asked & one.predicted.keys())

    return tuple(sorted(latencies, key=known, reverse=True))


@dataclass(frozen=True)
class Effect:
    """How much a site matters, according to the surrogate model of the search's losses.

    Attributes:
        percent: change of the candidates' loss when the site goes from its smallest α to its
            largest, averaged over the evaluated candidates.
        std: standard deviation of that under the model's posterior.
    """

    percent: float
    std: float


@dataclass(frozen=True)
class StageTime:
    """The computing time of a stage.

    Attributes:
        hours: without interruptions; None where it was not recorded.
        what: such as ``"1 process of 2 CPU threads"``.
    """

    hours: float | None
    what: str


@dataclass(frozen=True)
class ReportData:
    """Everything that a report is written from, also before anything is retrained.

    Attributes:
        name: of the experiment.
        space: the search space.
        budgets: in the order shown.
        candidates: all that the search evaluated, scored in the supernet on search_val.
        front: of the candidates.
        chosen: by budget name; metrics hold ``read_loss``, ``read_top1`` and ``rank_top1``.
        retrained: networks trained on their own, searched ones and baselines; may be empty.
        rankings: the ranking check by source of the scores; may be empty.
        supernet_history: by epoch: ``epoch``, ``train_loss``, ``lr``; may be empty.
        facts: shown unchanged: data, seeds, device, versions, settings.
        correct: whether each val image was right, by architecture id, where that was kept; shape
            ``(seeds, images)``.
        validations: evaluations on the val part by purpose.
        baselines: roles of the baselines that the settings ask for.
        latencies: by device, the one shown first in front; may be empty.
        effects: by site; empty where there are too few candidates.
        by_class: accuracy by class (0 to 1), mean over seeds, by architecture id; shape
            ``(classes,)``.
        class_names: of those classes.
        digest: of the images.
        skipped: number of unusable images and folders.
        recipe: digest of everything else that accuracy depends on.
        times: of the stages that have begun, by name.
        unfinished: stages still to be finished, with their state.
        links: commands or addresses that show more, by name.
        run: the run directory, quoted for a shell.
        measure: what candidates were scored by; ``loss`` of a candidate is its value.
        converted: whether candidates were scored with the converted original, not in a supernet.
        start: what the retrained networks began with: ``"scratch"``, ``"the original"`` or
            ``"the supernet"``.
        original: the trained network that the run began with, as it came; None if there is none.
        reference: what that is called.
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
    validations: Mapping[str, int] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()
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
    measure: str = "loss"
    converted: bool = False
    start: str = "scratch"
    original: Retrained | None = None
    reference: str = "your network"

    @property
    def networks(self) -> tuple[Retrained, ...]:
        """All networks with an accuracy: the original, if any, and the retrained ones."""
        return (*([self.original] if self.original else ()), *self.retrained)

    def name_of(self, network: Network) -> str:
        """What a network is called."""
        return network_name(network, self.reference, self.start == "the original")

    @property
    def scorer(self) -> str:
        """What candidates were scored with."""
        return "converted original" if self.converted else "supernet"

    @cached_property
    def costs(self) -> Mapping[str, Cost]:
        """Of every candidate and network, by architecture id."""
        candidates = (*self.candidates, *self.chosen.values())
        found = {one.id: self.space.cost(one.alphas) for one in candidates}
        networks = (one.network for one in self.networks)
        return found | {one.architecture.id: one.cost for one in networks}

    def share(self, macs: float) -> float:
        """MACs as a share of the vanilla network's."""
        return macs / self.space.vanilla_macs

    def of_role(self, role: str, budget: str | None = None) -> tuple[Retrained, ...]:
        """The networks of a role, at one budget or at all."""
        return tuple(
            one
            for one in self.networks
            if one.network.role == role and budget in (None, one.network.budget)
        )

    def find(self, role: str, budget: str = "") -> Retrained | None:
        """The first retrained network of a role at a budget, if any."""
        return next(iter(self.of_role(role, budget)), None)
