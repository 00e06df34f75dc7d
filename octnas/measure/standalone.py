"""Time networks and their layers, interleaved, and store the times.

This file only needs Python 3.9, numpy and, as a program, ONNX Runtime: `octnas latency pack` copies
it beside the ONNX files that it times, for devices without octnas::

    python measure.py --name NAME

If interrupted, it resumes; at the end it writes ``answer.json`` for `octnas latency import`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = 1
MANIFEST_FILE = "manifest.json"
ANSWER_FILE = "answer.json"
KEPT_FILE = "measured.jsonl"
KEY = re.compile(r"[0-9a-f]{16}")

Step = Callable[[], Any]

_BLOCK = 24  # functions interleaved with each other and with the reference
_TURN = 1e-3  # seconds; faster functions are called several times in a row
_MOST_CALLS = 100
_WARM_UP = 2  # rounds

_INVALID = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_TIMES = ("seconds", "ratio", "even", "odd")
# Limits of what can be measured; a product of two is neither 0 nor infinite.
_SHORTEST, _LONGEST = 1e-12, 1e6


class MeasureFileError(Exception):
    """A file with invalid contents, in one line."""


class Kept:
    """Times by key, in an append-only file.

    A line has a key, the reference's ``seconds``, and the ratio of the function's time to it:
    ``ratio`` over all rounds, ``even`` and ``odd`` over the even and the odd ones.

    Args:
        path: the file; existing times are kept.
        conditions: of the measurement; must equal those of existing times.

    Raises:
        MeasureFileError: other conditions, or invalid contents.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self._path = path
        self.entries: dict[str, dict[str, float]] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            # The last line was torn when its process died.
            os.truncate(path, whole)
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write({"schema": SCHEMA, "conditions": dict(conditions)})
            return
        first, *lines = content[:whole].split(b"\n")[:-1]
        try:
            head = json.loads(first.decode())
            found = dict(head["conditions"])
            if head["schema"] != SCHEMA:
                raise ValueError(head["schema"])
        except _INVALID:
            raise MeasureFileError(
                f"{path}: not a file of times of schema {SCHEMA}; remove it"
            ) from None
        for number, line in enumerate(lines, start=2):
            try:
                key, entry = _read_entry(line)
            except _INVALID:
                raise MeasureFileError(
                    f"{path}: line {number} is invalid; remove that line or the file, and the "
                    "missing times are measured again"
                ) from None
            self.entries[key] = entry
        for key, value in dict(conditions).items():
            if found.get(key) != value:
                raise MeasureFileError(
                    f"{path}: was measured with {key} {found.get(key)!r}, now {value!r}; remove it "
                    "or write to another file"
                )

    def add(self, key: str, entry: Mapping[str, float]) -> None:
        """Store the times of a key; they are on disk when this returns."""
        self._write({"key": key, **entry})
        self.entries[key] = dict(entry)

    def seconds(self, keys: Collection[str], which: str = "ratio") -> dict[str, float]:
        """Seconds by key, relative to one reference: the median over these keys.

        ``which`` is ``ratio``, ``even`` or ``odd``.
        """
        entries = {key: self.entries[key] for key in keys}
        if not entries:
            return {}
        reference = statistics.median(entry["seconds"] for entry in entries.values())
        return {key: entry[which] * reference for key, entry in entries.items()}

    def _write(self, document: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(document) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _read_entry(line: bytes) -> tuple[str, dict[str, float]]:
    """A line of the file after the first; raises one of `_INVALID`."""
    document = json.loads(line.decode())
    key, entry = document["key"], {name: document[name] for name in _TIMES}
    for value in entry.values():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not _SHORTEST <= value <= _LONGEST:
            raise ValueError(value)
    if not isinstance(key, str):
        raise TypeError(key)
    return key, {name: float(value) for name, value in entry.items()}


def time_all(
    keys: Sequence[str],
    prepare: Callable[[str], Step],
    reference: Step,
    kept: Kept,
    repeats: int,
    log: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Time functions interleaved with a reference, block by block, unless their times are stored.

    A slower phase of the machine slows down the reference alike.

    Args:
        keys: of the functions.
        prepare: the function of a key, which returns once its work is done.
        reference: called in every round.
        kept: stores the times.
        repeats: timed rounds.
        log: called with the numbers of finished keys and of all.
    """
    left = [key for key in dict.fromkeys(keys) if key not in kept.entries]
    total = len(dict.fromkeys(keys))
    log(total - len(left), total)
    for start in range(0, len(left), _BLOCK):
        block = left[start : start + _BLOCK]
        steps = {key: prepare(key) for key in block}
        base, *times = _interleave([reference, *steps.values()], repeats)
        for key, own in zip(block, times):  # noqa: B905  Python 3.9 knows no strict
            kept.add(key, _entry(own, base))
        log(total - len(left) + start + len(block), total)


def _interleave(steps: Sequence[Step], repeats: int) -> list[np.ndarray]:
    """Seconds of every function in every round, each of shape ``(repeats,)``."""
    calls = [_calls(step) for step in steps]
    seconds = np.zeros((len(steps), _WARM_UP + repeats))
    for turn in range(_WARM_UP + repeats):
        for index, step in enumerate(steps):
            start = time.perf_counter()
            for _ in range(calls[index]):
                step()
            seconds[index, turn] = (time.perf_counter() - start) / calls[index]
    return list(seconds[:, _WARM_UP:])


def _calls(step: Step) -> int:
    """How often to call a function in a round."""
    step()
    start = time.perf_counter()
    step()
    return int(min(max(1, np.ceil(_TURN / (time.perf_counter() - start))), _MOST_CALLS))


def _entry(own: np.ndarray, base: np.ndarray) -> dict[str, float]:
    ratios = own / base
    return {
        "seconds": float(np.median(base)),
        "ratio": float(np.median(ratios)),
        "even": float(np.median(ratios[::2])),
        "odd": float(np.median(ratios[1::2])),
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a pack.

    Raises:
        MeasureFileError: it is invalid.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        keys = [manifest["reference"], *manifest["keys"]]
        fine = manifest["schema"] == SCHEMA and all(KEY.fullmatch(key) for key in keys)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MeasureFileError(f"{path}: cannot be read as a manifest ({error})") from None
    if not fine:
        raise MeasureFileError(f"{path}: not a manifest of schema {SCHEMA}")
    return dict(manifest)


def _session(path: Path, threads: int) -> Step:
    """A function that runs an ONNX file once, on random inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feed = {
        entry.name: rng.standard_normal(entry.shape).astype(np.float32)
        for entry in session.get_inputs()
    }
    return lambda: session.run(None, feed)


def main() -> None:
    """Time the files in the manifest beside this file."""
    parser = argparse.ArgumentParser(description="Time the networks and layers of this folder.")
    parser.add_argument("--name", default=platform.node() or platform.machine())
    parser.add_argument("--threads", type=int, default=1, help="0 is ONNX Runtime's default")
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    if given.repeats < 2 or given.threads < 0:
        parser.error("--repeats takes 2 or more, --threads 0 or more")
    folder = Path(__file__).resolve().parent
    try:
        _measure(folder, given.name, given.threads, given.repeats)
    except MeasureFileError as error:
        sys.exit(f"measure: {error}")


def _measure(folder: Path, name: str, threads: int, repeats: int) -> None:
    import onnxruntime

    manifest = read_manifest(folder / MANIFEST_FILE)
    if missing := [k for k in manifest["keys"] if not (folder / f"{k}.onnx").is_file()]:
        raise MeasureFileError(f"{folder}: {missing[0]}.onnx is missing; copy the whole pack")
    conditions = {"device": name, "threads": threads, "repeats": repeats, "pack": manifest["pack"]}
    kept = Kept(folder / KEPT_FILE, conditions)

    def prepare(key: str) -> Step:
        return _session(folder / f"{key}.onnx", threads)

    def log(done: int, total: int) -> None:
        sys.stderr.write(f"{done} of {total}\n")

    time_all(manifest["keys"], prepare, prepare(manifest["reference"]), kept, repeats, log)
    answer = {
        "schema": SCHEMA,
        "device": name,
        "threads": threads,
        "onnxruntime": onnxruntime.__version__,
        "seconds": {w: kept.seconds(manifest["keys"], w) for w in ("ratio", "even", "odd")},
        "manifest": manifest,
    }
    (folder / ANSWER_FILE).write_text(json.dumps(answer), encoding="utf-8")
    sys.stdout.write(f"{folder / ANSWER_FILE}\n")


if __name__ == "__main__":
    main()
