"""SynerGen: one decoder that is encoded once and then read (arXiv 2509.21777).

`encode` runs the context tokens of a user through causal self-attention and keeps every layer's keys and values.
`read` answers any number of readers over them: retrieval tokens (what comes next?) and ranking tokens (how will this
candidate be received?). Each reader sees the first `visible` events and itself. `append` adds new events to a cache: context
tokens that see it and each other, whose keys and values join it. The same weights serve all three, and the result
equals the interleaved Transformer under its task-specific mask (`oracle.py`) to rounding.

The module takes vectors, not ids; `Params`, `item_vectors` and `query_vectors` are the bridge from ids on one device,
`lookup` is that on a mesh.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from synergen_jax.batch import AnyArray, Catalogue, Events, LogSpec, Readers
from synergen_jax.config import ModelConfig
from synergen_jax.model import date, embed, rope
from synergen_jax.model.attention import Causal, Grown, Prefix
from synergen_jax.model.attention_xla import join
from synergen_jax.model.blocks import KINDS, RMSNorm, boxed, dense
from synergen_jax.model.dropout import Dropout
from synergen_jax.model.heads import RankingHead, RetrievalHead

CONTEXT, RETRIEVAL, RANKING = range(3)  # kinds of token

Params = dict[str, typing.Any]
"""{"model": variables of `SynerGen`, "tables": {"item": (A, 768, W), "query": (A, 768, W)}}; `table` says how rows lie."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The keys and values of a context, one array a layer; what `encode` gives and `read` reads."""

    keys: tuple[Float[Array, "b h l dh"], ...]
    values: tuple[Float[Array, "b h l dh"], ...]
    time: Int[AnyArray, "b l"]  # of the events
    length: Int[Array, "b"]  # events of each user; slots from there on are free

    @property
    def capacity(self) -> int:
        """Events that the cache has room for."""
        return self.keys[0].shape[2]


def within(place: Int[AnyArray, "b l"], first: Int[AnyArray, "b l"] | None) -> Int[AnyArray, "b l"]:
    """Places within their own segments, which are a token's order, from places in the row."""
    return place if first is None else place - first


