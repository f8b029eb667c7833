"""Checkpoints: state and feed position, written by Orbax in the background, the newest and the best kept.

Orbax commits a checkpoint by a rename after all its files are written, so that one cut off half-way is never taken for
whole. A checkpoint that cannot be read is passed over, aloud, in favour of an older one. Which step is the best is
written in each checkpoint's own `info`: Orbax's metrics would have to be whole in every one of them.

Of several processes all save together, on a filesystem that they share, and each reads its own shards. They read without
Orbax's barriers, at which all would wait for the one that finds a file damaged, and agree after each step that they try.
"""

from __future__ import annotations

import asyncio
import collections.abc
import contextlib
import errno
import functools
import gc
import logging
import os
import pathlib
import shutil
import sys
import typing
import warnings

import jax
import orbax.checkpoint as ocp
from etils import epath

from synergen_jax.errors import Stopped, UserError, first_line
from synergen_jax.processes import cluster


def _settling(run_sync: typing.Callable) -> typing.Callable:
    """Orbax's `run_sync`, but at an error the loop is closed only once all that it had started has come to an end.

    Orbax closes it at once: of the other arrays of a checkpoint that a full disk cuts off, each would then print that the
    event loop is closed.
    """

    async def settled(coroutine: collections.abc.Coroutine) -> typing.Any:
        try:
            return await coroutine
        except BaseException:
            left = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*left, return_exceptions=True)
            raise

    return lambda coroutine, *more, **options: run_sync(settled(coroutine), *more, **options)


