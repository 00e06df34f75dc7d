"""A run that is killed and begun again, life after life: a program of its own.

One process imports everything; each life is a fork of it, which has never computed anything.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from octnas.cli.main import main
from octnas.runtime.directory import WHOLE_RUN
from tests.pipeline.tiny import EXPERIMENT, TINY

PROGRAM = "from tests.pipeline.lives import live; live()"
_LONGEST = 240.0  # seconds until a stage has begun, or a last life has ended


def live() -> None:
    """Kill lives at the moments that the first argument gives; the last one lives to its end.

    Before those, one life for each of the calls there dies as it makes that call.

    Prints a line of JSON for each moment: the stage in which it was meant to be, the last stage
    that had begun by then, and how long that life was.
    """
    plan = json.loads(sys.argv[1])
    folder = Path(plan["folder"])
    for call in plan.get("calls", ()):
        dead = _begin(folder, plan["overrides"], partial(_die_at, *call))
        status = os.waitstatus_to_exitcode(os.waitpid(dead, 0)[1])
        if status != -signal.SIGKILL:
            sys.exit(f"{call} was not met, and the life has ended with status {status}")
    for stage, delay in plan.get("moments", ()):
        life, begun = _begin(folder, plan["overrides"]), time.monotonic()
        if _await_stage(life, folder, stage) and _outlives(life, delay):
            os.kill(life, signal.SIGKILL)
            os.waitpid(life, 0)
            told = {"meant": stage, "reached": _reached(folder), "lived": time.monotonic() - begun}
            print(json.dumps(told), flush=True)  # noqa: T201
    last = _begin(folder, plan["overrides"])
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(last, 0)[1]))


def moments(seed: int, kills: int, seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    """When to kill: stages in order, and seconds after they have begun.

    Args:
        seed: of the draws.
        kills: how many.
        seconds: that each stage takes.
    """
    chance = random.Random(seed)
    stages = sorted(chance.choices(WHOLE_RUN, k=kills), key=WHOLE_RUN.index)
    # A life that goes on takes a moment to come to its stage again.
    return [(stage, chance.uniform(0, 1 + seconds[stage])) for stage in stages]


def _begin(
    folder: Path, overrides: Sequence[str], before: Callable[[], None] = lambda: None
) -> int:
    life = os.fork()
    if life:
        return life
    code: object = 1
    try:
        before()
        os.chdir(folder)
        changes = [part for one in (*TINY, *overrides) for part in ("--set", one)]
        sys.argv = ["octnas", "run", str(EXPERIMENT), *changes]
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        main()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _die_at(module: str, name: str, number: int) -> None:
    """Let this process be killed as it calls a function of a module for the nth time."""
    place: Any = import_module(module)
    *path, last = name.split(".")
    for part in path:
        place = getattr(place, part)
    original, calls = getattr(place, last), itertools.count(1)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(place, last, dying)


def _await_stage(life: int, folder: Path, stage: str) -> bool:
    """Whether a life comes to a stage before it ends."""
    end = time.monotonic() + _LONGEST
    while not (folder / "runs" / "tiny" / stage).exists():
        if not _outlives(life, 0.01):
            return False
        assert time.monotonic() < end
    return True


def _outlives(life: int, seconds: float) -> bool:
    """Whether a life is not at its end after so many seconds.

    It must not end otherwise than well.
    """
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(life, os.WNOHANG)
        if found:
            if status:
                sys.exit(f"a life has ended with status {os.waitstatus_to_exitcode(status)}")
            return False
        if time.monotonic() >= end:
            return True
        time.sleep(0.005)


def _reached(folder: Path) -> str:
    there = [stage for stage in WHOLE_RUN if (folder / "runs" / "tiny" / stage).exists()]
    return there[-1] if there else ""
