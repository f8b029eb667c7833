"""From ids to vectors.

A vector joins a learned collaborative row with any number of frozen semantic matrices (text, images, ...): the row
itself plus a learned projection of each matrix's row. Looking rows up is apart from using them: the model is given
rows and never sees a table, so that tables can be sharded, updated sparsely or live elsewhere.
"""

from __future__ import annotations

import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from synergen_jax.batch import AnyArray, LogSpec
from synergen_jax.config import ModelConfig
from synergen_jax.model.dropout import below, bits
from synergen_jax.sharding import table

Rows = dict[str, Float[Array, "..."]]
"""Looked-up rows by source: "id" is the collaborative one, every other name a semantic matrix. (..., width) each."""


def vector_width(config: ModelConfig, spec: LogSpec) -> int:
    """Numbers of the vector of an item or a query, W: D, and `config.query_match` more where the log has queries.

    The first D are what tokens are made of. By the others queries are matched with items, and nothing else.
    """
    return config.width + (config.query_match if spec.queries > 1 else 0)


def init_tables(key: Array, config: ModelConfig, spec: LogSpec) -> dict[str, nn.LogicallyPartitioned]:
    """The learned tables, {"item": (A, 768, W), "query": (A, 768, W)}, see `table`; one that is not wanted is left out.

    Rows are drawn from a normal distribution of standard deviation 0.02.
    """
    wanted = {"item": config.item_ids and spec.items, "query": config.query_ids and spec.queries > 1 and spec.queries}
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("lines", "rows", "embed"))
    keys = dict(zip(wanted, jax.random.split(key, len(wanted))))
    width = vector_width(config, spec)
    return {name: init(keys[name], (table.lines(n), table.COLUMNS, width)) for name, n in wanted.items() if n}


class IdentityDropout(typing.NamedTuple):
    """In training, a share `rate` of all ids goes by its semantic rows alone, as ids do that training never meets.

    An id is kept or dropped wherever it stands in one step. After DropoutNet (Volkovs et al. 2017).
    """

    rate: float
    seed: Int[Array, ""]  # uint32, of the step

    def keeps(self, ids: Int[AnyArray, "..."]) -> Bool[Array, "..."]:
        """True for the ids that keep their collaborative row; a hash of id and seed, so that no table is needed."""
        return bits(ids.astype(jnp.uint32), self.seed) >= below(self.rate)


def rows_of(
    learned: Float[Array, "a c d"] | None,
    matrices: dict[str, Float[Array, "v w"]],
    counts: Int[AnyArray, "v"],
    ids: Int[AnyArray, "..."],
    dropout: IdentityDropout | None = None,
) -> Rows:
    """The rows of `ids` in the learned table, as it is stored, and in each semantic matrix, on one device.

    Ids must be in range: the feed's promise. Beyond the learned table they may be new ones.
    """
    take = lambda array: jnp.take(array, ids, axis=0, mode="clip")
    rows = {name: take(matrix) for name, matrix in matrices.items()}
    if learned is None:
        return rows
    return rows | {"id": known(table.take(learned, ids), take(counts), ids, dropout)}


def known(
    rows: Float[Array, "... d"],
    counts: Int[Array, "..."],
    ids: Int[AnyArray, "..."],
    dropout: IdentityDropout | None = None,
) -> Float[Array, "... d"]:
    """Learned rows of ids, zeros for an id without a training event (`counts`): what lies in the table was never learned.

    So ids may also be new ones, beyond the table, that only have semantic rows.
    """
    keeps = counts > 0
    if dropout is not None:
        keeps &= dropout.keeps(ids)
    return jnp.where(keeps[..., None], rows, 0)


class Join(nn.Module):
    """Rows to one vector each, (..., W); `nothing` marks the ids that are 0, whose vector is zero."""

    width: int
    dtype: typing.Any

    @nn.compact
    def __call__(self, rows: Rows, nothing: Array) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "embed"))
        total = jnp.zeros((*nothing.shape, self.width), self.dtype)
        for name, row in sorted(rows.items()):
            if name == "id":
                total += row.astype(self.dtype)
            else:
                project = nn.Dense(self.width, use_bias=False, kernel_init=init, dtype=self.dtype, name=name)
                total += project(row.astype(self.dtype))
        return jnp.where(nothing[..., None], 0, total)
