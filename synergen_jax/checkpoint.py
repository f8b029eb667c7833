"""Checkpoints: state and feed position, written by Orbax in the background, the newest and the best kept.

Orbax commits a checkpoint by a rename after all its files are written, so that one cut off half-way is never taken for
whole. A checkpoint that cannot be read is passed over, aloud, in favour of an older one.
"""

from __future__ import annotations

import logging
import pathlib
import typing

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from synergen_jax.errors import UserError

METRIC = "ndcg@10"


class Checkpoints:
    """The checkpoints of one run, under `folder`. A context manager: leaving it waits for the last write."""

    def __init__(
        self, folder: pathlib.Path, keep: int = 2, say: typing.Callable[[str], None] = print, read_only: bool = False
    ):
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports every save at length
        metric = lambda metrics: metrics[METRIC]
        policy = checkpoint_managers.preservation_policy.AnyPreservationPolicy(
            [
                checkpoint_managers.preservation_policy.LatestN(n=keep),
                checkpoint_managers.preservation_policy.BestN(
                    get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        self.folder, self._say = folder.resolve(), say
        self._manager = ocp.CheckpointManager(
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
            self._manager.save(step, args=args, metrics=None if metric is None else {METRIC: metric})
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: cannot write the checkpoint of step {step}: {error}") from error

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
        for step in steps:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), info=ocp.args.JsonRestore())
            try:
                found = self._manager.restore(step, args=args)
                return found["state"], found["info"]
            except Exception as error:  # a damaged file surfaces as almost any exception
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                self._say(
                    f"warning: checkpoint {self.folder / str(step)} cannot be read and is passed over: {reason[:200]}"
                )
        if steps:
            raise UserError(f"{self.folder}: none of its checkpoints can be read; delete the folder to start afresh")
        return None