class SynerGen(nn.Module):
    """The decoder. `phase` replaces the rotary encoding of time and order that `config.rope` names."""

    config: ModelConfig
    spec: LogSpec
    phase: rope.Phase | None = None

    def setup(self):
        c = self.config
        dtype = jnp.dtype(c.dtype)
        small = boxed(nn.initializers.normal(0.02), (None, "embed"))
        block = nn.remat(KINDS[c.block], static_argnums=(4,)) if c.remat else KINDS[c.block]
        self.blocks = [block(c, name=f"block_{i}") for i in range(c.depth)]
        self.join = embed.Join(self.key_width, dtype)  # one for both: matrices of one name come from one encoder
        self.action = self.param("action", small, (self.spec.actions, c.width))
        self.kind = self.param("kind", small, (3, c.width))
        self.final_norm = RMSNorm(dtype)
        self.retrieval, self.ranking = RetrievalHead(c, self.key_width - c.width), RankingHead(c, self.spec)
        for head in (self.retrieval, self.ranking):
            nn.share_scope(self, head)  # their parameters lie beside those above, as they always have in checkpoints
        if self.spec.candidate_features:
            self.feature_hidden = dense(c.width, (None, "embed"), dtype, in_axis=-1)
            # Small, as the other vectors of a token are: or else features would drown the candidate's own vector.
            init = nn.initializers.normal(0.02)
            self.feature_out = dense(c.width, ("embed", "embed_out"), dtype, in_axis=-1, init=init)
        if c.request_date:
            self.date_hidden = dense(c.width, (None, "embed"), dtype, in_axis=-1)
            self.date_out = dense(c.width, ("embed", "embed_out"), dtype, in_axis=-1, init=nn.initializers.normal(0.02))
        self.dropout = Dropout(c.dropout)
        self.angles = self.phase or rope.make_phase(c)

    @property
    def key_width(self) -> int:
        """Numbers of a key and of a retrieval vector, W: those of an item's or a query's vector, `embed.vector_width`."""
        return embed.vector_width(self.config, self.spec)

    def join_rows(self, rows: embed.Rows, ids: Int[AnyArray, "..."]) -> Array:
        """Vectors (..., W) of items or queries from their rows; id 0 gives zeros."""
        return self.join(rows, ids == 0)

    def context_tokens(self, events: Events, items: Array, queries: Array) -> Array:
        """Tokens (B, L, D) that say what happened."""
        dtype, (items, queries) = items.dtype, self._token_parts(items, queries)
        h = items + self.kind.astype(dtype)[None, None, CONTEXT]
        if self.config.context_action:
            h = h + self.action.astype(dtype)[events.action]
        return h + queries if self.config.context_query else h

    def _token_parts(self, items: Array, queries: Array) -> tuple[Array, Array]:
        """What tokens are made of, (..., D) each, of the vectors of items and queries, (..., W)."""
        return items[..., : self.config.width], queries[..., : self.config.width]

    def reader_tokens(self, readers: Readers, items: Array, queries: Array, time: Int[AnyArray, "b r"]) -> Array:
        """Tokens (B, R, D) that ask: retrieval where a reader has no item, ranking where it has one.

        Candidate features add a vector to them, which is zero where the features are not known.

        Args:
          time: what the readers go by, `asked_at`.
        """
        kind = jnp.where(readers.item > 0, RANKING, RETRIEVAL)
        items, queries = self._token_parts(items, queries)
        h = items + queries + self.kind.astype(items.dtype)[kind]
        if self.config.request_date:
            h = h + self.date_out(nn.silu(self.date_hidden(date.features(time).astype(h.dtype))))
        if readers.feature is None or not self.spec.candidate_features:
            return h
        return h + self.feature_out(nn.silu(self.feature_hidden(readers.feature.astype(h.dtype))))

    def asked_at(self, readers: Readers, time: Int[AnyArray, "b l"]) -> Int[AnyArray, "b r"]:
        """The times that readers go by: those of their requests, or without `config.request_time` of the last event seen.

        Args:
          time: of the context's events.
        """
        if self.config.request_time:
            return readers.time
        last = jnp.take_along_axis(time, jnp.maximum(readers.visible - 1, 0), axis=1)
        return jnp.where(readers.visible > (0 if readers.first is None else readers.first), last, readers.time)

    def encode(self, events: Events, items: Array, queries: Array, deterministic: bool = True) -> Cache:
        """Encodes a window of events once.

        Args:
          events: (B, L), padding last.
          items, queries: their vectors, (B, L, W) each.
          deterministic: False applies dropout, which needs `rngs={"dropout": key}`.
        """
        h = self.context_tokens(events, items, queries)
        order = within(jnp.broadcast_to(jnp.arange(events.time.shape[1]), events.time.shape), events.first)
        overs = [Causal(events.first, events.time)] * self.config.depth
        _, keys, values = self.run(h, self.angles(events.time, order), overs, deterministic)
        return Cache(keys, values, events.time, jnp.sum(events.mask, axis=1, dtype=jnp.int32))

    def read(
        self,
        cache: Cache,
        readers: Readers,
        items: Array,
        queries: Array,
        deterministic: bool = True,
        per_event: int = 0,
    ) -> Array:
        """Answers readers over an encoded context: hidden states (B, R, D) for the heads.

        Args:
          cache: of the same B users.
          readers: (B, R); `visible` at most the events in the cache.
          items, queries: the readers' vectors, (B, R, W) each; an item's is zero for a retrieval reader.
          per_event: n > 0 promises n readers an event, in the order of events, with `visible[:, r] <= r // n`: half the
            work of attention. 0 promises nothing.
        """
        time, visible, first = self.asked_at(readers, cache.time), readers.visible, readers.first
        h = self.reader_tokens(readers, items, queries, time)
        overs = [Prefix(k, v, visible, first, per_event, time, cache.time) for k, v in zip(cache.keys, cache.values)]
        return self.run(h, self.angles(time, within(visible, first)), overs, deterministic)[0]

    def append(self, cache: Cache, events: Events, items: Array, queries: Array) -> Cache:
        """Extends a cache by new events, in one pass over them alone. A row without room for all of its own is left as it is.

        Args:
          cache: of the same B users, whose rows are not packed.
          events: the new ones, (B, L), padding last; a row may have none.
          items, queries: their vectors, (B, L, W) each.
        """
        h = self.context_tokens(events, items, queries)
        gained = jnp.sum(events.mask, axis=1, dtype=jnp.int32)
        gained = jnp.where(cache.length + gained <= cache.capacity, gained, 0)
        source = jnp.arange(cache.capacity)[None] - cache.length[:, None]
        source = jnp.where((source >= 0) & (source < gained[:, None]), source, -1)
        put = lambda old, new: join(old, new, source)
        time = put(cache.time, events.time)
        visible = cache.length[:, None] + jnp.arange(events.time.shape[1])[None]
        overs = [Grown(k, v, source, visible, events.time, time) for k, v in zip(cache.keys, cache.values)]
        _, keys, values = self.run(h, self.angles(events.time, visible), overs, True)
        keys, values = jax.tree.map(put, (cache.keys, cache.values), (keys, values))
        return Cache(keys, values, time, cache.length + gained)

    def retrieve(self, hidden: Array, queries: Array | None = None) -> Array:
        """Retrieval vectors of readers, (..., W) float32: their inner product with `keys` scores an item.

        Args:
          hidden: of retrieval readers, (..., D).
          queries: the readers' query vectors, (..., W), zeros where there is none; None: nobody has a query. Without
            `config.query_match` they are not used.
        """
        return self.retrieval(hidden, queries)

    def keys(self, items: Array) -> Array:
        """What retrieval vectors are compared with, (..., W) float32, from item vectors (..., W).

        Parts of unit length if `config.normalise`.
        """
        return self.retrieval.keys(items)

    def rank(
        self, hidden: Array, score: Float[Array, "..."], feature: Float[AnyArray, "... f"] | None = None
    ) -> Float[Array, "... a"]:
        """One logit a ranked label, float32, (..., A).

        The ranking token is compared with nothing; whether a candidate is like what the user is after is told by its
        retrieval score, which joins the logit by a learned weight a label.

        Args:
          hidden: of ranking readers, (..., D).
          score: the inner product of the request's retrieval vector (`retrieve`) and the candidate's key (`keys`), (...).
          feature: the readers' candidate features, (..., F + 1), see `batch.Candidates`; None: nothing is known of any.
        """
        return self.ranking(hidden, score, feature)

    def run(self, h: Array, angle: Array, overs: list, deterministic: bool):
        """All blocks over tokens (B, L, D): final hidden states, and each layer's keys and values."""
        h = self.dropout(h, deterministic)
        keys, values = [], []
        for block, over in zip(self.blocks, overs, strict=True):
            h, k, v = block(h, angle, over, deterministic)
            keys.append(k)
            values.append(v)
        return self.final_norm(h), tuple(keys), tuple(values)


