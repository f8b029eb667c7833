"""Checkpoints: state and feed position, written by Orbax in the background, the newest and the best kept.

Orbax commits a checkpoint by a rename after all its files are written, so that one cut off half-way is never taken for
whole. A checkpoint that cannot be read is passed over, aloud, in favour of an older one. Which step is the best is
written in each checkpoint's own `info`: Orbax's metrics would have to be whole in every one of them.

Of several processes all save together, on a filesystem that they share, and each reads its own shards. They read without
Orbax's barriers, at which all would wait for the one that finds a file damaged, and agree after each step that they try.
"""

from __future__ import annotations

import collections.abc
import contextlib
import errno
import functools
import gc
import logging
import pathlib
import shutil
import sys
import typing
import warnings

import jax
import orbax.checkpoint as ocp

from synergen_jax import processes
from synergen_jax.errors import Stopped, UserError


class _LatestAndBest:
    """Orbax's preservation policy: the newest `keep` checkpoints, and that of step `best`."""

    def __init__(self, keep: int):
        self.keep, self.best = keep, -1

    def should_preserve(self, checkpoints: collections.abc.Sequence, *, context: typing.Any) -> list[bool]:
        first = len(checkpoints) - self.keep
        return [i >= first or checkpoint.step == self.best for i, checkpoint in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints of one run, under `folder`. A context manager: leaving it waits for the last write."""

    def __init__(
        self, folder: pathlib.Path, keep: int = 2, say: typing.Callable[[str], None] = print, read_only: bool = False
    ):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax reports every save, and damage, at length
        self.folder, self._say, self._read_only = folder.resolve(), say, read_only
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{folder}: is no folder of checkpoints")
        self._kept = _LatestAndBest(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        open_ = functools.partial(ocp.CheckpointManager, self.folder, item_names=("state", "info"))
        self._manager = self._reader = open_(options=options)
        if processes.count() > 1:
            me = processes.index()
            alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
            self._reader = open_(
                options=ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=alone)
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, _, error: BaseException | None, __):
        if processes.count() > 1 and error is not None and not isinstance(error, Stopped):
            return  # the others need not be here: the last write would wait for them
        self._manager.close()

    def save(self, step: int, state: typing.Any, info: dict[str, typing.Any], best: int) -> None:
        """Starts writing `state` and the JSON-like `info`; returns once the state may be donated.

        Args:
          best: the best step so far, whose checkpoint is kept.

        Raises:
          UserError: this or the preceding checkpoint could not be written (disk full, no permission).
        """
        self._kept.best = best
        info = ocp.args.JsonSave(info | {"best": best})
        try:
            args = ocp.args.Composite(state=ocp.args.StandardSave(state), info=info)
            saved = self._manager.save(step, args=args)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: cannot write the checkpoint of step {step}: {error}") from error
        if not saved:
            raise UserError(f"{self.folder}: has a checkpoint of step {step} or later already: give another --workdir")

    def wait(self) -> None:
        """Returns once everything is on disk."""
        self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(self, like: typing.Any, best: bool = False) -> tuple[typing.Any, dict[str, typing.Any]] | None:
        """The newest readable checkpoint, or with `best` the best one.

        Unless read-only, damaged ones that are newer than the one that was read are set aside as `STEP.damaged`, so
        that their steps can be written again.

        Args:
          like: a state of the wanted structure, shapes, dtypes and shardings; arrays or `jax.ShapeDtypeStruct`s. It may
            lie on another mesh than the saved one did.

        Returns:
          (state, info), or None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints, but none can be read.
          Exception: memory, open files or permission are lacking; nothing is set aside.
        """
        steps, damaged = self.steps()[::-1], []

        def read(step: int, **items):
            found, wrong = None, ""
            try:
                found = self._reader.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore(), **items))
            except Exception as error:  # a damaged file surfaces as almost any exception
                if _of_the_machine(error):
                    raise
                wrong = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            if wrong := next(filter(None, processes.everyone(wrong)), ""):  # what one cannot read, none takes
                damaged.append(step)
                self._say(f"warning: checkpoint {self.folder / str(step)} cannot be read and is passed over: {wrong}")
                return None
            return found

        with _quiet():
            if best and (newest := next(filter(None, map(read, steps)), None)):
                steps.sort(key=lambda step: step != newest["info"]["best"])  # stable: the others stay newest first
            state = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
            left = (step for step in steps if step not in damaged)
            found = next(filter(None, (read(step, state=state) for step in left)), None)
        if found is None and steps:
            raise UserError(f"{self.folder}: none of its checkpoints can be read; move the folder away to start afresh")
        if found is None:
            return None
        if not self._read_only:
            self._set_aside(damaged)
        self._kept.best = found["info"]["best"]
        return found["state"], found["info"]

    def _set_aside(self, steps: collections.abc.Sequence[int]) -> None:
        with processes.together():
            for step in steps if processes.first() else ():
                aside = self.folder / f"{step}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
        self._manager.reload()


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


def _of_the_machine(error: Exception) -> bool:
    """Whether memory, open files or permission are lacking: that tells nothing about the file that was being read.

    Python reads a part of a checkpoint's files; TensorStore reads the others, and tells of the same by a word.
    """
    lacks = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
    told = any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED"))
    return told or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in lacks)
