"""Run in a network namespace of its own: does Ray send anything beyond the loopback interface?

    unshare --net python -m tests.cluster.isolated octnas | plain

The namespace gets one interface besides `lo`, with a default route and nobody behind it; name
servers are reached that way too. What leaves through it is counted. Writes a JSON object:
``control``: packets counted for one that was sent on purpose; ``sent``: packets while Ray started
and worked; ``listening``: addresses on which it listened. Exits with code 77 where no such
interface can be made.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NOT_POSSIBLE = 77
OUTSIDE = ("198.51.100.7", 9)  # TEST-NET-2, the discard port


def make_interface() -> None:
    """A pair of virtual Ethernet ends without neighbours to discover: no ARP, no IPv6."""
    ip("link", "set", "lo", "up")
    ip("link", "add", "out0", "type", "veth", "peer", "name", "out1")
    for settings in Path("/proc/sys/net/ipv6/conf").glob("*/disable_ipv6"):
        settings.write_text("1")
    ip("link", "set", "out1", "up", "arp", "off")
    ip("link", "set", "out0", "up", "arp", "off")
    ip("address", "add", "192.0.2.1/24", "dev", "out0")
    ip("route", "add", "default", "dev", "out0")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def packets_sent() -> int:
    """Packets sent through ``out0``; /sys may still show the namespace that we come from."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "out0":
            return int(counters.split()[9])
    raise AssertionError("out0 is gone")


def listening() -> list[str]:
    """The addresses of this namespace's listening TCP sockets."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            if state == "0A":
                raw = bytes.fromhex(local.partition(":")[0])
                words = [raw[k : k + 4][::-1] for k in range(0, len(raw), 4)]
                family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
                found.add(socket.inet_ntop(family, b"".join(words)))
    return sorted(found)


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

    def make_evaluate() -> Callable[[Mapping[str, float]], Mapping[str, float]]:
        return lambda alphas: {"loss": sum(alphas.values())}

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


def main(which: str) -> None:
    from octnas.cluster.start import local_cluster

    try:
        make_interface()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stdout.write(f"{error} {getattr(error, 'stderr', '')}")
        sys.exit(NOT_POSSIBLE)
    before = packets_sent()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"counted", OUTSIDE)
    control = packets_sent() - before
    with local_cluster(2) if which == "octnas" else plain_ray():
        evaluate_some()
        wait_for_usage_reporter()
        addresses = listening()
    sent = packets_sent() - before - control
    json.dump({"control": control, "sent": sent, "listening": addresses}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
