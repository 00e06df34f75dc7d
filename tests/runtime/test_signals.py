"""Signals at their moments, in processes of their own."""

import signal
import time

import pytest

from tests.programs import begun

PROGRAM = """
import signal, sys, time
# Are ignored, and stay so, where a script runs the tests in its background, or by nohup.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from octnas.runtime.signals import Stopped, before_stop, deferred, no_hurry, stoppable

def say(what): print(what, flush=True)

def wait(seconds, asked=lambda: 0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not asked(): time.sleep(0.01)

try:
    with stoppable(leave="leave" in sys.argv):
        if "deferred" in sys.argv:
            with deferred(1.0) as asked:
                say("begun")
                wait(60, asked)
                say(f"asked {asked()}")
                if "unhurried" in sys.argv:
                    no_hurry()
                wait(2.5)
                say("at its end")
        elif "before" in sys.argv:
            acting = []

            def act(number):
                say(f"acting on {number}")
                acting.append(number)
                wait(60 if "long" in sys.argv else 1)
                say("acted")

            with before_stop(act):
                say("begun")
                wait(60, lambda: len(acting) if "ending" in sys.argv else 0)
                say("at its end")
        else:
            say("begun")
            wait(60)
except Stopped as error:
    say(f"stopped {error} {error.number}")
"""


def outcome(
    *words: str, number: signal.Signals = signal.SIGTERM, times: int = 1, pause: float = 0.1
) -> list[str]:
    """What a process says after a signal, or several, and its exit code."""
    with begun(PROGRAM, *words) as process:
        for _ in range(times):
            process.send_signal(number)
            time.sleep(pause)
        out, _ = process.communicate(timeout=60)
        return [*out.splitlines(), str(process.returncode)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_work(number: signal.Signals) -> None:
    assert outcome(number=number) == [f"stopped {number.name} {number:d}", "0"]


def test_one_that_others_wait_for_says_nothing() -> None:
    assert outcome("leave") == [str(128 + signal.SIGTERM)]


def test_a_signal_is_deferred_for_so_long() -> None:
    """The same one again, of the parent and of a scheduler, changes nothing."""
    assert outcome("deferred", times=2) == ["asked 15", "stopped SIGTERM 15", "0"]
    assert outcome("deferred", "leave") == ["asked 15", str(128 + signal.SIGTERM)]


def test_what_is_worth_waiting_for_is_waited_for() -> None:
    assert outcome("deferred", "unhurried") == ["asked 15", "at its end", "stopped SIGTERM 15", "0"]


def test_something_is_done_first_while_the_work_goes_on() -> None:
    assert outcome("before") == ["acting on 15", "acted", "stopped SIGTERM 15", "0"]
    # The work comes to its end meanwhile.
    expected = ["acting on 15", "at its end", "stopped SIGTERM 15", "0"]
    assert outcome("before", "ending") == expected


def test_a_second_signal_breaks_that_off() -> None:
    found = outcome("before", "long", times=2, pause=2.5)
    assert found == ["acting on 15", "stopped SIGTERM 15", "0"]
