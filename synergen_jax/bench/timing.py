"""Times of several things side by side, and what one is over another."""

from __future__ import annotations

import pathlib
import time
import typing

import jax
import numpy as np
import numpy.typing as npt

Sides = typing.Mapping[str, typing.Callable[[], typing.Any]]
Times = dict[str, list[float]]
"""Seconds of each round, by side."""


def alternate(sides: Sides, rounds: int, trace: pathlib.Path | None = None) -> Times:
    """Runs the sides in turn, A B A B ..., so that whatever else the machine does falls on all of them alike.

    Args:
      sides: each does its work and returns what is then waited for. Two rounds before the first, which compile, do not
        count: what a step gives may lie otherwise on the device than what it began with, and so be compiled for anew.
      trace: a folder for a profiler's trace of one more round.
    """
    for side in [*sides.values()] * 2:
        jax.block_until_ready(side())
    times: Times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(side())
            times[name].append(time.perf_counter() - start)
    if trace is not None:
        with jax.profiler.trace(str(trace)):
            for name, side in sides.items():
                with jax.profiler.TraceAnnotation(name):
                    jax.block_until_ready(side())
    return times


class Spread(typing.NamedTuple):
    """The middle of some rounds, and between which values half of them lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Spread:
        """Median and quartiles of values (n,)."""
        low, median, high = np.quantile(np.asarray(values, float), [0.25, 0.5, 0.75]).tolist()
        return cls(median, low, high)

    def cell(self, scale: float = 1.0) -> dict[str, float]:
        """As a cell of `report.table`."""
        low, high = sorted((self.low * scale, self.high * scale))
        return {"mean": self.median * scale, "low": low, "high": high}


def ratio(over: typing.Sequence[float], under: typing.Sequence[float]) -> Spread:
    """How many times as long the one takes as the other, round by round: both sides of a round share its luck."""
    return Spread.of(np.divide(over, under))
