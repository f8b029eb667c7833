"""Several windows in one row: the same losses as apart, nothing seen across, and a feed that stays a function."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model
from small_feed import configure, same, take
from small_log import SmallLog, random_log, user
from small_model import value_and_grad

from data_pipelines.feed import examples, packing, splits, windows
from synergen_jax.batch import TrainBatch
from synergen_jax.config import LossConfig
from synergen_jax.model import oracle as dense

B, L, R = 2, 11, 14
SMALL = dataclasses.replace(small_model.CONFIG, width=16, heads=2, depth=1)


# --- the plan -------------------------------------------------------------------------------------------------


def sizes(rng, count=300, length=40):
    events = np.minimum(rng.zipf(1.6, count), length)
    return events, rng.integers(0, np.minimum(events, 4) + 1)


@pytest.mark.parametrize("rank", [True, False])
def test_rows_hold_every_window_once_and_are_never_too_full(rank):
    events, ranked = sizes(np.random.default_rng(0))
    plan = packing.make_plan(events, ranked * rank, 40, 5)
    for epoch in range(3):
        rows = [plan.windows((7, epoch), row) for row in range(plan.rows)]
        assert sorted(np.concatenate(rows)) == list(range(300))
        assert max(events[row].sum() for row in rows) <= 40
        assert max(ranked[row].sum() * rank for row in rows) <= plan.ranked
    if not rank:
        assert plan.rows <= events.sum() / 40 + 2, "with so many short windows hardly a place is left"


def test_epochs_put_other_windows_together_and_each_is_a_function_of_its_key():
    plan = packing.make_plan(*sizes(np.random.default_rng(1)), 40, 5)
    rows = lambda *key: [sorted(plan.windows(key, row).tolist()) for row in range(plan.rows)]
    assert rows(0, 0) != rows(0, 1) != rows(1, 1)
    first = rows(0, 0)
    rows(0, 5), rows(0, 6)  # more epochs than are kept
    assert rows(0, 0) == first


def test_long_windows_stay_alone():
    plan = packing.make_plan(np.full(5, 8), np.full(5, 2), 8, 4)
    assert (plan.rows, plan.ranked) == (5, 2)


# --- the feed -------------------------------------------------------------------------------------------------


def test_a_packed_row_is_its_windows_one_after_the_other():
    log = random_log(seed=3, users=60, longest=9)
    config = configure(max_history=24, batch=2, pack=True, rank_events=2)
    batch = take(log, config, 1)[0]
    assert batch.events.item.shape == batch.events.first.shape == batch.retrieval.first.shape == (2, 24)
    for row in range(2):
        first, mask = batch.events.first[row], batch.events.mask[row]
        used = int(mask.sum())
        assert mask[:used].all() and (np.diff(first) >= 0).all() and (first <= np.arange(24)).all()
        assert (first[used:] == used).all(), "padding is a segment of its own"
        starts = np.unique(first[:used])
        assert len(starts) > 1, "else this log shows nothing"
        assert (batch.retrieval.first[row, :used] == first[:used]).all()
        visible = batch.retrieval.visible[row]
        assert (first[:used] <= visible[:used]).all() and (visible[:used] <= np.arange(used)).all()
        assert not visible[used:].any() and not batch.target[row, used:].any()
        assert (visible[starts] == starts).all(), "a window's first event has nothing before it"
        ranking = batch.ranking
        real = ranking.item[row, :, 0] > 0
        assert np.isin(ranking.first[row][real], starts).all() and real.any()
        assert (ranking.visible[row][real] >= ranking.first[row][real]).all()
        assert (ranking.label[row][~real] == -1).all()
        at = ranking.event[row][real]
        assert (batch.target[row][at] == ranking.item[row, :, 0][real]).all()
        assert (batch.retrieval.visible[row][at] == ranking.visible[row][real]).all()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])  # processes start slowly
def test_a_packed_feed_is_a_function_of_seed_and_step(workers):
    log = random_log(seed=4, users=9, longest=7)
    config = configure(max_history=10, batch=2, pack=True, negatives=3, workers=workers)
    batches = take(log, config, 12)  # several epochs
    for later in (1, 5, 11):
        same(batches[later], take(log, config, 1, step=later)[0])
    for process in range(2):
        mine = take(log, config, 3, process=process, processes=2)
        for ours, whole in zip(mine, batches):
            same(ours.events.item, whole.events.item[process::2])


def test_an_epoch_of_rows_holds_every_window_once():
    log = random_log(seed=5, users=9, longest=7)
    config = configure(max_history=10, batch=1, pack=True)
    plain = configure(max_history=10, batch=1)
    split = splits.split(log, config.data)
    count = len(examples.train_windows(split.train_stop, split.first_target, 10, 0))
    events = lambda batches: sorted(item for batch in batches for item in batch.events.item[batch.events.mask].tolist())
    once = events(take(log, plain, count))
    packed = [batch for batch in take(log, config, count) if True]
    for rows in range(1, count):
        if events(packed[:rows]) == once:
            assert events(packed[rows : 2 * rows]) == once, "and so does the next epoch"
            return
    raise AssertionError("no number of rows holds the events of an epoch")


# --- model and losses -----------------------------------------------------------------------------------------


def packed_inputs(rng):
    """Events and readers in rows of three segments."""
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    starts = np.array([[0, 4, 5], [0, 1, 8]])
    first = np.stack([s[np.searchsorted(s, np.arange(L), "right") - 1] for s in starts])
    segment = rng.integers(0, 3, (B, R))
    begin, end = (
        np.take_along_axis(starts, segment, 1),
        np.take_along_axis(np.append(starts[:, 1:], [[L], [L]], 1), segment, 1),
    )
    visible = rng.integers(begin, end + 1)
    assert (visible == begin).any()
    put = lambda x: jnp.asarray(x, jnp.int32)
    return dataclasses.replace(events, first=put(first)), dataclasses.replace(
        readers, first=put(begin), visible=put(visible)
    )


@functools.partial(jax.jit, static_argnames="model")
def both(model, params, catalogue, events, readers):
    """Readers' hidden states, factorised and dense."""
    ev, rd = (small_model.vectors(model, params, catalogue, t) for t in (events, readers))
    cache = model.apply(params["model"], events, *ev, method="encode")
    hidden = model.apply(params["model"], cache, readers, *rd, method="read")
    return hidden, model.apply(params["model"], events, *ev, readers, *rd, method=dense.forward)[1]


