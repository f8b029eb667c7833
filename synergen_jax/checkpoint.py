"""Checkpoints: state and feed position, written by Orbax in the background, the newest and the best kept.

Orbax commits a checkpoint by a rename after all its files are written, so that one cut off half-way is never taken for
whole. A checkpoint that cannot be read is passed over, aloud, in favour of an older one; a run that goes on from the
older one first moves it to the folder `damaged` beside, since its step will be written again.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import pathlib
import shutil
import sys
import typing
import warnings

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from synergen_jax.errors import UserError

METRIC = "ndcg@10"


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, to which a checkpoint with damaged metrics is one without metrics: it is not the best one."""

    def __init__(self, say: typing.Callable[[str], None], *args, **options):
        self._warn = say
        super().__init__(*args, **options)

    def metrics(self, step: int):
        try:
            return super().metrics(step)
        except Exception as error:  # a damaged file surfaces as almost any exception
            self._warn(f"warning: metrics of checkpoint {self.directory / str(step)} cannot be read: {_reason(error)}")
            return None


class Checkpoints:
    """The checkpoints of one run, under `folder`. A context manager: leaving it waits for the last write."""

    def __init__(
        self, folder: pathlib.Path, keep: int = 2, say: typing.Callable[[str], None] = print, read_only: bool = False
    ):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax reports every save at length
        metric = lambda metrics: metrics[METRIC]
        policy = checkpoint_managers.preservation_policy.AnyPreservationPolicy(
            [
                checkpoint_managers.preservation_policy.LatestN(n=keep),
                checkpoint_managers.preservation_policy.BestN(
                    get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        self.folder, self._say, self._read_only = folder.resolve(), say, read_only
        self._manager = _Manager(
            say,
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=metric,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
            ),
            item_names=("state", "info"),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_):
        self._manager.close()

    def save(self, step: int, state: typing.Any, info: dict[str, typing.Any], metric: float | None) -> None:
        """Starts writing `state` and the JSON-like `info`; returns once the state may be donated.

        Raises:
          UserError: this or the preceding checkpoint could not be written (disk full, no permission).
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(info))
        try:
            saved = self._manager.save(step, args=args, metrics=None if metric is None else {METRIC: metric})
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: cannot write the checkpoint of step {step}: {error}") from error
        if not saved:
            raise UserError(f"{self.folder}: has a checkpoint of step {step} or later already: give another --workdir")

    def wait(self) -> None:
        """Returns once everything is on disk."""
        self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Steps that have a whole checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(self, like: typing.Any, best: bool = False) -> tuple[typing.Any, dict[str, typing.Any]] | None:
        """The newest readable checkpoint, or with `best` the one of the highest validation metric.

        Args:
          like: a state of the wanted structure, shapes, dtypes and shardings; arrays or `jax.ShapeDtypeStruct`s. It may
            lie on another mesh than the saved one did.

        Returns:
          (state, info), or None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        steps = self.steps()[::-1]
        if best and (chosen := self._manager.best_step()) in steps:
            steps.insert(0, steps.pop(steps.index(chosen)))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with _quiet():
            for tried, step in enumerate(steps):
                args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), info=ocp.args.JsonRestore())
                try:
                    found = self._manager.restore(step, args=args)
                except Exception as error:  # a damaged file surfaces as almost any exception
                    where = self.folder / str(step)
                    self._say(f"warning: checkpoint {where} cannot be read and is passed over: {_reason(error)}")
                else:
                    self._set_aside(steps[:tried])
                    return found["state"], found["info"]
        if steps:
            raise UserError(f"{self.folder}: none of its checkpoints can be read; delete the folder to start afresh")
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Moves damaged checkpoints away: Orbax writes no step that it believes to have."""
        if self._read_only or not steps:
            return
        aside = self.folder.with_name("damaged")
        aside.mkdir(exist_ok=True)
        for step in steps:
            shutil.rmtree(aside / str(step), ignore_errors=True)
            (self.folder / str(step)).rename(aside / str(step))
        self._manager.reload()


def _reason(error: Exception) -> str:
    """An error's first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def _quiet():
    """Drops what the reads that Orbax abandons at a damaged file would print when they are collected."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    log = logging.getLogger("asyncio")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "coroutine was never awaited"
            yield
            gc.collect()
    finally:
        log.setLevel(level)
        sys.unraisablehook = hook
