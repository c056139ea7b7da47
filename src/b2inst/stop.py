"""Signals that ask a run to stop, and the exit codes that tell a scheduler what to do next."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

# sysexits.h's EX_TEMPFAIL: the same command, given again, will succeed. No crash and no signal ends with it.
REQUEUE = 75
CODES = {
    signal.SIGTERM: REQUEUE,  # pre-emption, and the end of the time limit
    signal.SIGUSR1: REQUEUE,  # SLURM's --signal=USR1@SECONDS, and older submitit
    signal.SIGUSR2: REQUEUE,  # submitit
    signal.SIGINT: 130,  # Ctrl-C: somebody wants it to stop, and nobody to start it again
}


class Stopped(SystemExit):
    """Ends the program because of a signal, with its exit code and without a traceback."""

    def __init__(self, signum: int) -> None:
        super().__init__(CODES[signal.Signals(signum)])
        self.signum = signum


class StopRequest:
    """Notes a signal until the run can stop, or ends the program where there is nothing to wait for.

    A second signal ends it at once. At the exit of the context a handler that was there before is called, as
    submitit's, which puts its job into the queue again. An error that follows the signal counts as its effect.

    Attributes:
        waiting: whether somebody looks at `signum` from time to time.
        signum: the signal that came, None for none.
    """

    def __init__(self) -> None:
        self.waiting = False
        self.signum: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # the only one that Python lets do it
            self._before = {signum: signal.getsignal(signum) for signum in CODES}
            self.listen()
        return self

    def listen(self) -> None:
        """Take the signals; again after Lightning has taken SIGTERM, which leaves with the code of success."""
        self._process = os.getpid()
        for signum in self._before:
            signal.signal(signum, self._note)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        lost = self.signum is not None and isinstance(error, Exception)  # as where a worker got the signal too
        signum = error.signum if isinstance(error, Stopped) else self.signum if lost else None
        handler = self._before.get(signum)
        if lost:
            _say(f"{error}")
        if callable(handler) and handler is not signal.default_int_handler:
            handler(signum, None)
        if lost:
            raise Stopped(signum) from error

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked one, as a loader worker: the signal was for the whole group
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        name = signal.Signals(signum).name
        if self.waiting and self.signum is None:
            self.signum = signum
            _say(f"{name}: finishing the step and saving; a second signal ends the run at once")
            return
        _say(f"{name}: stopped")
        raise Stopped(signum)


def _say(text: str) -> None:
    """Write to stderr; neither print nor logging may be called where they may be in the middle of a call."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{text}\n".encode())
