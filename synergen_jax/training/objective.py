"""From a training batch to the loss: looks items up once, encodes, reads, and adds the weighted losses."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from synergen_jax.batch import TrainBatch
from synergen_jax.config import LossConfig
from synergen_jax.model import lookup, synergen
from synergen_jax.model.embed import IdentityDropout
from synergen_jax.model.synergen import SynerGen
from synergen_jax.sharding.table import StoredCatalogue
from synergen_jax.training import batch_loss, losses
from synergen_jax.training.apply_gradients import Gradients

Parts = batch_loss.Parts


def weights(batch: TrainBatch, config: LossConfig, step: Array | int = 0) -> Parts:
    """What each loss of this batch is a mean over: targets, known labels, and pairs; scalars, at least 1.

    Searches and recommendations count by their weights. What a ranking loss is a mean over is infinite, and so the loss
    zero, before step `config.rank_after`: a head that learns before the retrieval scores tell anything learns what is
    popular, and keeps it when they tell it, too.
    """
    label = batch.ranking.label
    lists = batch_loss.list_weight(batch.ranking, config)
    counts = {
        "retrieval": jnp.sum((batch.target > 0) * batch_loss.task_weight(batch.retrieval.query, config)),
        "pointwise": losses.known(label, lists),
        "pairwise": losses.pairs(label, lists),
        "listwise": losses.chosen(label, lists),
    }
    if config.hard_candidates:
        ranked = (batch.ranking.item[:, :, 0] > 0) * lists[..., 0]
        chosen = jnp.sum(label[..., 0] == 1, axis=-1)
        counts["pointwise"] += config.hard_candidates * jnp.sum(ranked)
        counts["pairwise"] += config.hard_candidates * jnp.sum(ranked * chosen)
        alone = jnp.all(label[..., 0] != 0, axis=-1)  # but for hard candidates nothing stands beside what was chosen
        counts["listwise"] += jnp.sum(ranked * chosen * alone)
    early = jnp.where(jnp.asarray(step) < config.rank_after, jnp.inf, 1.0)
    least = {"retrieval": 1.0, "pointwise": early, "pairwise": early, "listwise": early}
    return {name: jnp.maximum(count, least[name]) for name, count in counts.items()}


def negatives(mesh: Mesh, batch: TrainBatch, config: LossConfig, key: Array) -> tuple[Array, Array]:
    """The ids that serve the whole batch as negatives, and how many of its own targets are expected among them.

    The batch's shared uniform negatives are joined by `config.in_batch` of its own targets, drawn with replacement
    from all its positions; a drawn position without a target leaves an empty slot, id 0.

    Returns:
      ids (N + in_batch,), and the number.
    """
    if config.full_softmax:
        return jnp.zeros((0,), jnp.int32), jnp.zeros(())
    position = jax.random.randint(key, (config.in_batch,), 0, batch.target.size)

    def draw(target, position):
        """Each device adds those of its own users, so that the batch's targets are not gathered."""
        place = position - jax.lax.axis_index("data") * target.size
        own = (place >= 0) & (place < target.size)
        return jax.lax.psum(jnp.where(own, target.reshape(-1).at[place].get(mode="clip"), 0), "data")

    drawn = jax.shard_map(draw, mesh=mesh, in_specs=(batch_loss.USERS, batch_loss.WHOLE), out_specs=batch_loss.WHOLE)(
        batch.target, position
    )
    filled = config.in_batch * jnp.mean(batch.target > 0).clip(1 / batch.target.size)  # log 0 would make 0 x inf
    return jnp.concatenate([batch.negatives, drawn]), filled


