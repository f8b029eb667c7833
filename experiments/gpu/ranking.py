"""What a cache saves where candidates are ranked: 128 events joined to 3,968 cached ones, or all 4,096 encoded over again.

Both sides then rank the same 256 candidates by one read: a retrieval token, whose vector gives the candidates' scores, and
a ranking token a candidate. Weights, events and catalogue are made up.
"""

from __future__ import annotations

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from made_up import parameters

from synergen_jax.batch import Catalogue, Events, Readers
from synergen_jax.bench import timing
from synergen_jax.bench.timing import Spread
from synergen_jax.config import ModelConfig
from synergen_jax.model import synergen
from synergen_jax.model.synergen import Cache, Params, SynerGen
from synergen_jax.planning import hlo
from synergen_jax.planning.synthetic import DAY, SyntheticLog, zipf


class Shape(typing.NamedTuple):
    """The sizes of a case."""

    events: int
    cached: int
    candidates: int
    width: int
    depth: int
    heads: int


FULL, SMALL = Shape(4096, 3968, 256, 1024, 8, 8), Shape(64, 56, 8, 16, 2, 2)
ITEMS = 10_000
# How far answers of the two sides may lie apart, in standard deviations of the logits. Accelerators multiply float32 with
# the bits of TF32, unless they are told otherwise.
TOLERANCE = {"float32": 0.02, "bfloat16": 0.2}

CACHED, AGAIN, READ = "cached", "all over again", "read alone"


def cached(setting: typing.Any, users: int, dtype: str) -> dict[str, typing.Any]:
    """Times of one request of each of some users at once: appended and ranked, encoded and ranked, ranked alone.

    Args:
      setting: `small` for sizes that a test can afford; `rounds` of each side; `say` takes a line of progress.
      users: B.
      dtype: of the computation.

    Returns:
      Values that fit JSON. Memory is that of each side's program, its arguments and answers included. `holds` says whether
      the two sides give the same answers.
    """
    shape = SMALL if setting.small else FULL
    config = ModelConfig(width=shape.width, depth=shape.depth, heads=shape.heads, dropout=0.0, dtype=dtype)
    log = SyntheticLog(ITEMS, users, shape.events)
    model = SynerGen(config, log.spec)
    counts = np.ones(ITEMS + 1, np.int32)
    counts[0] = 0
    known = parameters(model), jax.device_put(Catalogue({}, {}, counts, np.zeros(1, np.int32)))
    events, readers = jax.device_put(request(log, shape))
    early, late = jax.device_put(parts(events, shape.cached))

    encode = jax.jit(functools.partial(encoded, model))
    before, after = encode(*known, early), encode(*known, events)
    programs = {
        CACHED: (joined_and_ranked, (*known, before, late, readers)),
        AGAIN: (encoded_and_ranked, (*known, events, readers)),
        READ: (ranked, (*known, after, readers)),
    }
    compiled_for = lambda side, given: jax.jit(functools.partial(side, model)).lower(*given).compile()
    compiled = {name: compiled_for(side, given) for name, (side, given) in programs.items()}
    sides = {name: functools.partial(compiled[name], *given) for name, (_, given) in programs.items()}
    unaware = dataclasses.replace(readers, visible=jnp.full_like(readers.visible, shape.cached))
    found = compare(sides[CACHED]()[0], sides[AGAIN](), compiled[READ](*known, before, unaware), dtype)
    setting.say(f"{users} users, {dtype}: the sides differ by {found['largest_difference']:.2g} at most")

    times = timing.alternate(sides, setting.rounds)
    over = lambda a, b: {f"{a} over {b}": timing.ratio(times[a], times[b])._asdict()}
    return found | {
        "seconds": times,
        "ratios": over(AGAIN, CACHED) | over(CACHED, READ),
        "requests_per_second": {name: users / Spread.of(seconds).median for name, seconds in times.items()},
        "shape": shape._asdict() | {"users": users, "dtype": dtype, "items": ITEMS},
        "peak_memory_bytes": {name: _bytes(program) for name, program in compiled.items()},
    }


