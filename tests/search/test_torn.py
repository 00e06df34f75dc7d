"""A driver that died while it wrote what it had asked for, or told: every write may be the last."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.storages.journal._storage import JournalOperation

from octnas.search.local import run_local
from octnas.search.settings import Sampler, SearchSettings
from octnas.search.storage import Journal, open_study
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


@pytest.mark.parametrize("link", [True, False])
def test_the_lock_of_a_killed_process_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    """Optuna waits for half a minute, and without end where a link leads nowhere."""
    monkeypatch.chdir(tmp_path)
    path, lock = Path("run") / "study.journal", Path("run") / "study.journal.lock"
    first = Journal(path)
    open_study(first, "one")
    first.flush()
    lock.symlink_to(path) if link else lock.touch()
    # One that was being given back.
    lock.with_name(f"{lock.name}0af3-12.rename").touch()
    again = Journal(path)
    open_study(again, "two")
    again.flush()
    assert [study.study_name for study in Journal(path).get_all_studies()] == ["one", "two"]
    assert [one.name for one in path.parent.iterdir()] == ["study.journal"]


def test_a_journal_makes_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks on from another host may know the run directory by another path."""
    monkeypatch.setattr(os, "symlink", lambda *_: 1 / 0)
    journal = Journal(tmp_path / "study.journal")
    open_study(journal, "study")
    journal.flush()
    assert (tmp_path / "study.journal").stat().st_size
