"""A driver that died while it wrote what it had asked for, or told: every write may be the last."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.storages.journal._storage import JournalOperation

from octnas.search.local import run_local
from octnas.search.settings import Sampler, SearchSettings
from tests.search.conftest import Make, table
from tests.search.test_rungs import noisy


def torn(journal: Path, operation: JournalOperation, every: int) -> Iterator[bytes]:
    """The beginnings of a journal that end behind every so-manieth operation of a kind."""
    lines = journal.read_bytes().splitlines(keepends=True)
    found = [n for n, line in enumerate(lines, 1) if json.loads(line)["op_code"] == operation]
    yield from (b"".join(lines[:n]) for n in found[every // 2 :: every])


@pytest.mark.parametrize(
    ("sampler", "operation", "every"),
    [
        ("nsga2", JournalOperation.SET_TRIAL_PARAM, 9),
        ("nsga2", JournalOperation.SET_STUDY_SYSTEM_ATTR, 1),
        ("nsga2", JournalOperation.SET_TRIAL_STATE_VALUES, 5),
        ("tpe", JournalOperation.SET_TRIAL_PARAM, 41),
        ("surrogate", JournalOperation.SET_TRIAL_PARAM, 41),
        ("surrogate", JournalOperation.SET_TRIAL_STATE_VALUES, 5),
        ("random", JournalOperation.SET_TRIAL_PARAM, 41),
        ("random", JournalOperation.SET_TRIAL_STATE_VALUES, 5),
    ],
)
def test_what_was_written_in_part_is_gone_on_with(
    make_driver: Make, tmp_path: Path, sampler: Sampler, operation: JournalOperation, every: int
) -> None:
    settings = SearchSettings(sampler=sampler, trials=40, batch_size=8, spread=6, population=8)
    whole = make_driver(settings, folder="whole")
    run_local(whole, noisy)
    outcomes = (tmp_path / "whole" / "outcomes.jsonl").read_bytes()
    for number, begun in enumerate(torn(tmp_path / "whole" / "study.journal", operation, every)):
        folder = tmp_path / f"torn-{number}"
        folder.mkdir()
        (folder / "study.journal").write_bytes(begun)
        (folder / "outcomes.jsonl").write_bytes(outcomes)
        again = make_driver(settings, folder=folder.name)
        run_local(again, noisy)
        assert table(again.candidates()) == table(whole.candidates())