def value_and_grad(
    mesh: Mesh,
    model: SynerGen,
    params: synergen.Params,
    catalogue: StoredCatalogue,
    batch: TrainBatch,
    config: LossConfig,
    key: Array | None,
    step: Array | int = 0,
    micro: int = 1,
    filter_seen: bool = True,
) -> tuple[Array, Parts, Gradients]:
    """The objective of a batch, its unweighted parts, and the gradients of everything that is learned.

    Rows are looked up once for the whole batch, and joined to vectors once; the loss takes the vectors. With `micro` > 1
    it is added up over that many slices of the batch, one after the other.

    Args:
      key: of sampling and dropout; None for no dropout.
      step: steps done before.
      filter_seen: as `data.filter_seen`: hard candidates are no items of the user's window.
    """
    sample_key, dropout_key, id_key = jax.random.split(jax.random.key(0) if key is None else key, 3)
    total = weights(batch, config, step)
    shared, filled = negatives(mesh, batch, config, sample_key)
    ids = {
        "item": (batch.events.item, batch.target, batch.ranking.item),
        "query": (batch.events.query, batch.retrieval.query, batch.ranking.query),
    }
    found = lookup.look_up(mesh, model, params["tables"], catalogue, ids, shared)
    dropout = None
    if key is not None and model.config.id_dropout:
        dropout = IdentityDropout(model.config.id_dropout, jax.random.bits(id_key))
    join = functools.partial(lookup.join, model, dropout=dropout)

    def vectors(variables, learned, whole):
        """Vectors of the distinct ids, (S, U, W), and for the full softmax of all items, (A, 768, W)."""
        made = {
            name: join(variables, f.rows | learned.get(name, {}), f.counts, jnp.maximum(f.asked.ids, 0))
            for name, f in found.items()
        }
        if config.full_softmax:
            counts = catalogue.item_counts
            every = jnp.arange(counts.size).reshape(counts.shape)
            made["every"] = join(variables, lookup.sources(model, whole, catalogue, "item"), counts, every)
        return made

    learned = {name: {"id": f.rows["id"]} for name, f in found.items() if "id" in f.rows}
    whole = {name: x for name, x in params["tables"].items() if name == "item" and config.full_softmax}
    made, back = jax.vjp(vectors, params["model"], learned, whole)
    shares = batch_loss.Shared(mesh, model, catalogue, config, filter_seen, total, shared, filled)
    dropout_key = None if key is None else dropout_key
    (value, parts), (variables, outer) = _summed(shares, params["model"], made, found, batch, (dropout_key, micro))
    more, rows, whole = back(outer)
    gradients = Gradients(
        jax.tree.map(jnp.add, variables, more),
        whole,
        {name: (found[name].asked, gradient["id"]) for name, gradient in rows.items()},
    )
    return value, parts, gradients


def _summed(shared: batch_loss.Shared, variables, made, found: dict[str, lookup.Found], batch: TrainBatch, how):
    """((loss, parts), gradients of variables and of `made`), summed over slices of the batch.

    Args:
      made: vectors of the distinct ids that were found.
      how: the key of dropout or None, and how many slices.
    """

    def one(variables, made, batch, place, key):
        placed = {name: f._replace(asked=dataclasses.replace(f.asked, place=place[name])) for name, f in found.items()}
        return batch_loss.loss(shared, variables, batch_loss.placed(shared, made, placed, batch), batch, key)

    key, micro = how
    grad = jax.value_and_grad(one, argnums=(0, 1), has_aux=True)
    place = {name: f.asked.place for name, f in found.items()}
    if micro == 1:
        return grad(variables, made, batch, place, key)
    return _accumulate(functools.partial(grad, variables, made), batch, place, key, micro)


def _accumulate(grad, batch: TrainBatch, place: dict[str, Array], key: Array | None, micro: int):
    """Adds loss, parts and gradients over `micro` slices of the batch, one after the other."""
    # Every micro-batch takes users from all over the batch, so that it stays split along `data`.
    cut = lambda x: x.reshape(x.shape[0] // micro, micro, *x.shape[1:]).swapaxes(0, 1)
    batch = dataclasses.replace(batch, negatives=jnp.zeros((batch.target.shape[0], 0), jnp.int32))
    slices = jax.tree.map(cut, (batch, place))
    fold = lambda index: None if key is None else jax.random.fold_in(key, index)

    def add(total, xs):
        (part, places), index = xs
        return jax.tree.map(jnp.add, total, grad(part, places, fold(index))), None

    first = jax.tree.map(lambda x: x[0], slices)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad, *first, key))
    return jax.lax.scan(add, zeros, (slices, jnp.arange(micro)))[0]
