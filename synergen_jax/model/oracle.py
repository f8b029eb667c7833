"""The model as one dense masked Transformer: what `encode` and `read` must equal. The test oracle, and a benchmark.

Context tokens and readers form one sequence under an explicit mask. Attention does not care in which order tokens
stand, so the readers simply follow the context. With three events, c0 c1 c2, a retrieval token r and a ranking token k
that both ask at event 2 (`visible = 2`), the three kinds of row are

              c0 c1 c2  r  k
    c0      [  1  0  0  0  0 ]
    c1      [  1  1  0  0  0 ]   context: causal
    c2      [  1  1  1  0  0 ]
    r       [  1  1  0  1  0 ]   retrieval: the events before its own, and itself
    k       [  1  1  0  0  1 ]   ranking: likewise, never the event's own token, never another reader

Packed with another user's event, d0 (`first` = 0 0 0 3), and a reader s of that user (`first` = 3, `visible` = 4):

              c0 c1 c2 d0  r  s
    d0      [  0  0  0  1  0  0 ]
    s       [  0  0  0  1  0  1 ]
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from synergen_jax.batch import AnyArray, Events, Readers
from synergen_jax.model.attention import Masked
from synergen_jax.model.synergen import SynerGen, within


def mask(
    length: int,
    visible: Int[AnyArray, "b r"],
    first: Int[AnyArray, "b l"] | None = None,
    reader_first: Int[AnyArray, "b r"] | None = None,
) -> Bool[Array, "b n n"]:
    """The mask over `length` context tokens followed by R readers, (B, L + R, L + R); True is "may see"."""
    users, readers = visible.shape
    place = jnp.arange(length)[None, None, :]
    context = jnp.tri(length, dtype=bool)[None].repeat(users, axis=0)
    asks = place < visible[:, :, None]
    if first is not None:
        context &= place >= first[:, :, None]
    if reader_first is not None:
        asks &= place >= reader_first[:, :, None]
    itself = jnp.eye(readers, dtype=bool)[None].repeat(users, axis=0)
    nothing = jnp.zeros((users, length, readers), bool)
    return jnp.concatenate([jnp.concatenate([context, nothing], 2), jnp.concatenate([asks, itself], 2)], 1)


def forward(
    model: SynerGen,
    events: Events,
    event_items: Array,
    event_queries: Array,
    readers: Readers,
    items: Array,
    queries: Array,
) -> tuple[Array, Array]:
    """Final hidden states of the context tokens, (B, L, D), and of the readers, (B, R, D). A method of a bound model."""
    length = events.time.shape[1]
    asked = model.asked_at(readers, events.time)
    context = model.context_tokens(events, event_items, event_queries)
    h = jnp.concatenate([context, model.reader_tokens(readers, items, queries, asked)], axis=1)
    order = jnp.broadcast_to(jnp.arange(length), events.time.shape)
    order = jnp.concatenate([within(order, events.first), within(readers.visible, readers.first)], axis=1)
    time = jnp.concatenate([events.time, asked], axis=1)
    angle = model.angles(time, order)
    seen = Masked(mask(length, readers.visible, events.first, readers.first), time)
    h, _, _ = model.run(h, angle, [seen] * model.config.depth, True)
    return h[:, :length], h[:, length:]
