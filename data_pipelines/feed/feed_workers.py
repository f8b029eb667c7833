"""What every process that makes batches does when it starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def end_with_the_program(*_) -> None:
    """In a worker: it ends with the program, however that ends, and not before it.

    Signals to the whole group of processes are the program's, which first finishes its step. One that is killed cannot
    tell its workers, and neither Grain's nor those of `concurrent.futures` look.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    program = multiprocessing.parent_process()
    assert program is not None, "the program itself is no worker"

    def outlive() -> None:
        program.join()
        os._exit(1)

    threading.Thread(target=outlive, daemon=True).start()
