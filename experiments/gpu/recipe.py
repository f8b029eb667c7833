"""Runs of the ladder, one a measurement: the ML-1M recipe and its variants, with their time."""

from __future__ import annotations

import pathlib
import time
import typing

import array_log
import ladder
import runs
from made_up import CycleLog
from setting import Setting, Short, Skip

FAMILY = pathlib.Path(__file__).resolve().parent.parent / "families" / "ladder_1m.toml"
SMALL = (
    *("--run.steps=4", "--run.eval_every=2", "--data.max_history=8", "--data.stride=8", "--data.batch=4"),
    *("--data.rank_events=2", "--model.width=16", "--model.heads=2", "--model.depth=1"),
)


def run(setting: Setting, variant: str, seed: int) -> dict[str, typing.Any]:
    """One run of the ladder: what it came to, and the seconds of each part.

    The whole entry, with curves and slices, lies in the ladder's own folder.
    """
    out, data = setting.out / "ladder", setting.data
    if data is None and not setting.small:
        raise Skip("needs ML-1M in one file: `ladder.py prepare ml-1m --out FILE`, then --data FILE")
    more = setting.by_size((), SMALL)
    if data is None:
        data, more = setting.scratch / "made-up.npz", (*more, "--data.log", "made-up")
        _write_made_up(data)
    earlier = [str(folder / "ladder") for folder in setting.after if (folder / "ladder" / runs.RUNS).exists()]
    words = ["run", str(data), "--family", str(FAMILY), "--variants", variant, "--seeds", str(seed), "--out", str(out)]
    words += ["--budget", str(setting.deadline - time.monotonic()), *(["--after", *earlier] if earlier else []), *more]
    if setting.small:
        words += ["--workers", "0"]
    if ladder.main(words):
        raise RuntimeError("the ladder refused: see visit.log")
    entries = [one for folder in (out, *map(pathlib.Path, earlier)) for one in runs.read(folder)]
    found = next((one for one in entries if (one["variant"], one["seed"]) == (variant, seed)), None)
    if found is None:
        raise Short("the ladder had no time for it")
    kept = ("steps", "best_step", "stopped", "seconds", "events_per_second", "changes")
    brief = {part: found["metrics"].get(part, {}).get("retrieval") for part in ("validation", "test")}
    return {name: found[name] for name in kept} | {"variant": variant, "seed": seed, "metrics": brief}


def _write_made_up(path: pathlib.Path) -> None:
    """A log that is learned at once, for the rehearsal."""
    log = CycleLog(60, 40, 14)
    log.name = "made-up"
    array_log.write(log, path)
