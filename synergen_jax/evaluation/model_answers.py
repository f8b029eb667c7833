"""What a model answers for batches of targets: the place of each among all items, and logits of its candidates.

The users of a batch are shared out over the `data` axis of the mesh on which the model lies, and over its processes.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from synergen_jax.batch import AnyArray, EvalBatch, Readers
from synergen_jax.model import lookup, synergen
from synergen_jax.model.synergen import SynerGen
from synergen_jax.processes import cluster
from synergen_jax.retrieval import full_ranking
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import StoredCatalogue


class Batches(typing.Protocol):
    """The targets of an evaluation; iterated any number of times."""

    def __iter__(self) -> collections.abc.Iterator[EvalBatch]: ...

    def shared(self, parts: int, block: int, blocks: int) -> typing.Self:
        """The same batches, of a multiple of `parts` users, of which only the `block`-th of `blocks` blocks is read."""
        ...


Some = typing.TypeVar("Some", bound=AnyArray)


class Answers(typing.NamedTuple, typing.Generic[Some]):
    """What a model says about n targets; numpy on the host, jax in a step."""

    user: Some  # (n,) whose targets they are
    ranks: Some  # (n, 2) first and last place, from 1; -1 where a score is NaN: `metrics.retrieval_metrics` refuses
    vectors: Some  # (n, W) retrieval vectors
    labels: Some  # (n, K, A) 1, 0, or -1 for unknown
    logits: Some  # (n, K, A)
    shown: Some  # (n,) True where the candidates are the list that was shown
    reranked: Some  # (n, 2) ranks after the ranking head has ordered the items retrieved first; (n, 0): not asked
    unknown: Some  # (n,) True where nothing is known of the target: its key is zeros
    search: Some  # (n,) True where the reader has a query


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["params", "catalogue", "keys"], meta_fields=["mesh", "model"]
)
@dataclasses.dataclass(frozen=True)
class PlacedModel:
    """A model on a mesh, with all that it needs to be asked."""

    mesh: Mesh
    model: synergen.SynerGen
    params: synergen.Params
    catalogue: StoredCatalogue
    keys: Float[Array, "a c d"]  # `full_ranking.item_keys` of them

    @classmethod
    def of(cls, model: synergen.SynerGen, params: synergen.Params, catalogue: StoredCatalogue) -> PlacedModel:
        """Makes the keys of all items, on the mesh on which the catalogue and the parameters lie."""
        mesh = catalogue.mesh
        return cls(mesh, model, params, catalogue, full_ranking.item_keys(mesh, model, params, catalogue))


def _spread(batches: Batches, mesh: Mesh):
    """Batches, and what puts one on the devices: of several its users along `data`, each process reading its own."""
    if mesh.size == 1:
        return batches, lambda batch: batch
    users = NamedSharding(mesh, PartitionSpec("data"))
    mine = batches.shared(mesh.shape["data"], *device_mesh.block(mesh))
    return mine, lambda batch: device_mesh.place(batch, users)


def _encoded(asked: PlacedModel, batch: EvalBatch, *readers: Readers):
    """`read(readers, items, queries)`: hidden states over the encoded context of a batch; and the vectors of some readers.

    Returns:
      The function, the item vectors (B, R, W) of each of `readers`, and their query vectors.
    """
    mesh, model, params = asked.mesh, asked.model, asked.params
    tokens = batch.events, *readers
    ids = {"item": [one.item for one in tokens], "query": [one.query for one in tokens]}
    made = lookup.vectors(mesh, model, params, asked.catalogue, ids)
    items, queries = made["item"], made["query"]

    pure = functools.partial(synergen.pure, model, params["model"])
    split = lambda: jax.sharding.use_abstract_mesh(mesh.abstract_mesh)  # along which attention kernels are split
    with split():
        cache = pure(SynerGen.encode)(batch.events, items[0], queries[0])

    def read(readers: Readers, items: Array, queries: Array) -> Array:
        with split():
            return pure(SynerGen.read)(cache, readers, items, queries)

    return read, items[1:], queries[1:]


@functools.partial(jax.jit, static_argnames="rerank")
def answer(asked: PlacedModel, batch: EvalBatch, rerank: int) -> tuple[Answers[AnyArray], Array]:
    """What `Answers` holds of each user of one batch, and which of them are real, (B,); whole on every device.

    Args:
      rerank: as in `answers`.
    """
    mesh, model, keys = asked.mesh, asked.model, asked.keys
    pure = functools.partial(synergen.pure, model, asked.params["model"])
    reader, listed, items = batch.reader, batch.ranking.readers(), model.spec.items
    read, (nothing, list_items), (wanted, list_queries) = _encoded(asked, batch, reader, listed)
    query = pure(SynerGen.retrieve)(read(reader, nothing, wanted), wanted)[:, 0]
    ranks = full_ranking.ranks(mesh, query, keys, batch.target, batch.seen, items)
    # Exact, as serving is: an accelerator's own choice of fewer bits changes the ranks of a quarter of the targets.
    list_keys = pure(SynerGen.keys)(list_items)
    score = jnp.einsum("bd,bkd->bk", query, list_keys, precision=jax.lax.Precision.HIGHEST)
    logits = pure(SynerGen.rank)(read(listed, list_items, list_queries), score, listed.feature)
    label, unknown = batch.ranking.label[:, 0], full_ranking.known_bias(list_keys) < 0
    logits = logits.reshape(label.shape)
    # Sampled candidates are what retrieval could bring, which never brings what nothing is known of. Finite, as a logit is.
    behind = jnp.where(unknown & ~batch.shown[:, None], jnp.finfo(jnp.float32).min, logits[..., 0])
    logits = logits.at[..., 0].set(behind)
    unasked = jnp.zeros((len(ranks), 0), jnp.int32)
    # A list begins with its target.
    search = reader.query[:, 0] > 0
    said = Answers[AnyArray](batch.user, ranks, query, label, logits, batch.shown, unasked, unknown[:, 0], search)
    if rerank:
        score, first = full_ranking.first(mesh, query, keys, batch.seen, rerank, items)
        chosen = _by_head(asked, read, reader, wanted, (score, first))
        said = said._replace(reranked=reranked(chosen, score > -jnp.inf, first == batch.target[:, None], ranks))
    return jax.lax.with_sharding_constraint((said, batch.user >= 0), device_mesh.whole(mesh))


def _by_head(asked: PlacedModel, read, reader: Readers, queries: Array, retrieved: tuple[Array, Array]) -> Array:
    """The ranking head's logits of the first label, (B, F), for items that were retrieved.

    Args:
      read: of `_encoded`; reader: (B, 1), the requests, and `queries` their vectors; retrieved: scores and ids, (B, F).
    """
    score, first = retrieved
    wide = lambda x: jnp.broadcast_to(x, (*first.shape, *x.shape[2:]))
    readers = Readers(first, wide(reader.query), wide(reader.time), wide(reader.visible))
    vectors = lookup.vectors(asked.mesh, asked.model, asked.params, asked.catalogue, {"item": [first]})["item"][0]
    rank = synergen.pure(asked.model, asked.params["model"], SynerGen.rank)
    return rank(read(readers, vectors, wide(queries)), score)[..., 0]


def retrieved(asked: PlacedModel, batch: EvalBatch, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `most` items that are retrieved first, best first, 0 where there are no more; their scores and the head's logits.

    (B, F) each, on the host.
    """
    score, item, logit = jax.device_get(_retrieved(asked, batch, most))
    return np.where(np.isfinite(score), item, 0), score, logit


