"""A first signal is a request, a second one an order, and afterwards everything is as it was."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rl_research.errors import Interrupted
from rl_research.system.signals import Overdue, listening

SIGNALS = ["SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"]


def _in_a_process(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    head = "import os, signal, sys, time\nfrom rl_research.system.signals import listening\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(body), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", SIGNALS)
def test_the_first_signal_is_remembered_and_harms_nothing(name: str) -> None:
    """SIGINT, SIGTERM, SIGUSR1 and SIGHUP set the flag, are named in one warning and let the program go on."""
    done = _in_a_process(
        """
        with listening() as stop:
            assert not stop
            os.kill(os.getpid(), getattr(signal, sys.argv[1]))
            time.sleep(0.01)
            print(bool(stop), stop.by.name)
        """,
        name,
    )
    assert (done.returncode, done.stdout) == (0, f"True {name}\n")
    assert done.stderr.startswith(f"{name}: stopping at the next rollout")


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_signal_ends_at_once(first: str, second: str) -> None:
    """Whichever two of the four signals come, the second raises KeyboardInterrupt where it strikes."""
    with listening() as stop:
        signal.raise_signal(getattr(signal, first))
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(getattr(signal, second))
    assert stop.by is not None
    assert stop.by.name == first


def test_nohup_is_nohup() -> None:
    """Where SIGHUP is ignored, as under `nohup`, it is no request."""
    done = _in_a_process(
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            print(bool(stop))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        """
    )
    assert (done.returncode, done.stdout) == (0, "False\n")


def test_an_unheeded_program_dies_of_the_second_signal() -> None:
    """A program that never polls the flag can still be ended with two signals."""
    done = _in_a_process(
        """
        with listening():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        """
    )
    assert done.returncode not in (0, None)
    assert "KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize("fails", [False, True])
def test_handlers_are_given_back(fails: bool) -> None:
    """After the block, also after an error in it, each signal has the handler it had before."""
    numbers = [getattr(signal, name) for name in SIGNALS]

    def mine(number: int, frame: object) -> None:
        """Never called."""

    original = [signal.signal(number, mine) for number in numbers]
    try:
        with pytest.raises(ZeroDivisionError) if fails else listening(), listening():
            assert all(signal.getsignal(number) is not mine for number in numbers)
            if fails:
                raise ZeroDivisionError
        assert [signal.getsignal(number) for number in numbers] == [mine] * len(numbers)
    finally:
        for number, handler in zip(numbers, original, strict=True):
            signal.signal(number, handler)


def test_after_the_block_sigterm_kills_again() -> None:
    """Outside the block a SIGTERM has its usual meaning."""
    done = _in_a_process(
        """
        with listening():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        """
    )
    assert done.returncode == -signal.SIGTERM


def test_in_another_thread_nothing_is_installed() -> None:
    """Where Python allows no handlers the block works, asks for nothing and changes no handler."""
    before = [signal.getsignal(getattr(signal, name)) for name in SIGNALS]
    seen: list[object] = []

    def work() -> None:
        with listening() as stop:
            seen.append([signal.getsignal(getattr(signal, name)) for name in SIGNALS])
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [before, False]


def test_raise_if_requested_says_which_signal() -> None:
    """A request raises `Interrupted` with the signal's name and exit code 75; none raises nothing."""
    with listening() as stop:
        stop.raise_if_requested()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM") as caught:
            stop.raise_if_requested()
    assert caught.value.exit_code == 75


def test_a_request_that_nobody_heeds_in_time_ends_the_run() -> None:
    """After the deadline `Overdue` is raised wherever the program is, and no alarm is left behind."""

    def sleep_through_it() -> None:
        with listening(deadline=0.05):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(Overdue, match="SIGTERM"):
        sleep_through_it()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with listening(deadline=30):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
