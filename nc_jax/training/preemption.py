"""SIGTERM, the way in which schedulers announce that a machine goes away: finish the step, save, end."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again


class PreemptedError(Exception):
    """Training was asked to stop (SIGTERM). The state has been saved."""


class Preemption:
    """Whether SIGTERM has come, while the block lasts.

    With several processes (`jax.distributed`) all of them agree on the step after which to stop, by JAX's preemption
    service. In a thread other than the main one Python delivers no signals; the block then watches for nothing.
    """

    def __enter__(self) -> "Preemption":
        self._received, self._previous = False, None
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; every process must ask after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._received = True
