"""What there is on this machine, without importing what is slow to import.

Versions are those of the installed distributions; whether a package can be imported is tried in a
process of its own, all at once, so that one that crashes takes nothing else with it.
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

REQUIRED: Mapping[str, str] = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "optuna": "optuna",
    "ray": "ray",
    "mlflow": "mlflow",
    "pydantic": "pydantic",
    "typer": "typer",
    "rich": "rich",
    "plotly": "plotly",
    "pyyaml": "yaml",
    "safetensors": "safetensors",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sqlalchemy": "sqlalchemy",
    "numpy": "numpy",
}
"""What octnas cannot do without: distributions, and the modules in them."""

OPTIONAL: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "ONNX and OpenVINO": (
        'pip install "octnas[export]"',
        {
            "onnx": "onnx",
            "onnxruntime": "onnxruntime",
            "onnxscript": "onnxscript",
            "openvino": "openvino",
        },
    ),
    "studies in PostgreSQL": ('pip install "octnas[postgresql]"', {"psycopg": "psycopg"}),
    "parquet and WebDataset shards": (
        'pip install "octnas[shards]"',
        {"datasets": "datasets", "webdataset": "webdataset"},
    ),
    "TensorRT engines": ("pip install tensorrt", {"tensorrt": "tensorrt"}),
}
"""What else it can do, with the command that installs what it takes."""

_SECONDS = 120
# Worth a try: importing the others takes seconds and says no more than that their files are there.
_FRAGILE = ("torch", "onnxruntime", "openvino", "psycopg", "tensorrt")


@dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes:
        sections: lines by heading.
        problems: of what octnas needs; empty where all of it works.
    """

    sections: Mapping[str, list[str]]
    problems: tuple[str, ...]


def examine(directory: Path) -> Findings:
    """Look at this machine.

    Args:
        directory: where runs are written; it need not be there yet.
    """
    optional = {name: module for _, parts in OPTIONAL.values() for name, module in parts.items()}
    broken = _broken({**REQUIRED, **optional})
    wanted = _lower_bounds()
    problems, lines = [], [f"python {platform.python_version()}", f"octnas {version('octnas')}"]
    for name in REQUIRED:
        found, wrong = installed(name), broken.get(name, "")
        if found is not None and _below(found, wanted.get(name, "")):
            wrong = f"octnas needs {wanted[name]} or later"
        lines.append(f"{name} {found or 'not installed'}{f', broken: {wrong}' if wrong else ''}")
        if found is None or wrong:
            again = (
                "--force-reinstall --no-deps " if found and not wrong.startswith("octnas") else ""
            )
            problems.append(
                f"{name}: {wrong or 'not installed'}; pip install {again}"
                f'"{name}>={wanted.get(name, "0")}"'
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
    """The version of a distribution; None where it is not there."""
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


def _lower_bounds() -> dict[str, str]:
    """The oldest version that octnas states for each of what it needs."""
    pattern = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[.*?\])?>=([0-9.]+)\s*$")
    matches = (pattern.match(line) for line in requires("octnas") or ())
    return {match[1].lower(): match[2] for match in matches if match}


def _below(found: str, least: str) -> bool:
    def parts(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3]]

    return bool(least) and parts(found) < parts(least)


def _broken(modules: Mapping[str, str]) -> dict[str, str]:
    """Why what is installed cannot be imported, by distribution."""
    running = {
        name: subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", f"import {modules[name]}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in modules
        if name in _FRAGILE and installed(name) is not None
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
    """As the driver states them, which needs no torch."""
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
