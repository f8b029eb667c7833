"""Logs made up in memory, for benchmarks and plans: nothing is downloaded, and sizes are whatever one asks for.

Items follow Zipf's law, as clicks do; the lengths of histories follow one of `LENGTHS`. A record is a function of (seed,
user), made when it is asked for, so that a log takes no memory whatever its size. Nothing can be learned from it.
"""

from __future__ import annotations

import dataclasses
import typing

import numpy as np

from synergen_jax.batch import Catalogue, LogSpec
from synergen_jax.errors import UserError, nearest

START = 1_600_000_000  # Unix seconds of the first events
DAY = 86_400


class Lengths(typing.NamedTuple):
    """Events of a user, log-normally distributed, and over how many seconds they spread."""

    median: float
    sigma: float  # of the logarithm
    least: int
    most: int
    seconds: int


LENGTHS: dict[str, Lengths] = {
    "movielens": Lengths(96.0, 1.0, 20, 2314, 365 * DAY),  # MovieLens-1M: a mean of 166
    # trivago's sessions: half of the users have at most three events, a mean of 5.9
    "sessions": Lengths(3.5, 1.05, 1, 173, 3600),
}


class SyntheticLog:
    """A log with the interface of `data_pipelines.event_log.event_log.EventLog`, as far as splits and feeds need it.

    Args:
      items: V - 1, without the padding item.
      users: records.
      lengths: a name out of `LENGTHS`, or a whole number: that many events each.
      queries: queries that a third of the events come with; 0: none do.
      matrices: (name, width) of frozen random matrices that items and queries have.
      seed: of everything.
    """

    fingerprint = "0" * 64
    item_columns: typing.ClassVar[dict] = {}
    candidate_features: tuple[str, ...] = ()

    def __init__(
        self,
        items: int,
        users: int,
        lengths: str | int = "movielens",
        queries: int = 0,
        matrices: tuple[tuple[str, int], ...] = (),
        seed: int = 0,
    ):
        if isinstance(lengths, str) and lengths not in LENGTHS:
            raise UserError(f"no distribution of lengths {lengths!r}{nearest(lengths, LENGTHS)}: {', '.join(LENGTHS)}")
        self.name = f"synthetic ({items:,} items, {users:,} users)"
        self.seed = seed
        self._made: dict[tuple, dict[str, np.ndarray]] = {}  # (rows, widths) -> matrices, made when they are asked for
        self.actions, self.labels = ["", "view", "like"], {"engage": (1, 2), "like": (2,)}
        spread = (matrices, matrices if queries else ())
        self.spec = LogSpec(items + 1, len(self.actions), queries + 1, tuple(self.labels), *spread)
        rng = np.random.default_rng((seed, 0))
        if isinstance(lengths, int):
            self.lengths, self._span = np.full(users, lengths, np.int32), 365 * DAY
        else:
            of = LENGTHS[lengths]
            drawn = np.exp(rng.normal(np.log(of.median), of.sigma, users))
            self.lengths, self._span = np.clip(drawn, of.least, of.most).astype(np.int32), of.seconds

    @property
    def item_matrices(self) -> dict[str, np.ndarray]:
        """Random semantic vectors of items, (V, width) float16 each."""
        return self._matrices(self.spec.items, self.spec.item_matrices)

    @property
    def query_matrices(self) -> dict[str, np.ndarray]:
        """Likewise of queries."""
        return self._matrices(self.spec.queries, self.spec.query_matrices)

    def _matrices(self, rows: int, widths) -> dict[str, np.ndarray]:
        key = rows, tuple(widths)
        if key in self._made:
            return self._made[key]
        rng = np.random.default_rng((self.seed, 1, rows))
        made = {name: rng.standard_normal((rows, width), np.float32).astype(np.float16) for name, width in widths}
        for matrix in made.values():
            matrix[0] = 0
        self._made[key] = made
        return made

    @staticmethod
    def all_met(known: Catalogue) -> Catalogue:
        """A catalogue whose every item and query counts as met in training, so that all of a table is used."""
        met = lambda counts: np.append(0, np.maximum(counts[1:], 1)).astype(np.int32)
        return dataclasses.replace(known, counts=met(known.counts), query_counts=met(known.query_counts))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: typing.SupportsIndex) -> dict[str, typing.Any]:
        """A user's record, see `data_pipelines.files.records`."""
        user = int(index)
        rng = np.random.default_rng((self.seed, 2, user))
        n = int(self.lengths[user])
        query = zipf(rng, self.spec.queries - 1, n) if self.spec.queries > 1 else np.zeros(n, np.int32)
        none = np.zeros(0, np.int32)
        return {
            "user_id": str(user),
            "item": zipf(rng, self.spec.items - 1, n),
            "action": rng.integers(1, len(self.actions), n, np.int32),
            "query": query * (rng.random(n) < 1 / 3),
            "request": np.arange(1, n + 1, dtype=np.int32),
            "time": START + rng.integers(0, 365 * DAY) + np.sort(rng.integers(0, self._span, n)),
            "shown_request": none,
            "shown_item": none,
            "shown_action": none,
        }


def zipf(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """`count` draws from 1 .. size, the chance of k being log(1 + 1/k) / log(1 + size): Zipf's law. int32"""
    return np.minimum(np.exp(rng.random(count) * np.log(size + 1)), size).astype(np.int32)
