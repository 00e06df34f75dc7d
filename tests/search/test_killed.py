"""The process that drives a search is killed, again and again."""

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from octnas.search.settings import Sampler, SearchSettings
from octnas.search.storage import open_storage
from octnas.search.study import Driver, run_local
from tests.search.conftest import Make, table
from tests.search.small import loss_of

KILLS = 20


def slowly(alphas: Mapping[str, float], _: float = 0) -> dict[str, float]:
    time.sleep(0.02)
    return loss_of(alphas)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["nsga2", "surrogate"])
def test_a_killed_driver_goes_on_to_what_it_would_have_found(
    make_driver: Make, tmp_path: Path, sampler: Sampler
) -> None:
    """No finished evaluation is done twice, and no trial is left running."""
    settings = SearchSettings(trials=120, batch_size=8, spread=6, population=8, sampler=sampler)

    def make(folder: str) -> Driver:
        return make_driver(settings, folder=folder)

    begin = time.monotonic()
    whole = make("whole")
    run_local(whole, slowly)
    seconds = time.monotonic() - begin
    context, moments = multiprocessing.get_context("fork"), random.Random(0)
    kills = 0
    while kills < KILLS:
        process = context.Process(target=lambda: run_local(make("killed"), slowly))
        process.start()
        # On average somewhat less than what would be enough to come to the end in so many lives.
        process.join(moments.uniform(0, 1.2 * seconds / KILLS))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
    last = make("killed")
    run_local(last, slowly)
    assert kills == KILLS
    assert table(last.candidates()) == table(whole.candidates())
    journal = tmp_path / "killed" / "study.journal"
    metrics = [line for line in journal.read_text().splitlines() if '"metrics"' in line]
    assert len(metrics) == len(last.candidates())
    study = optuna.load_study(study_name="study", storage=open_storage("", journal))
    states = Counter(trial.state for trial in study.get_trials())
    assert states == {TrialState.COMPLETE: settings.trials}


def test_a_line_that_was_cut_off_is_not_glued_to_the_next(
    make_driver: Make, tmp_path: Path
) -> None:
    """As a full disk leaves it."""
    whole, begun = make_driver(folder="whole"), make_driver(folder="cut")
    run_local(whole, loss_of)
    for _ in range(10):
        job = begun.ask()
        assert job is not None
        begun.tell(job.number, loss_of(job.alphas))
    journal = tmp_path / "cut" / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    again = make_driver(folder="cut")
    run_local(again, loss_of)
    assert table(again.candidates()) == table(whole.candidates())
    assert len(list(JournalFileBackend(str(journal)).read_logs(0))) > 100