with contextlib.suppress(ImportError, AttributeError):  # it has no public name; without it there is noise, and no more
    from orbax.checkpoint._src import asyncio_utils

    asyncio_utils.run_sync = _settling(asyncio_utils.run_sync)


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
        self._kept, self._step = _LatestAndBest(keep), 0
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            create=not read_only,
        )
        open_ = functools.partial(ocp.CheckpointManager, self.folder, item_names=("state", "info"))
        self._manager = self._reader = open_(options=options)
        if cluster.count() > 1:
            me = cluster.index()
            alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
            self._reader = open_(
                options=ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=alone)
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, _, error: BaseException | None, __):
        if cluster.count() > 1 and error is not None and not isinstance(error, Stopped):
            return  # the others need not be here: the last write would wait for them
        try:
            with self._writing():
                self._manager.close()
        except UserError:
            if error is None:
                raise  # otherwise the first error has the line

    def save(self, step: int, state: typing.Any, info: dict[str, typing.Any], best: int) -> None:
        """Starts writing `state` and the JSON-like `info`; returns once the state may be donated.

        Args:
          best: the best step so far, whose checkpoint is kept; 0: there is none.

        Raises:
          UserError: this or the preceding checkpoint could not be written (disk full, no permission).
        """
        self.wait()  # for the preceding one, whose error would else be taken for one of this step
        self._kept.best, self._step = best, step
        told = ocp.args.JsonSave(info | {"best": best})
        with self._writing():
            args = ocp.args.Composite(state=ocp.args.StandardSave(state), info=told)
            saved = self._manager.save(step, args=args)
        if not saved:
            raise UserError(f"{self.folder}: has a checkpoint of step {step} or later already: give another --workdir")

    def wait(self) -> None:
        """Returns once everything is on disk.

        Raises:
          UserError: the checkpoint that was being written could not be.
        """
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> collections.abc.Iterator[None]:
        try:
            yield
        except Exception as error:  # of a file, TensorStore's come as ValueError, and Orbax's threads wrap them
            if not _of_a_file(error):
                raise
            raise UserError(
                f"{self.folder}: cannot write the checkpoint of step {self._step}: {_reason(error)}; once that is mended, the "
                "same command goes on from the last whole one"
            ) from error

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(
        self,
        like: typing.Any,
        best: bool = False,
        fits: typing.Callable[[dict[str, typing.Any]], None] = lambda _: None,
    ) -> tuple[typing.Any, dict[str, typing.Any]] | None:
        """The newest readable checkpoint, or with `best` the best one, which is the newest where none was validated.

        Unless read-only, damaged ones that are newer than the one that was read are set aside as `STEP.damaged`, so
        that their steps can be written again.

        Args:
          like: a state of the wanted structure, shapes, dtypes and shardings; arrays or `jax.ShapeDtypeStruct`s. It may
            lie on another mesh than the saved one did.
          fits: raises a `UserError` where a checkpoint's info is of another run; asked before any array is read.

        Returns:
          (state, info), or None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints, but none can be read, or they hold other arrays than `like` does.
          Exception: memory, open files or permission are lacking; nothing is set aside.
        """
        steps, damaged = self.steps()[::-1], []

        def read(step: int, **items):
            found, wrong = None, ""
            said = cluster.everyone(self._other_arrays(step, like)) if "state" in items else []
            if other := next(filter(None, said), ""):
                raise UserError(
                    f"config.json does not fit the checkpoints in {self.folder}: their arrays are of other sizes than its [model] "
                    f"and [optimiser] ask for ({other}): put back the settings with which they were trained"
                )
            try:
                found = self._reader.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore(), **items))
            except Exception as error:  # a damaged file surfaces as almost any exception
                if _of_the_machine(error):
                    raise
                wrong = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            if wrong := next(filter(None, cluster.everyone(wrong)), ""):  # what one cannot read, none takes
                damaged.append(step)
                self._say(f"warning: checkpoint {self.folder / str(step)} cannot be read and is passed over: {wrong}")
                return None
            return found

        with _quiet():
            newest = next(filter(None, map(read, steps)), None)
            if newest:
                fits(newest["info"])
            if best and newest:
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
        fits(found["info"])
        self._kept.best = found["info"]["best"]
        return found["state"], found["info"]

    def _other_arrays(self, step: int, like: typing.Any) -> str:
        """Which arrays of a checkpoint have other shapes than those of `like`, or are missing in one of both; "" for none."""
        try:
            saved = _shapes(
                ocp.StandardCheckpointHandler().metadata(epath.Path(self.folder / str(step) / "state")).tree
            )
        except Exception:  # damaged: the read will tell
            return ""
        wanted = _shapes(like)
        differs = [name for name in saved | wanted if saved.get(name) != wanted.get(name)]
        differs.sort(key=lambda name: (not name.startswith("params"), name))  # what follows from them comes last
        listed = [f"{name} {saved.get(name, 'none')}, not {wanted.get(name, 'none')}" for name in differs[:3]]
        return "; ".join(listed) + (f"; and {len(differs) - 3} more" if len(differs) > 3 else "")

    def _set_aside(self, steps: collections.abc.Sequence[int]) -> None:
        with cluster.together():
            for step in steps if cluster.first() else ():
                aside = self.folder / f"{step}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
        self._manager.reload()


def _shapes(tree: typing.Any) -> dict[str, tuple[int, ...]]:
    """The shape of each array of a state by its path, be it the state itself or what Orbax tells of a saved one."""
    name = lambda key: str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(name, path)): tuple(leaf.shape) for path, leaf in leaves}


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


def _reason(error: BaseException) -> str:
    """What hinders a write, in a few words: TensorStore's messages go on for pages."""
    text = str(error)
    known = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO)
    return next((os.strerror(n) for n in known if os.strerror(n) in text), first_line(error)[:300])


def _of_a_file(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is Python's or TensorStore's about a file."""
    while error is not None:
        if isinstance(error, OSError | ValueError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _of_the_machine(error: Exception) -> bool:
    """Whether memory, open files or permission are lacking: that tells nothing about the file that was being read.

    Python reads a part of a checkpoint's files; TensorStore reads the others, and tells of the same by a word.
    """
    lacks = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
    told = any(word in str(error) for word in ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED"))
    return told or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in lacks)