@functools.partial(jax.jit, static_argnames="most")
def _retrieved(asked: PlacedModel, batch: EvalBatch, most: int) -> tuple[Array, Array, Array]:
    """Scores and ids, as `full_ranking.first` gives them, and logits, (B, F) each."""
    read, (nothing,), (wanted,) = _encoded(asked, batch, batch.reader)
    retrieve = synergen.pure(asked.model, asked.params["model"], SynerGen.retrieve)
    query = retrieve(read(batch.reader, nothing, wanted), wanted)[:, 0]
    items = asked.model.spec.items
    found = full_ranking.first(asked.mesh, query, asked.keys, batch.seen, most, items)
    found = *found, _by_head(asked, read, batch.reader, wanted, found)
    return jax.lax.with_sharding_constraint(found, device_mesh.whole(asked.mesh))


def reranked(chosen: AnyArray, there: AnyArray, target: AnyArray, ranks: AnyArray) -> Array:
    """First and last place of each target, (B, 2), once the items retrieved first are in another order.

    A target that is not among them comes behind them. Of items whose retrieval score is equal at the cut those are
    among them that serving takes.

    Args:
      chosen: (B, F) scores that order them, NaN: -1 as in `metrics.ranks`; there: (B, F) where there is an item;
        target: (B, F) where it is the target; ranks: (B, 2) by retrieval.
    """
    own, other = target & there, ~target & there
    mine = jnp.max(jnp.where(own, chosen, -jnp.inf), axis=1, keepdims=True)
    count = lambda ahead: jnp.sum(other & ahead, axis=1, dtype=jnp.int32)
    among = 1 + jnp.stack([count(chosen > mine), count(chosen >= mine)], axis=1)
    # A target that ties with the last of them stands behind the cut; one that its user has had already is never retrieved.
    behind = jnp.clip(1 + jnp.sum(there, axis=1), ranks[:, 0], ranks[:, 1])
    behind = jnp.stack([behind, ranks[:, 1]], axis=1)
    nans = jnp.any(jnp.isnan(chosen) & there, axis=1, keepdims=True)
    return jnp.where(nans, -1, jnp.where(own.any(axis=1, keepdims=True), among, behind))


