"""`synergen` as one process of several, which may do what happens to processes.

python small_processes.py WORD=VALUE,... synergen's arguments

kill=STEP    SIGKILL of itself at this step
once=STEP    but not before the checkpoint of this one is on disk
term=STEP    SIGTERM of itself at this step
heartbeat=N  a process that is silent for so many seconds is lost
"""

import os
import pathlib
import signal
import sys
import time

from synergen_jax.cli import main as cli
from synergen_jax.processes import cluster, crash_report


def main(words, *arguments):
    """Runs the command."""
    asked = {name: int(value) for name, _, value in (word.partition("=") for word in words.split(",") if word)}
    cluster.HEARTBEAT = asked.get("heartbeat", cluster.HEARTBEAT)
    at = crash_report.at

    def happens(step, folder):
        at(step, folder)
        if step == asked.get("kill"):
            deadline = time.monotonic() + 60
            while not (pathlib.Path(folder) / str(asked["once"])).is_dir():
                assert time.monotonic() < deadline, "no checkpoint"
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        if step == asked.get("term"):
            os.kill(os.getpid(), signal.SIGTERM)

    crash_report.at = happens
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
