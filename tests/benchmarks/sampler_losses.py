"""The losses of a run's architectures on two parts, each measured once."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal

from octnas.cli.run import RichProgress
from octnas.io.files import append_line, write_json
from octnas.pipeline.run import Run
from octnas.pipeline.supernet import scorer
from octnas.results.front import Candidate, Front
from octnas.search.settings import ChooseBy
from octnas.search.surrogate import EXPECTED, Features, with_expected_losses
from octnas.space.search_space import SearchSpace
from octnas.training.scoring import Scorer
from tests.pipeline.tiny import open_unlocked

Part = Literal["search_val", "read"]
PARTS: tuple[Part, ...] = ("search_val", "read")


@dataclass(frozen=True, eq=False)
class Losses:
    """Losses of architectures on search_val and on read; what was measured is kept.

    Attributes:
        folder: for the results.
        space: of the architectures.
        run: whose supernet scores; None where all is known.
        read: α by site of the architectures scored on the read part, by id.
    """

    folder: Path
    space: SearchSpace
    run: Run | None
    read: dict[str, Mapping[str, float]] = field(default_factory=dict)

    @staticmethod
    def of(folder: Path, path: Path | None) -> "Losses":
        """What is in a folder, and the run that scores the others."""
        file = folder / "space.json"
        if path is None:
            return Losses(folder, SearchSpace.from_dict(json.loads(file.read_text())), None)
        run = open_unlocked(path, stages=("supernet",), progress=RichProgress())
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, run.space.to_dict())
        return Losses(folder, run.space, run)

    def __call__(self, part: Part, alphas: Mapping[str, float]) -> Mapping[str, float]:
        """``loss`` and ``half_loss`` of α by site."""
        log, identity = self.known[part], self.space.architecture(alphas).id
        if part == "read":
            self.read[identity] = alphas
        if identity not in log:
            log[identity] = self._scorers[part](alphas)
            line = json.dumps({"id": identity, "metrics": log[identity]})
            append_line(self.folder / f"{part}.jsonl", line)
        return log[identity]

    @cached_property
    def known(self) -> Mapping[Part, dict[str, Mapping[str, float]]]:
        """What was measured, by part and id."""
        found: dict[Part, dict[str, Mapping[str, float]]] = {part: {} for part in PARTS}
        for part in PARTS:
            if (path := self.folder / f"{part}.jsonl").exists():
                for entry in map(json.loads, path.read_text().splitlines()):
                    found[part][entry["id"]] = entry["metrics"]
        return found

    @cached_property
    def _scorers(self) -> Mapping[Part, Scorer]:
        assert self.run is not None, f"{self.folder} does not hold all architectures"
        return {part: scorer(self.run, part)() for part in PARTS}

    def hypervolume(self, candidates: Sequence[Candidate], way: ChooseBy) -> float:
        """Hypervolume on read of the front chosen on search_val, by loss or expected loss."""
        if way == "expected":
            found, _ = with_expected_losses(Features(self.space, pairs=True), candidates)
            candidates = [replace(one, loss=one.metrics[EXPECTED]) for one in found]
        return self._read_hypervolume(one.alphas for one in Front.of(candidates).candidates)

    @property
    def most(self) -> float:
        """Hypervolume on read of the front, there, of all that was read."""
        return self._read_hypervolume(list(self.read.values()))

    def _read_hypervolume(self, architectures: Iterable[Mapping[str, float]]) -> float:
        space = self.space
        read = [
            Candidate("", alphas, space.cost(alphas).macs, self("read", alphas)["loss"])
            for alphas in architectures
        ]
        return Front.of(read).hypervolume(self._reference)

    @cached_property
    def _reference(self) -> tuple[float, float]:
        """MACs of the largest architecture and the loss of the smallest."""
        largest = {site.name: min(site.choices) for site in self.space.sites}
        smallest = {site.name: max(site.choices) for site in self.space.sites}
        return float(self.space.cost(largest).macs), self("read", smallest)["loss"]


def architectures(space: SearchSpace) -> Iterator[dict[str, float]]:
    """α by site of every architecture."""
    names = [site.name for site in space.sites]
    for shares in product(*(site.choices for site in space.sites)):
        yield dict(zip(names, shares, strict=True))