_P = typing.ParamSpec("_P")
_R = typing.TypeVar("_R")


def pure(
    model: SynerGen,
    variables: typing.Any,
    method: collections.abc.Callable[typing.Concatenate[SynerGen, _P], _R],
    rngs: dict[str, Array] | None = None,
) -> collections.abc.Callable[_P, _R]:
    """One method over given variables: `pure(model, variables, SynerGen.keys)(items)`, which has the method's own types.

    Args:
      variables: `Params["model"]`.
      method: of `SynerGen`, or a function whose first argument is one.
      rngs: {"dropout": key} where dropout is applied.
    """
    name = getattr(method, "__name__", "")
    if getattr(SynerGen, name, None) is method:
        method = getattr(type(model), name)  # a subclass may have its own
    # To Flax an answer may be a pair, whose second part are changed variables; without `mutable` it is what the method gives.
    apply = typing.cast(collections.abc.Callable[..., _R], model.apply)
    return functools.partial(apply, variables, method=method, rngs=rngs)


def init(model: SynerGen, key: Array) -> Params:
    """Fresh parameters, boxed with their logical axes (`flax.linen.get_partition_spec` reads them)."""
    one = jnp.zeros((1, 1), jnp.int32)
    c, spec = model.config, model.spec
    model_key, table_key = jax.random.split(key)
    tables = embed.init_tables(table_key, c, spec)

    def rows(table, matrices):
        learned = {"id": jnp.zeros((1, 1, model.key_width))} if table in tables else {}
        return learned | {name: jnp.zeros((1, 1, width)) for name, width in matrices if c.uses(name)}

    def touch(model: SynerGen):
        """Calls every part once, so that each creates its parameters."""
        items = model.join_rows(rows("item", spec.item_matrices), one)
        queries = model.join_rows(rows("query", spec.query_matrices), one)
        events = Events(one, one, one, one)
        feature = jnp.zeros((1, 1, len(spec.candidate_features) + 1)) if spec.candidate_features else None
        readers = Readers(one, one, one, one, feature)
        hidden = model.read(model.encode(events, items, queries), readers, items, queries)
        return model.retrieve(hidden, queries), model.keys(items), model.rank(hidden, jnp.zeros((1, 1)), feature)

    return {"model": model.init(model_key, method=touch), "tables": tables}