def test_packed_factorised_equals_dense_oracle():
    model, params, catalogue = small_model.make()
    events, readers = packed_inputs(np.random.default_rng(1))
    hidden, oracle = both(model, params, catalogue, events, readers)
    np.testing.assert_allclose(hidden, oracle, atol=1e-5)
    one, _ = both(model, params, catalogue, *(dataclasses.replace(x, first=None) for x in (events, readers)))
    assert np.abs(np.asarray(hidden - one)).max() > 1e-2, "else segments make no difference here"


def test_the_masks_of_a_packed_row_are_these():
    put = lambda *x: jnp.array([x])
    # Three events of one user and two of another; a reader of each that sees what is there, and one of d0's own event.
    found = dense.mask(5, put(2, 5, 3), put(0, 0, 0, 3, 3), put(0, 3, 3))
    expected = [
        # c0 c1 c2 d0 d1  r  s  t
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(found[0].astype(int), expected)


def test_nothing_crosses_segments():
    """The gradient of a reader with regard to every event outside of what it sees is exactly zero."""
    model, params, catalogue = small_model.make()
    events, readers = packed_inputs(np.random.default_rng(3))
    items, queries = small_model.vectors(model, params, catalogue, events)
    rd = small_model.vectors(model, params, catalogue, readers)

    @jax.jit
    def jacobian(items):
        def hidden(items):
            cache = model.apply(params["model"], events, items, queries, method="encode")
            return jnp.sum(model.apply(params["model"], cache, readers, *rd, method="read"), axis=(0, 2))

        return jax.jacrev(hidden)(items)  # (R, B, L, D)

    moved = np.abs(np.asarray(jacobian(items))).sum(-1).transpose(1, 0, 2) > 0
    place = np.arange(L)
    first, visible = np.asarray(readers.first), np.asarray(readers.visible)
    np.testing.assert_array_equal(moved, (place >= first[..., None]) & (place < visible[..., None]))


@pytest.mark.parametrize("hard", [0, 3])
def test_packed_windows_have_the_losses_and_gradients_that_they_have_apart(hard):
    log = random_log(users=25, longest=9)
    config = configure(max_history=16, pack=True, rank_events=2, rank_candidates=4)
    split = splits.split(log, config.data)
    catalogue = examples.catalogue(log, split)
    where = examples.train_windows(split.train_stop, split.first_target, 16, 0)
    plan = packing.make_plan(
        where[:, 2] - where[:, 1], examples.ranked_events(log, where, split.train_stop, config), 16, 4
    )
    assert plan.rows < len(where) / 2
    items = np.flatnonzero(catalogue.counts).astype(np.int32)
    make = functools.partial(examples.example, log, items, windows.label_table(log), split.train_stop, config)
    rows = range(min(plan.rows, 6))
    together = examples.collate([examples.packed(make, where, plan, config, row, row) for row in rows])
    apart = examples.collate(
        [
            make((row, number), place)
            for row in rows
            for number, place in enumerate(where[plan.windows((0, examples.PACK, 0), row)])
        ]
    )
    batches = [TrainBatch(**batch, negatives=items[:7]) for batch in (together, apart)]
    assert batches[0].events.mask.sum() == batches[1].events.mask.sum()
    assert batches[0].events.mask.mean() > 1.5 * batches[1].events.mask.mean()
    model, params, _ = small_model.make(SMALL, log.spec)
    loss = LossConfig(in_batch=0, full_softmax=bool(hard), hard_candidates=hard, temperature=0.1)
    catalogue = jax.tree.map(jnp.asarray, catalogue)
    (packed, parts), ours = value_and_grad(model, params, catalogue, jax.tree.map(jnp.asarray, batches[0]), loss)
    (value, others), theirs = value_and_grad(model, params, catalogue, jax.tree.map(jnp.asarray, batches[1]), loss)
    assert all(float(part) > 0 for part in others.values())
    np.testing.assert_allclose(packed, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts, others)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


@pytest.mark.parametrize(("events", "pack"), [(4, True), (5, False)])
def test_windows_that_fill_less_than_half_of_their_rows_are_packed(events, pack):
    """Users of `events` + 2 events, two of which validate and test, in rows of ten."""
    log = SmallLog([user(np.arange(1, events + 3), name=f"u{n}") for n in range(9)], 20)
    config = configure(max_history=10, batch=2, pack="auto", rank_events=1)
    split = splits.split(log, config.data)
    assert examples.row_fill(config.data, split) == events / 10
    resolved = examples.resolved(config, split)
    assert resolved.data.pack is pack and examples.resolved(resolved, split) is resolved
    for mine, other in zip(take(log, config, 4), take(log, resolved, 4), strict=True):
        assert (mine.events.first is not None) == pack
        same(mine, other)
    cudnn = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="cudnn"))
    assert examples.resolved(cudnn, split).data.pack is False, "it cannot keep segments apart"