@jax.jit
def _ranks(asked: PlacedModel, batch: EvalBatch) -> Array:
    model = asked.model
    read, (nothing,), (wanted,) = _encoded(asked, batch, batch.reader)
    retrieve = synergen.pure(model, asked.params["model"], SynerGen.retrieve)
    query = retrieve(read(batch.reader, nothing, wanted), wanted)[:, 0]
    ranks = full_ranking.ranks(asked.mesh, query, asked.keys, batch.target, batch.seen, model.spec.items)
    return jax.lax.with_sharding_constraint(ranks, device_mesh.whole(asked.mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def _searches(mesh: Mesh, batch: EvalBatch) -> tuple[Array, Array]:
    """Which users of a batch are real, and which of them search, (B,) each."""
    found = batch.user >= 0, batch.reader.query[:, 0] > 0
    return jax.lax.with_sharding_constraint(found, device_mesh.whole(mesh))


def answers(asked: PlacedModel, batches: Batches, progress: str = "", rerank: int = 0) -> Answers[np.ndarray]:
    """Runs a model over all targets; padded rows are left out.

    All processes of the mesh call this, and all get the answers about all targets.

    Args:
      progress: what a bar in the terminal is called; "": there is none.
      rerank: how many items, retrieved first, the ranking head orders; 0: none.
    """
    found: list[Answers[np.ndarray]] = []
    rerank = min(rerank, asked.model.spec.items - 1)
    mine, place = _spread(batches, asked.mesh)
    hidden = None if progress and cluster.first() else True  # None: shown in a terminal
    for batch in tqdm.tqdm(mine, desc=progress, unit="batch", disable=hidden, leave=False):
        said, real = jax.device_get(answer(asked, place(batch), rerank))
        found.append(Answers(*(part[real] for part in said)))
    return Answers(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def with_less(asked: PlacedModel, batches: Batches) -> dict[str, np.ndarray]:
    """Ranks of searches, (n, 2), 0 for other targets, by the model without the history and without the query.

    Returns:
      By form, "query_without_history" and "history_without_query"; {} where there is no search.
    """
    forms = {"query_without_history": {"visible": 0}, "history_without_query": {"query": 0}}
    found: dict[str, list[np.ndarray]] = {name: [] for name in forms}
    mine, place = _spread(batches, asked.mesh)
    for batch in mine:
        real, search = jax.device_get(_searches(asked.mesh, place(batch)))
        for name, change in forms.items():
            ranks = np.zeros((len(real), 2), np.int32)
            if (real & search).any():
                blank = {field: np.full_like(getattr(batch.reader, field), value) for field, value in change.items()}
                less = dataclasses.replace(batch, reader=dataclasses.replace(batch.reader, **blank))
                ranks = np.asarray(_ranks(asked, place(less))) * search[:, None]
            found[name].append(ranks[real])
    ranks = {name: np.concatenate(parts) for name, parts in found.items()}
    return {name: values for name, values in ranks.items() if values.any()}
