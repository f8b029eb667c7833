"""The processes of one run: how they find each other, agree, and end together.

Every process runs the same command on its own devices (`jax.distributed`). What is decided is decided from what all of
them know, so that none waits for another one for ever; process 0 alone writes and prints. jax watches over the
processes by heartbeats: one that is silent for `HEARTBEAT` seconds is lost, and then all others end.

Importing this module loads nothing, and on a single machine no function of it loads jax.
"""

from __future__ import annotations

import collections.abc
import contextlib
import importlib.util
import itertools
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
import typing

from synergen_jax.errors import UserError, first_line
from synergen_jax.processes import crash_report

HEARTBEAT = 20  # seconds; jax looks every few seconds, so a lost process ends the others within half a minute
JOIN = 300  # seconds to wait for all processes at the start
_DAY = 24 * 3600 * 1000  # milliseconds: as long as anybody may have to wait for process 0; a lost one ends the wait
_numbers = itertools.count()


def count() -> int:
    """How many processes there are."""
    return state.num_processes if (state := _joined()) else 1


def index() -> int:
    """Which one this is, from 0."""
    return state.process_id if (state := _joined()) else 0


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return index() == 0


def say(text: str = "") -> None:
    """Prints at once, also into a pipe; of several processes the first alone does."""
    if first():
        print(text, flush=True)


def _joined() -> typing.Any:
    """jax's state of the cluster, which tells who is who before any device is touched; None on a single machine.

    Its `client` is the coordination service: keys and values, barriers, who is alive. Neither has a public name.
    """
    if "jax" not in sys.modules:
        return None
    from jax._src import distributed

    return distributed.global_state if distributed.global_state.client else None


# --- joining --------------------------------------------------------------------------------------------------


def join(
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    preemptible: bool = False,
    timeout: int = JOIN,
) -> None:
    """Joins the cluster that the arguments name, or else that of the environment; does nothing on a single machine.

    Must come before jax touches a device. Collectives of CPU devices go through gloo.

    Args:
      coordinator: HOST:PORT at which process 0 listens. With `processes` and `process`, or none of the three.
      processes: how many there are; 1 alone: no cluster, whatever the environment says.
      process: which one this is, from 0.
      preemptible: SIGTERM is a notice to all processes (`Stop`), not the end of this one.
      timeout: seconds to wait for the others.

    Raises:
      UserError: the arguments do not go together, or the others do not come.
    """
    where = _given(coordinator, processes, process)
    name = coordinator
    if where is None:
        name, where = _cluster(os.environ), {}
    if not name:
        return
    crash_report.begin()
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Without it a lost process is told to no Python code: C++ aborts all others. With it, `_Watch` sees to them.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", preemptible)
    how = "start all processes that were announced, where they reach the coordinator, or say --processes 1 to run alone"
    patience = threading.Timer(timeout, _nobody_came, (f"no cluster of {name} after {timeout} s: {how}",))
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=timeout + 60,  # at which C++ would abort
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=60,
        )
    except (RuntimeError, ValueError, OSError) as error:
        crash_report.told()
        raise UserError(f"cannot join the processes of {name}: {first_line(error)[:300]}; {how}") from None
    finally:
        patience.cancel()
    crash_report.joined(index(), count())
    if count() > 1:
        _Watch().start()


def _nobody_came(message: str) -> typing.NoReturn:
    print(f"synergen: error: {message}", file=sys.stderr)
    _exit(2)


