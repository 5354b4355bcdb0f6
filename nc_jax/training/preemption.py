"""Handling of SIGTERM, by which cluster schedulers announce that a machine goes away: finish the step, save, end."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again


class PreemptedError(Exception):
    """Training was asked to stop (SIGTERM). The state has been saved."""


class StopRequestedError(Exception):
    """The process was asked to stop; the state has to be saved."""


class Preemption:
    """A `with` block that catches SIGTERM; `check` raises an error once it has come.

    With several processes (`jax.distributed`), JAX's preemption service makes all of them stop after the same step.
    Python delivers signals to the main thread only; in another thread the block does not catch SIGTERM.
    """

    def __enter__(self) -> "Preemption":
        self._received, self._previous = False, None
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def check(self, step: int | None = None) -> None:
        """Raise an error if the process was asked to stop. Several processes must all call this after every step.

        Args:
            step: number of the step that has ended. None between steps, where only a single process stops: several
                stop after the same step.

        Raises:
            StopRequestedError: if SIGTERM has come.
        """
        if jax.process_count() == 1:
            stop = self._received
        else:
            stop = step is not None and multihost_utils.reached_preemption_sync_point(step)
        if stop:
            raise StopRequestedError

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._received = True
