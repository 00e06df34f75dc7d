"""Counting the packets that a program would send, in a network of its own without an outside.

A network namespace gets one interface that leads nowhere and a default route through it, so that
whatever the program sends, name look-ups included, is counted there and goes no further.
"""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

# ARP and IPv6 would send packets on their own. The name server lies behind the interface.
SCRIPT = """
set -e
ip link set lo up
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null || true
ip link add out0 type dummy 2>/dev/null || ip link add out0 type veth peer name far0
ip link set far0 up 2>/dev/null || true
ip link set out0 arp off
ip addr add 198.18.0.2/24 dev out0
ip link set out0 up
ip route add default via 198.18.0.1 dev out0
mount --bind "$1" /etc/resolv.conf
count() { sed -n 's/^ *out0: *//p' /proc/net/dev | awk '{ print $10 }'; }
echo "before $(count)"
shift
"$@" >&2
sleep 1
echo "after $(count)"
"""
PREFIX = ("unshare", "--map-root-user", "--net", "--mount", "sh", "-c", SCRIPT, "sh")


def listening(processes: Iterable[int] | None = None) -> list[str]:
    """The addresses of the TCP sockets that listen in this network.

    Args:
        processes: numbers of those whose sockets count; by default all.
    """
    theirs = None if processes is None else {one for pid in processes for one in _sockets(pid)}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and (theirs is None or columns[9] in theirs):
                raw = bytes.fromhex(columns[1].partition(":")[0])
                words = [raw[k : k + 4][::-1] for k in range(0, len(raw), 4)]
                family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
                found.add(socket.inet_ntop(family, b"".join(words)))
    return sorted(found)


def _sockets(process: int) -> set[str]:
    """The inodes of the sockets that a process has open."""
    found = set()
    for file in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been closed
            found.add(str(file.readlink()))
    return {link[8:-1] for link in found if link.startswith("socket:[")}


def packets_sent(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
    """How many packets a Python program would send to other machines until a second after its end.

    Skips the test where a network of one's own is not permitted.

    Args:
        arguments: of Python, such as ``("-c", code)``.
        folder: where it runs.
        environment: all of its environment variables.
    """
    _skip_unless_possible(folder)
    before, after = _count([sys.executable, *arguments], folder, environment)
    return after - before


def _skip_unless_possible(folder: Path) -> None:
    try:
        _count(["true"], folder, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    except FileNotFoundError as error:
        pytest.skip(f"needs the program {error.filename}")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network of one's own is permitted here: {error.stderr.strip()}")


def _count(command: list[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, int]:
    resolver = folder / "resolv.conf"
    resolver.write_text("nameserver 198.18.0.1\noptions timeout:1 attempts:1\n")
    done = subprocess.run(
        [*PREFIX, str(resolver), *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    counts = dict(line.split() for line in done.stdout.splitlines())
    return int(counts["before"]), int(counts["after"])
