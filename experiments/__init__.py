"""Experiments: one runnable module per claim of a paper. `python -m experiments` lists them."""

import contextlib
import os
import signal
import sys
import threading


def end_on_ctrl_c() -> None:
    """End the program with one sentence and status 130 as soon as Ctrl-C is pressed, whatever it is doing.

    Python tells of Ctrl-C by raising KeyboardInterrupt in the main thread. That waits for a compilation to end, some
    libraries swallow it, and XLA may crash in the clean-up that follows. So another thread waits for the signal and
    ends the process where it stands: whatever a run has written survives that, as it survives SIGKILL.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # a shell that runs a program in the background tells it to ignore Ctrl-C
    come, arrive = os.pipe()
    os.set_blocking(arrive, False)
    signal.set_wakeup_fd(arrive, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, lambda number, frame: None)

    def wait() -> None:
        while signal.SIGINT not in os.read(come, 1):
            pass  # another signal, which has a handler of its own
        study = sys.modules.get("nc_jax.study.ends")
        go_on = getattr(study, "way_to_go_on", lambda: "no run had begun, so start again with the same command")()
        cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # which a progress bar hides
        os.write(sys.stderr.fileno(), f"{cursor}interrupted; {go_on}\n".encode())
        os._exit(130)

    threading.Thread(target=wait, name="waits for Ctrl-C", daemon=True).start()


STARTS_HERE = sys.argv[0] == "-m"  # this package is being imported to run one of its modules
if STARTS_HERE:
    end_on_ctrl_c()

from nc_jax.extras import require_all
from nc_jax.study.ends import one_sentence

with one_sentence("experiments") if STARTS_HERE else contextlib.nullcontext():
    require_all("experiments", "an experiment")