def _given(coordinator: str, processes: int | None, process: int | None) -> dict[str, typing.Any] | None:
    """What the flags say, as arguments of `jax.distributed.initialize`; {} for a single process, None for no flags."""
    given = {"--coordinator": coordinator or None, "--processes": processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == 3:
        return None
    if processes == 1 and not coordinator and not process:
        return {}
    if not coordinator or processes is None or process is None:
        raise UserError(
            f"--coordinator HOST:PORT, --processes N and --process I go together: {' and '.join(missing)} missing"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator {coordinator}: must be HOST:PORT, where process 0 can be reached")
    if processes < 1:
        raise UserError(f"--processes {processes} must be at least 1")
    if not 0 <= process < processes:
        raise UserError(
            f"--process {process} must lie within 0 .. {processes - 1}, that is below --processes {processes}"
        )
    # All devices of the machine: without this, jax takes one of them a process under SLURM and Open MPI.
    return {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }


def _cluster(environment: collections.abc.Mapping[str, str], devices: pathlib.Path = pathlib.Path("/dev")) -> str:
    """The cluster that jax will find by itself, "" for none. Looks at the environment alone, and asks no server."""
    number = lambda name: int(environment[name]) if environment.get(name, "").isdigit() else 1
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environment for name in slurm) and number("SLURM_NTASKS") > 1:
        return "SLURM"
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        if "OMPI_MCA_orte_hnp_uri" in environment:
            return "Open MPI"
        raise UserError(
            "this version of Open MPI does not tell where process 0 is: give --coordinator HOST:PORT --processes "
            "$OMPI_COMM_WORLD_SIZE --process $OMPI_COMM_WORLD_RANK, or --processes 1 for a run of its own"
        )
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        if importlib.util.find_spec("kubernetes"):
            return "Kubernetes"
        raise UserError(
            "this pod belongs to an indexed Job: give --coordinator HOST:PORT --processes N --process "
            "$JOB_COMPLETION_INDEX, or install jax[k8s], or say --processes 1 for a run of its own"
        )
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    several = "," in hosts if hosts else "TPU_SKIP_MDS_QUERY" not in environment
    if several and importlib.util.find_spec("libtpu") and [*devices.glob("accel*"), *devices.glob("vfio/*")]:
        return "the TPU slice"
    return ""


# --- a lost process -------------------------------------------------------------------------------------------


class _Watch(threading.Thread):
    """Ends this process with a clear line once another one is lost.

    Collectives on a GPU would wait for it for ever; on a CPU they fail at once, with a message about sockets.
    """

    over = threading.Event()  # this run comes to an end: those who leave are not lost

    def __init__(self):
        super().__init__(name="watch", daemon=True)

    def run(self) -> None:
        everyone = list(range(count()))
        while not self.over.wait(2):
            try:
                alive = _joined().client.get_live_nodes(everyone)  # once all have asked, or are lost
            except Exception:  # process 0 is lost: jax's C++ side aborts at this very moment, or the run is over
                continue
            lost = [str(process) for process in everyone if process not in alive]
            if lost and not self.over.wait(1):
                crash_report.say(f"process {', '.join(lost)} of {len(everyone)} was lost")
                os._exit(1)  # the main thread may hang in a collective


_LOST = ("gloo", "nccl", "closed by peer", "unavailable", "deadline", "barrier", "coordination", "heartbeat", "socket")


def failed(error: BaseException) -> typing.NoReturn:
    """Ends this process after an error that the others need not have; they find it lost.

    What comes of another lost process is not told as an error of this one: the watch has the clearer line.
    """
    if any(word in str(error).lower() for word in _LOST):
        time.sleep(HEARTBEAT + 20)
    traceback.print_exception(error)
    crash_report.say(f"process {index()} of {count()} failed")
    _exit(1)


def _exit(status: int) -> typing.NoReturn:
    """Ends without jax's farewell, which waits for all processes."""
    crash_report.told()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def leave(status: int) -> None:
    """Ends the cluster in an orderly way; every process calls it last. One that is alone in its error just ends."""
    if not (state := _joined()):
        return
    try:
        # After success some wait for process 0 and its reports; after an error that all share nobody waits long.
        state.client.wait_at_barrier("synergen/end", _DAY if not status else 20_000)
    except Exception:
        _exit(status)
    crash_report.told()
    _Watch.over.set()
    if first():
        state.client.get_live_nodes(list(range(count())))  # the others have gone: only now may the coordinator go
    state.shutdown()


# --- agreeing -------------------------------------------------------------------------------------------------


def everyone(text: str) -> list[str]:
    """What each process says, in their order. All must ask, and any may take its time."""
    if count() == 1:
        return [text]
    client, key = _joined().client, f"synergen/say/{next(_numbers)}"
    client.key_value_set(f"{key}/{index():06}", text)
    client.wait_at_barrier(f"{key}/said", _DAY)
    return [value for _, value in sorted(client.key_value_dir_get(key))]


@contextlib.contextmanager
def together():
    """A block that is left by all processes or by none: what is refused on one of them is refused on all.

    Raises:
      UserError: of the first process that has one.
    """
    mine = None
    try:
        yield
    except (UserError, OSError) as error:
        mine = error
    if count() == 1:
        if mine:
            raise mine
        return
    said = everyone(f"!{mine}" if mine else "")
    if wrong := next(filter(None, said), ""):
        raise UserError(wrong[1:]) from None


def same(what: str, value: str) -> None:
    """Refuses processes that were started with different things.

    Raises:
      UserError: `value` is not the same on all processes.
    """
    values = everyone(value)
    if odd := next((i for i, other in enumerate(values) if other != values[0]), 0):
        raise UserError(f"process {odd} has another {what} than process 0: start all with the same command and log")


# --- being asked to stop --------------------------------------------------------------------------------------


class Stop:
    """Listens for SIGTERM, and the first SIGINT, while training: a context manager.

    Of several processes one is enough to be told: jax spreads the word, and all stop after the same step.
    """

    def __init__(self):
        self._signal = 0
        self._before: dict[int, typing.Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            # SIGTERM of a process in a cluster is jax's: it spreads the word.
            for number in (signal.SIGINT,) if count() > 1 else (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a script
                    self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, _) -> None:
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])  # the second one interrupts at once
            os.write(2, b"\nsaving, then stopping; once more stops at once\n")
            if count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)
        self._signal = number

    def after(self, step: int) -> int:
        """The exit status with which to stop after this step; 0: go on. Every process asks after every step."""
        if count() > 1:
            from jax.experimental import multihost_utils

            with contextlib.suppress(RuntimeError):  # the program that joined did so without preemption
                return 143 * multihost_utils.reached_preemption_sync_point(step)
            return 0
        return 128 + self._signal if self._signal else 0
