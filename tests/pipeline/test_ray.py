"""The same study, whoever evaluates."""

from pathlib import Path

from octnas.pipeline.records import read_candidates, read_chosen
from octnas.pipeline.stages import run_stages
from tests.pipeline.tiny import open_tiny


def test_ray_gives_the_candidates_that_this_process_gives(finished: Path, tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "search.executor=ray", "search.workers=2", "tracking.enabled=false")
    run_stages(run, ("supernet", "search"))
    here = open_tiny(finished)
    assert read_candidates(run) == read_candidates(here)
    assert read_chosen(run) == read_chosen(here)
