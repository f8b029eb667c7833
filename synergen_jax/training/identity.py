"""What makes two runs the same: log, config, sizes and phase. Every checkpoint keeps them, and a run with others is refused."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np

from synergen_jax import config as configs
from synergen_jax.batch import LogSpec
from synergen_jax.config import Config
from synergen_jax.errors import UserError
from synergen_jax.model import rope

# Settings that a resumed run may change: they alter where and how often, never what is computed. See `altered`, too.
FREE = (
    "mesh.",
    "evaluate.",
    "data.workers",
    "model.attention",
    "run.log_every",
    "run.checkpoint_every",
    "run.keep",
    "run.patience",
)

Phase = dict[str, typing.Any]
"""What `rope.describe` says of a phase: {"name": "" for the built-in one, "angles": rows of numbers}."""


def of(config: Config, spec: LogSpec, fingerprint: str, phase: rope.Phase | None = None) -> dict[str, typing.Any]:
    """What decides what a run computes, as every checkpoint keeps it: JSON-like."""
    return {
        "fingerprint": fingerprint,
        "config": configs.to_dict(config),
        "spec": {name: _listed(value) for name, value in dataclasses.asdict(spec).items()},
        "phase": rope.describe(config.model, phase),
    }


def _listed(value: typing.Any) -> typing.Any:
    return [_listed(part) for part in value] if isinstance(value, tuple) else value


def refuse_others(folder: pathlib.Path, saved: dict[str, typing.Any], mine: dict[str, typing.Any]) -> None:
    """Refuses checkpoints of another log, config, spec or phase, whose arrays may have the same shapes.

    Args:
      folder: the workdir, for messages.
      saved: a checkpoint's info; one of before says less.
      mine: see `of`.

    Raises:
      UserError: they are not of the same run; the message says in what they differ.
    """
    if saved["fingerprint"] != mine["fingerprint"]:
        raise UserError(f"the checkpoints in {folder} were trained on another log: give another --workdir")
    if "config" in saved:
        was, now = (configs.from_dict(one["config"], f"{folder}: config") for one in (saved, mine))
        differs = altered(was, now)
        spec = saved.get("spec", {})
        differs |= {f"LogSpec.{k}": (spec[k], v) for k, v in mine["spec"].items() if k in spec and spec[k] != v}
        if differs:
            raise UserError(
                f"the config does not fit the checkpoints in {folder}: {listed(differs)}: put back what it was"
            )
    refuse_other_phase(folder, saved.get("phase"), mine["phase"])


def altered(old: Config, new: Config) -> dict[str, tuple[typing.Any, typing.Any]]:
    """The settings that decide what is computed and differ, `{"section.key": (old, new)}`.

    More steps than before are no such difference: a finished run may go on (`workdir.check`).
    """
    # How long the lists of a validation are decides what it finds: values of before would choose the checkpoint.
    by_lists = not old.run.select.startswith(("ndcg@10", "hr@10"))
    fixed = ("evaluate.rank_candidates",) if by_lists else ()
    free = (*FREE, "run.steps") if new.run.steps > old.run.steps else FREE
    return {k: v for k, v in configs.differences(old, new).items() if k in fixed or not k.startswith(free)}


def listed(changed: dict[str, tuple[typing.Any, typing.Any]]) -> str:
    """What `altered` found, as a part of a message."""
    each = [f"{name} was {old!r} when they were trained and is {new!r} now" for name, (old, new) in changed.items()]
    return ", ".join(each)


def refuse_other_phase(workdir: pathlib.Path, was: Phase | None, now: Phase | None) -> None:
    """Refuses a phase that gives other angles than that which a run was trained with; None: the built-in one.

    Raises:
      UserError: they differ by more than rounding.
    """
    old, new = (phase["name"] if phase else "" for phase in (was, now))
    if was and now and _same_angles(was["angles"], now["angles"]):
        return
    if old and not new:
        raise UserError(
            f"{workdir} was trained with a phase of its own, {old}, which no file holds: open it in Python, where load, "
            "evaluate and Run of synergen_jax take phase= (README, Extend a module)"
        )
    if new and not old:
        raise UserError(f"{workdir} was trained with the built-in phase, not with {new}: leave phase= out")
    if was and now:
        raise UserError(
            f"{workdir} was trained with a phase {old or 'of model.rope'} that gives other angles than this one"
            f"{f', {new},' if new else ''} does: give the function of before, or another workdir"
        )


def _same_angles(was: typing.Any, now: typing.Any) -> bool:
    try:
        a, b = np.asarray(was, np.float64), np.asarray(now, np.float64)
    except (ValueError, TypeError):
        return False
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-4)
