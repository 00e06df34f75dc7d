"""Everything that a report shows.

How long the networks of a report take, on some devices.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from octnas.results.front import Candidate, Front
from octnas.results.networks import Retrained
from octnas.results.ranking import Ranking
from octnas.results.verdict import Matrix
from octnas.space.costs import Budget
from octnas.space.latency import LONGEST
from octnas.space.search_space import SearchSpace


@dataclass(frozen=True)
class Timing:
    """The latency of a whole network that was measured, in seconds for a batch.

    Attributes:
        median: over all rounds.
        p95: that 95 % of the rounds stay below; None where rounds were not kept.
    """

    median: float
    p95: float | None = None

    def __post_init__(self) -> None:
        """Raise a ValueError for what is no time."""
        for name, seconds in (("median", self.median), ("p95", self.p95)):
            if seconds is not None and not 0 < seconds <= LONGEST:
                raise ValueError(f"{name}: found {seconds}, allowed: above 0, up to {LONGEST:g} s")


@dataclass(frozen=True)
class Latencies:
    """What is known of one device with one backend, precision, batch size and count of threads.

    Attributes:
        device: its name.
        backend, precision, batch, threads: as `octnas latency` names them.
        measured: by architecture id.
        predicted: seconds by architecture id, from a table of layer times.
        own: whether that is the run's own table, which its budgets on latency are held to.
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
        """What two have in common that are about the same."""
        return (self.device, self.backend, self.precision, self.batch, self.threads)

    @property
    def name(self) -> str:
        """Such as ``"laptop, onnxruntime, float32, batch 1, threads 4"``."""
        return f"{self.device}, {self.settings}"

    @property
    def settings(self) -> str:
        """The same without the device."""
        threads = self.threads or "any"
        return f"{self.backend}, {self.precision}, batch {self.batch}, threads {threads}"


def most_known_first(
    latencies: Sequence[Latencies], identities: Collection[str]
) -> tuple[Latencies, ...]:
    """The devices that have measured most of some networks first, then those that predict most.

    A table shows one device at a time, and begins with the first.
    """

    asked = set(identities)

    def known(one: Latencies) -> tuple[int, int]:
        return len(asked & one.measured.keys()), len(asked & one.predicted.keys())

    return tuple(sorted(latencies, key=known, reverse=True))


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
        candidates: everything that the search evaluated, scored in the supernet on search_val.
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