def compare(joined: Array, again: Array, without: Array, dtype: str) -> dict[str, typing.Any]:
    """The largest difference between the logits of the two sides, what it may be, and whether that holds.

    Args:
      without: the logits where the new events are left out, to tell how much hangs on them.
    """
    host = lambda x: np.asarray(x, np.float32)
    apart = lambda x: float(np.abs(host(x) - host(again)).max())
    difference, most = apart(joined), TOLERANCE[dtype] * float(host(again).std())
    found = {"largest_difference": difference, "tolerance": most, "difference_without_new_events": apart(without)}
    return found | {"holds": bool(difference <= most)}


# --- what is asked ----------------------------------------------------------------------------------------------


def request(log: SyntheticLog, shape: Shape) -> tuple[Events, Readers]:
    """The history of each user, and what is asked a day after it: what comes next, and how candidates would be received."""
    records = [log[user] for user in range(len(log))]
    column = lambda name: np.stack([record[name] for record in records]).astype(np.int32)
    time = np.stack([record["time"] - record["time"][0] for record in records]).astype(np.int32)
    asked = (len(log), 1 + shape.candidates)
    item = zipf(np.random.default_rng(0), ITEMS, int(np.prod(asked))).reshape(asked)
    item[:, 0] = 0
    full = lambda x: np.broadcast_to(x, asked).astype(np.int32)
    readers = Readers(item, full(0), full(time[:, -1:] + DAY), full(shape.events))
    return Events(column("item"), column("action"), column("query"), time), readers


def parts(events: Events, count: int) -> tuple[Events, Events]:
    """The first `count` events, with padding in place of the others, and the others."""
    cut = lambda x: np.where(np.arange(x.shape[1]) < count, x, 0)
    return jax.tree.map(cut, events), jax.tree.map(lambda x: x[:, count:], events)


# --- what a server runs -----------------------------------------------------------------------------------------


def encoded(model: SynerGen, params: Params, catalogue: Catalogue, events: Events) -> Cache:
    """The cache of histories."""
    vectors = synergen.token_vectors(model, params, catalogue, events)
    return synergen.pure(model, params["model"], SynerGen.encode)(events, *vectors)


def appended(model: SynerGen, params: Params, catalogue: Catalogue, cache: Cache, events: Events) -> Cache:
    """The cache with new events."""
    vectors = synergen.token_vectors(model, params, catalogue, events)
    return synergen.pure(model, params["model"], SynerGen.append)(cache, events, *vectors)


def ranked(model: SynerGen, params: Params, catalogue: Catalogue, cache: Cache, readers: Readers) -> Array:
    """A logit a label of each candidate, (B, K, A); the first reader is the retrieval token."""
    pure = functools.partial(synergen.pure, model, params["model"])
    items, queries = synergen.token_vectors(model, params, catalogue, readers)
    hidden = pure(SynerGen.read)(cache, readers, items, queries)
    wanted, keys = pure(SynerGen.retrieve)(hidden[:, :1], queries[:, :1]), pure(SynerGen.keys)(items[:, 1:])
    return pure(SynerGen.rank)(hidden[:, 1:], jnp.sum(wanted * keys, axis=-1))


def joined_and_ranked(
    model: SynerGen, params: Params, catalogue: Catalogue, cache: Cache, new: Events, readers: Readers
) -> tuple[Array, Cache]:
    """Logits as of `ranked`, and the grown cache, which the next request needs."""
    cache = appended(model, params, catalogue, cache, new)
    return ranked(model, params, catalogue, cache, readers), cache


def encoded_and_ranked(
    model: SynerGen, params: Params, catalogue: Catalogue, events: Events, readers: Readers
) -> Array:
    """Logits as of `ranked`; no cache is kept."""
    return ranked(model, params, catalogue, encoded(model, params, catalogue, events), readers)


def _bytes(program: jax.stages.Compiled) -> int:
    memory = hlo.memory(program)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return held + memory.temp_size_in_bytes
