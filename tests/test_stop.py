from __future__ import annotations

import os
import signal

import pytest

from b2inst.stop import REQUEUE, Stopped, StopRequest


def test_a_handler_from_before_is_called_after_the_saving() -> None:
    """As submitit's, which puts the job into the queue and ends the program itself."""
    seen = []

    def requeue(signum: int, frame: object) -> None:
        seen.append("requeued")
        raise SystemExit(144)

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(SystemExit) as error, StopRequest() as stop:
            stop.waiting = True
            os.kill(os.getpid(), signal.SIGUSR2)
            seen.append("saved")
            raise Stopped(stop.signum)
        assert (seen, error.value.code) == (["saved", "requeued"], 144)
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_second_signal_and_one_that_nobody_waits_for_end_it_at_once() -> None:
    with pytest.raises(Stopped) as error, StopRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("goes on")
    assert error.value.code == REQUEUE
    with pytest.raises(Stopped) as error, StopRequest() as stop:
        stop.waiting = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("goes on")
    assert error.value.code == 130


def test_an_error_after_the_signal_counts_as_its_effect() -> None:
    with pytest.raises(Stopped) as error, StopRequest() as stop:
        stop.waiting = True
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("DataLoader worker exited unexpectedly")
    assert error.value.code == REQUEUE
    with pytest.raises(RuntimeError, match="for itself"), StopRequest():
        raise RuntimeError("for itself")
