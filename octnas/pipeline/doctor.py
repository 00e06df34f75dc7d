"""``octnas doctor``: a check of this machine that imports no slow package itself.

Versions come from the metadata of the installed distributions. Packages that may fail to import are
imported in separate processes, in parallel, so that a crash affects nothing else.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from octnas.data.settings import CACHE
from octnas.errors import ConfigError
from octnas.io.files import expand_home
from octnas.report.png import find_browser

OPTIONAL: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ONNX and OpenVINO": (
        'pip install "octnas[export]"',
        ("onnx", "onnxruntime", "onnxscript", "openvino"),
    ),
    "studies in PostgreSQL": ('pip install "octnas[postgresql]"', ("psycopg",)),
    "parquet and WebDataset shards": ('pip install "octnas[shards]"', ("datasets", "webdataset")),
    "pruned networks as a baseline": ('pip install "octnas[pruning]"', ("torch-pruning",)),
    "TensorRT engines": ("pip install tensorrt", ("tensorrt",)),
}
"""Optional features, with the command that installs their distributions, and these."""

_SECONDS = 120
# Distributions with compiled parts, imported to see whether they work; modules of the same name.
_FRAGILE = ("torch", "onnxruntime", "openvino", "psycopg", "tensorrt")


@dataclass(frozen=True)
class Findings:
    """Lines by heading, and a line for each requirement of octnas that is not met."""

    sections: Mapping[str, list[str]]
    problems: tuple[str, ...]


def examine(directory: Path) -> Findings:
    """Check this machine.

    Args:
        directory: where runs are written; it need not exist yet.
    """
    broken, wanted = _broken(), lower_bounds()
    problems, lines = [], [f"python {platform.python_version()}", f"octnas {version('octnas')}"]
    for name, least in wanted.items():
        found, wrong = installed(name), broken.get(name, "")
        if found is not None and _below(found, least):
            wrong = f"octnas needs {least} or later"
        lines.append(f"{name} {found or 'not installed'}{f', broken: {wrong}' if wrong else ''}")
        if found is None or wrong:
            again = (
                "--force-reinstall --no-deps " if found and not wrong.startswith("octnas") else ""
            )
            problems.append(
                f'{name}: {wrong or "not installed"}; pip install {again}"{name}>={least}"'
            )
    sections = {
        "Versions": lines,
        "Machine": _machine(),
        "GPUs": _gpus(),
        "Disks": _disks(directory),
        "Optional": [_optional(what, broken) for what in OPTIONAL] + [_browser()],
    }
    return Findings(sections, tuple(problems))


def installed(name: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _optional(what: str, broken: Mapping[str, str]) -> str:
    command, parts = OPTIONAL[what]
    missing = [name for name in parts if installed(name) is None]
    if missing:
        return f"{what}: {', '.join(missing)} not installed; {command}"
    if wrong := [f"{name} is broken ({broken[name]})" for name in parts if name in broken]:
        return (
            f"{what}: {', '.join(wrong)}; {command.replace('install', 'install --force-reinstall')}"
        )
    return f"{what}: {', '.join(f'{name} {installed(name)}' for name in parts)}"


def _browser() -> str:
    if found := find_browser():
        return f"figures as PNG: {found}"
    return "figures as PNG: no Chromium or Chrome on the PATH; apt-get install chromium"


def lower_bounds() -> dict[str, str]:
    """The lowest version of each distribution that octnas requires, extras excluded."""
    pattern = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[.*?\])?>=([0-9.]+)\s*$")
    matches = (pattern.match(line) for line in requires("octnas") or ())
    return {match[1].lower(): match[2] for match in matches if match}


def _below(found: str, least: str) -> bool:
    def parts(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3]]

    return parts(found) < parts(least)


def _broken() -> dict[str, str]:
    """Why installed packages cannot be imported, by distribution."""
    running = {
        name: subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", f"import {name}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in _FRAGILE
        if installed(name) is not None
    }
    found = {}
    for name, process in running.items():
        try:
            said = process.communicate(timeout=_SECONDS)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            said = f"not imported within {_SECONDS} s"
        if process.returncode:
            last = (said.strip() or f"exit code {process.returncode}").splitlines()[-1]
            found[name] = " ".join(last.split())[:160]
    return found


def _machine() -> list[str]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    usable = len(os.sched_getaffinity(0))
    lines = [
        platform.platform(),
        f"CPU: {_cpu_name()}, {os.cpu_count()} cores, {usable} of them for this process",
        f"memory: {memory / 1e9:,.1f} GB",
    ]
    shared = Path("/dev/shm")  # noqa: S108 - Ray's object store and torch's workers use it
    if not shared.is_dir():
        return [*lines, f"{shared}: missing; Ray's object store and data loaders' workers need it"]
    usage = shutil.disk_usage(shared)
    return [*lines, f"{shared}: {usage.free / 1e9:,.1f} of {usage.total / 1e9:,.1f} GB free"]


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """As reported by the driver, without torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ["none: no nvidia-smi on the PATH"]
    query = "--query-gpu=name,memory.total,memory.free,driver_version"
    try:
        done = subprocess.run(  # noqa: S603
            [program, query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi does not work ({type(error).__name__})"]
    if done.returncode:
        return [f"nvidia-smi does not work (exit code {done.returncode})"]
    rows = [line.split(", ") for line in done.stdout.strip().splitlines()]
    return [
        f"{row[0]}, {row[1]}, {row[2]} free, driver {row[3]}" for row in rows if len(row) == 4
    ] or ["none"]


def _disks(directory: Path) -> list[str]:
    try:
        cache = _free("cache of images", expand_home(CACHE, "data.cache.folder"))
    except ConfigError as error:
        cache = f"cache of images: {error}"
    return [_free("run directories", directory.absolute()), cache]


def _free(what: str, path: Path) -> str:
    there = path
    while not there.exists():
        there = there.parent
    mark = "" if os.access(there, os.W_OK) else ", which this user may not write to"
    return f"{what}: {shutil.disk_usage(there).free / 1e9:,.1f} GB free in {path}{mark}"
