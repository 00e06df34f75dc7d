"""What runs in a worker process of Ray: one actor, which evaluates candidate after candidate."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from ray import tune

Evaluate = Callable[[Mapping[str, float], float], Mapping[str, float]]
"""α by site and the limit of a job to metrics."""

OUTCOME = "outcome"
LONGEST_REASON = 500  # characters; some of Ray's messages are pages


class EvaluationError(Exception):
    """An evaluation failed; the text is the type and message of its exception, on one line.

    It takes the place of the exception itself, which may not survive pickling.
    """


class Evaluation(tune.Trainable):
    """One worker. Tune hands it a trial's config: ``{"alphas": ((site, α), ...), "limit": …}``.

    Pairs and not a dict, here and in the result, since Tune flattens dicts, looks into their
    values and makes names of them.
    """

    def setup(
        self, config: dict[str, Any], make_evaluate: Callable[[], Evaluate] | None = None
    ) -> None:
        """Keep the first candidate and the factory, which is not called yet.

        What the factory raises is then an ordinary failure of a trial, with its reason; in here it
        would be the death of an actor.
        """
        assert make_evaluate is not None
        self._alphas, self._limit = dict(config["alphas"]), float(config["limit"])
        self._make_evaluate = make_evaluate

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next candidate; what the factory has loaded stays."""
        self._alphas, self._limit = dict(new_config["alphas"]), float(new_config["limit"])
        return True

    def step(self) -> dict[str, Any]:
        """Evaluate the candidate, and be done.

        Raises:
            EvaluationError: whatever went wrong.
        """
        try:
            metrics = self._evaluate(self._alphas, self._limit)
            outcome = tuple((name, float(value)) for name, value in metrics.items())
        except Exception as error:  # noqa: BLE001 - the reason of a failed trial
            raise EvaluationError(one_line(error)) from None
        return {OUTCOME: outcome, "done": True}

    @cached_property
    def _evaluate(self) -> Evaluate:
        return self._make_evaluate()


def one_line(error: BaseException) -> str:
    """Type and message of an exception without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def shortened(text: str) -> str:
    """The end of a reason, where most of them say what happened."""
    return text if len(text) <= LONGEST_REASON else "… " + text[-LONGEST_REASON:]
