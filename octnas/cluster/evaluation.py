"""What runs in a worker process of Ray: one actor, which evaluates candidate after candidate."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from ray import tune

Evaluate = Callable[[Mapping[str, float]], Mapping[str, float]]

OUTCOME = "outcome"


class EvaluationError(Exception):
    """An evaluation failed; the text is the type and message of its exception, on one line.

    It takes the place of the exception itself, which may not survive pickling.
    """


class Evaluation(tune.Trainable):
    """One worker. Tune hands it a trial's config: ``{"alphas": {site: α}}``."""

    def setup(
        self, config: dict[str, Any], make_evaluate: Callable[[], Evaluate] | None = None
    ) -> None:
        """Keep the first candidate and the factory, which is not called yet.

        What the factory raises is then an ordinary failure of a trial, with its reason; in here it
        would be the death of an actor.
        """
        assert make_evaluate is not None
        self._alphas = config["alphas"]
        self._make_evaluate = make_evaluate

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next candidate; the supernet and the images stay."""
        self._alphas = new_config["alphas"]
        return True

    def step(self) -> dict[str, Any]:
        """Evaluate the candidate, and be done.

        Raises:
            EvaluationError: whatever went wrong.
        """
        try:
            outcome = self._evaluate(dict(self._alphas))
            # Pairs, since Tune would flatten a dict and look into its values.
            pairs = tuple((name, float(value)) for name, value in outcome.items())
        except Exception as error:
            raise EvaluationError(one_line(error)) from error
        return {OUTCOME: pairs, "done": True}

    @cached_property
    def _evaluate(self) -> Evaluate:
        return self._make_evaluate()


def one_line(error: BaseException) -> str:
    """Type and message of an exception without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())
