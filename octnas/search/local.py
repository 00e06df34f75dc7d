"""Evaluating candidates one after another, in this process."""

from octnas.errors import DeviceError
from octnas.search.jobs import Evaluate, Job, Outcome
from octnas.search.study import Driver


def run_local(driver: Driver, evaluate: Evaluate, *, retries: int = 0) -> None:
    """Evaluate one candidate after another in this process until the study is done.

    Args:
        driver: asked and told.
        evaluate: α by site and a limit to metrics.
        retries: how often a candidate is tried again after an exception.

    Raises:
        DeviceError: no candidate can be evaluated any more.
    """
    while (job := driver.ask()) is not None:
        driver.tell(job.number, _attempts(evaluate, job, retries))


def _attempts(evaluate: Evaluate, job: Job, retries: int) -> Outcome:
    """What the first attempt without an exception returns, or the last one's reason."""
    reason = ""
    for _ in range(retries + 1):
        try:
            return evaluate(job.alphas, job.limit)
        except DeviceError:
            # It would fail all others, too, for ever, since a failed trial stays one.
            raise
        except Exception as error:  # noqa: BLE001
            # One candidate that cannot be evaluated must not end the search.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
    return reason