def item_vectors(
    model: SynerGen,
    params: Params,
    catalogue: Catalogue,
    ids: Int[AnyArray, "..."],
    dropout: embed.IdentityDropout | None = None,
) -> Array:
    """Vectors (..., W) of item ids."""
    return _vectors(model, params, "item", catalogue.item_matrices, catalogue.counts, ids, dropout)


def query_vectors(
    model: SynerGen,
    params: Params,
    catalogue: Catalogue,
    ids: Int[AnyArray, "..."],
    dropout: embed.IdentityDropout | None = None,
) -> Array:
    """Vectors (..., W) of query ids."""
    return _vectors(model, params, "query", catalogue.query_matrices, catalogue.query_counts, ids, dropout)


def _vectors(model: SynerGen, params: Params, table: str, matrices, counts, ids, dropout) -> Array:
    matrices = {name: matrix for name, matrix in matrices.items() if model.config.uses(name)}
    rows = embed.rows_of(params["tables"].get(table), matrices, counts, ids, dropout)
    return pure(model, params["model"], SynerGen.join_rows)(rows, ids)


def token_vectors(
    model: SynerGen, params: Params, catalogue: Catalogue, tokens: Events | Readers
) -> tuple[Array, Array]:
    """Item and query vectors, (B, L, W) each, of events or readers: what `encode`, `read` and `append` take."""
    return (
        item_vectors(model, params, catalogue, tokens.item),
        query_vectors(model, params, catalogue, tokens.query),
    )


def item_keys(model: SynerGen, params: Params, catalogue: Catalogue, chunk: int = 65_536) -> Float[Array, "v w"]:
    """What every item of the catalogue is found by, (V, W) float32; row 0, the padding item, is zero."""

    @jax.jit
    def keys(params, catalogue, ids):
        vectors = item_vectors(model, params, catalogue, ids)
        return jnp.where(ids[:, None] == 0, 0.0, pure(model, params["model"], SynerGen.keys)(vectors))

    ids = np.arange(catalogue.counts.shape[0], dtype=np.int32)
    return jnp.concatenate([keys(params, catalogue, ids[i : i + chunk]) for i in range(0, ids.size, chunk)])
