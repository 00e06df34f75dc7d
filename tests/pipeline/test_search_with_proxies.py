"""A search whose surrogate learns from short stand-alone trainings, too."""

from pathlib import Path

import pytest

from octnas.errors import ConfigError, RunDirectoryError
from octnas.pipeline import search as stage
from octnas.pipeline.proxies import read_proxies
from octnas.pipeline.records import read_candidates
from octnas.pipeline.stages import run_stages
from tests.pipeline.tiny_ranking import open_ranking

BOTH = ("search.sampler=surrogate", "search.proxies=true")
SEARCH = ("supernet", "search")


def test_what_it_builds_on_is_made_first(spoilable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    def proposals(*args: object) -> object:
        told.append(args[-1])
        return original(*args)  # type: ignore[arg-type]

    original = stage.proposals
    monkeypatch.setattr(stage, "proposals", proposals)
    run = open_ranking(spoilable, *BOTH, fresh="proxies", stages=("proxies", *SEARCH))
    with pytest.raises(RunDirectoryError, match="search builds on proxies, which is not finished"):
        run_stages(run, ("search",))
    run_stages(run, SEARCH)
    assert told == [read_proxies(run).candidates]
    assert len(read_proxies(run).candidates) == 4
    assert {one.origin for one in read_candidates(run)} == {"uniform", "spread", "surrogate"}
    # A search is of the proxies that it was made with.
    open_ranking(spoilable, *BOTH, fresh="proxies", stages=("proxies",))
    assert not (spoilable / "runs" / "tiny" / "search").exists()


def test_other_samplers_have_no_use_for_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.proxies: found True, allowed: false, or true"):
        open_ranking(tmp_path, "search.sampler=tpe", "search.proxies=true")
