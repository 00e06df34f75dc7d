"""What Ray does in a network namespace of its own; see `tests.network`.

    python -m tests.cluster.isolated octnas|plain RESULT

Starts Ray, evaluates a few candidates, waits until Ray has reported its use or not, and writes the
addresses on which it listened to the file ``RESULT``, as JSON.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.network import listening


@contextmanager
def plain_ray() -> Iterator[None]:
    """Ray with what its documentation says against usage statistics, and no more."""
    import ray

    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as directory:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=directory)
        try:
            yield
        finally:
            ray.shutdown(wait_for_processes=True)


def evaluate_some() -> None:
    from octnas.cluster.tune import run_with_tune
    from tests.cluster.batches import Batches

    def make_evaluate() -> Callable[[Mapping[str, float], float], Mapping[str, float]]:
        return lambda alphas, _: {"loss": sum(alphas.values())}

    driver = Batches(count=4, batch=2)
    with tempfile.TemporaryDirectory() as directory:
        run_with_tune(driver, make_evaluate, workers=2, directory=Path(directory))
    assert all(isinstance(outcome, dict) for outcome in driver.told.values()), driver.told


def wait_for_usage_reporter() -> None:
    """Wait until Ray's dashboard process has found out, or not, in which cloud it runs."""
    import ray

    node: Any = ray._private.worker._global_node
    logs = Path(node.get_logs_dir_path())
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any("Usage reporting is" in log.read_text() for log in logs.glob("dashboard*.log")):
            return
        time.sleep(0.1)
    raise AssertionError("Ray's dashboard process did not come to its usage report")


def main(which: str, result: Path) -> None:
    from octnas.cluster.start import local_cluster

    with local_cluster(2) if which == "octnas" else plain_ray():
        evaluate_some()
        wait_for_usage_reporter()
        result.write_text(json.dumps(listening()))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
