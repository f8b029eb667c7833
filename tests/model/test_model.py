"""The factorised model against its dense oracle; causality; append; dtypes; sizes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model

from synergen_jax.batch import Events, Readers
from synergen_jax.config import ModelConfig
from synergen_jax.model import blocks, date, heads, rope, synergen
from synergen_jax.model import oracle as dense

B, L, R = 3, 11, 14


@functools.partial(jax.jit, static_argnames="model")
def both(model, params, catalogue, events, readers):
    """Hidden states of the context (by readers' keys and values) and of the readers, factorised and dense."""
    ev, rd = (small_model.vectors(model, params, catalogue, t) for t in (events, readers))
    cache = model.apply(params["model"], events, *ev, method="encode")
    hidden = model.apply(params["model"], cache, readers, *rd, method="read")
    return cache, hidden, model.apply(params["model"], events, *ev, readers, *rd, method=dense.forward)


BIASED = {"time_bias": True}
GATED = {"block": "hstu", "rope": "none", "time_bias": True}
DATED = {"request_date": True, "query_match": 8}
KINDS = pytest.mark.parametrize(
    "kind",
    [{"rope": "time"}, {"rope": "order"}, {}, BIASED, {"block": "hstu"}, GATED, {"request_time": False}, DATED],
    ids=str,
)


@KINDS
def test_factorised_equals_dense_oracle(kind):
    config = dataclasses.replace(small_model.CONFIG, **kind)
    model, params, catalogue = small_model.make(config)
    rng = np.random.default_rng(1)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    assert 0 < int((readers.item == 0).sum()) < readers.item.size  # both kinds of reader
    _, hidden, (context, oracle) = both(model, params, catalogue, events, readers)
    np.testing.assert_allclose(hidden, oracle, atol=1e-5)
    for head, more in (("retrieve", ()), ("rank", (jnp.zeros(hidden.shape[:2]),))):
        ours, theirs = (small_model.apply(model, params, h, *more, method=head) for h in (hidden, oracle))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # Context tokens: a context token is itself a reader of the events before it, so compare `encode`'s last layer
    # through a reader-free dense pass.
    h = small_model.apply(
        model, params, events, *small_model.vectors(model, params, catalogue, events), method=context_hidden
    )
    np.testing.assert_allclose(h, context, atol=1e-5)


def context_hidden(model, events, items, queries):
    """Final hidden states of `encode`'s own pass."""
    order = jnp.broadcast_to(jnp.arange(events.time.shape[1]), events.time.shape)
    h = model.context_tokens(events, items, queries)
    overs = [synergen.Causal(None, events.time)] * model.config.depth
    return model.run(h, model.angles(events.time, order), overs, True)[0]


def test_gradients_equal_dense_oracle():
    model, params, catalogue = small_model.make()
    rng = np.random.default_rng(2)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    weight = jnp.asarray(rng.normal(size=(B, R, 32)), jnp.float32)

    def loss(params, which):
        _, hidden, (_, oracle) = both(model, params, catalogue, events, readers)
        return jnp.mean(weight * (hidden if which == "factorised" else oracle))

    ours, theirs = (jax.jit(jax.grad(loss), static_argnums=1)(params, which) for which in ("factorised", "dense"))
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(theirs))
    assert scale > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    # Every parameter that the readers' hidden states depend on is reached.
    assert all(float(jnp.abs(theirs["model"]["params"][f"block_{i}"]["key"]["kernel"]).max()) > 0 for i in range(2))


def test_candidate_features_equal_the_dense_oracle_too_and_unknown_ones_add_nothing():
    spec = dataclasses.replace(small_model.SPEC, candidate_features=("position", "price"))
    model, params, catalogue = small_model.make(spec=spec)
    plain, without, _ = small_model.make()
    extra = set(params["model"]["params"]) - set(without["model"]["params"])
    names = {f"feature_{name}" for name in ("hidden", "out", "wide", "deep_hidden", "deep_out")}
    assert extra == names, "a log without features has no such parameters"
    rng = np.random.default_rng(12)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    feature = jnp.asarray(rng.normal(size=(B, R, 3)), jnp.float32).at[..., 2].set(1)
    known = dataclasses.replace(readers, feature=feature)
    _, hidden, (_, oracle) = both(model, params, catalogue, events, known)
    np.testing.assert_allclose(hidden, oracle, atol=1e-5)
    nothing = dataclasses.replace(readers, feature=jnp.zeros((B, R, 3)))
    zero = dataclasses.replace(readers, feature=jnp.zeros((B, R, 3)).at[..., 2].set(1))
    shared = params | {"model": {"params": {k: params["model"]["params"][k] for k in without["model"]["params"]}}}
    _, expected, _ = both(plain, shared, catalogue, events, readers)  # the same weights without the features
    for unknown in (readers, nothing):
        np.testing.assert_allclose(both(model, params, catalogue, events, unknown)[1], expected, atol=1e-6)
    for told in (known, zero):  # a feature of 0 is not an unknown one
        assert np.abs(np.asarray(both(model, params, catalogue, events, told)[1] - expected)).max() > 1e-3


NAMES = """
model/params/action
model/params/block_0/attention_norm/scale
model/params/block_0/down/kernel
model/params/block_0/gate/kernel
model/params/block_0/key/kernel
model/params/block_0/mlp_norm/scale
model/params/block_0/out/kernel
model/params/block_0/query/kernel
model/params/block_0/time_bias
model/params/block_0/up/kernel
model/params/block_0/value/kernel
model/params/feature_deep_hidden/kernel
model/params/feature_deep_out/kernel
model/params/feature_hidden/kernel
model/params/feature_out/kernel
model/params/feature_wide
model/params/final_norm/scale
model/params/join/genres/kernel
model/params/join/text/kernel
model/params/kind
model/params/ranking_bias
model/params/ranking_hidden/kernel
model/params/ranking_match
model/params/ranking_out/kernel
model/params/retrieval_head/kernel
tables/item
tables/query
"""


def test_parameters_keep_the_names_that_checkpoints_hold():
    config = dataclasses.replace(small_model.CONFIG, depth=1, time_bias=True)
    spec = dataclasses.replace(small_model.SPEC, candidate_features=("position", "recency"))
    params = jax.eval_shape(
        lambda key: nn.unbox(synergen.init(synergen.SynerGen(config, spec), key)), jax.random.key(0)
    )
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    assert ["/".join(part.key for part in path) for path in paths] == NAMES.split()


def test_masks_are_these():
    # Three events, and the readers of event 0, event 1, event 2 and of a request after all of them.
    visible = jnp.array([[0, 1, 2, 3, 2]])
    expected = [
        # c0 c1 c2  r0 r1 r2 r3 k2
        [1, 0, 0, 0, 0, 0, 0, 0],  # context: causal
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],  # retrieval readers: events before, and themselves
        [1, 0, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0, 0, 1],  # a ranking reader of event 2: the same, and never the retrieval reader
    ]
    np.testing.assert_array_equal(dense.mask(3, visible)[0].astype(int), expected)


def test_nothing_from_its_event_or_later_reaches_a_reader_and_readers_are_apart():
    model, params, catalogue = small_model.make()
    rng = np.random.default_rng(3)
    events = small_model.events(rng, 1, L)
    readers = dataclasses.replace(small_model.readers(rng, 1, L, L), visible=jnp.arange(L)[None])
    items, queries = small_model.vectors(model, params, catalogue, events)
    r_items, r_queries = small_model.vectors(model, params, catalogue, readers)

    def read(items, queries, r_items, r_queries):
        cache = model.apply(params["model"], events, items, queries, method="encode")
        return model.apply(params["model"], cache, readers, r_items, r_queries, method="read")[0].sum(-1)  # (R,)

    jacobians = jax.jit(jax.jacrev(read, argnums=(0, 1, 2, 3)))(items, queries, r_items, r_queries)
    by_item, by_query, by_r_item, by_r_query = (np.abs(j[:, 0]).sum(-1) for j in jacobians)  # (R, L) or (R, R)
    for reach in (by_item, by_query):
        assert (reach[np.triu_indices(L)] == 0).all()  # event j >= i does not reach the reader of event i: exactly
        assert (reach[np.tril_indices(L, -1)] > 0).all()  # every event before it does
    for reach in (by_r_item, by_r_query):
        assert (reach[~np.eye(L, dtype=bool)] == 0).all()
        assert (np.diag(reach) > 0).all()


def test_actions_and_times_after_the_visible_events_do_not_matter():
    model, params, catalogue = small_model.make()
    rng = np.random.default_rng(4)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    readers = dataclasses.replace(readers, visible=jnp.minimum(readers.visible, 6))
    later = jnp.arange(L) >= 6
    other = small_model.events(np.random.default_rng(5), B, L)
    changed = jax.tree.map(lambda a, b: jnp.where(later[None], b, a), events, other)
    _, before, _ = both(model, params, catalogue, events, readers)
    _, after, _ = both(model, params, catalogue, changed, readers)
    np.testing.assert_array_equal(before, after)


def test_without_request_time_readers_go_by_the_last_event_that_they_see():
    model, params, catalogue = small_model.make(dataclasses.replace(small_model.CONFIG, request_time=False))
    rng = np.random.default_rng(4)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    _, hidden, _ = both(model, params, catalogue, events, readers)
    _, later, _ = both(model, params, catalogue, events, dataclasses.replace(readers, time=readers.time + 86_400))
    np.testing.assert_allclose(hidden, later, atol=1e-6)
    last = jnp.take_along_axis(events.time, jnp.maximum(readers.visible - 1, 0), axis=1)
    usual = small_model.make()[0]
    _, theirs, _ = both(usual, params, catalogue, events, dataclasses.replace(readers, time=last))
    np.testing.assert_allclose(hidden, theirs, atol=1e-6)


def test_padding_does_not_matter():
    model, params, catalogue = small_model.make()
    rng = np.random.default_rng(6)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    padded = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 5))), events)
    cache, hidden, _ = both(model, params, catalogue, events, readers)
    wide, again, _ = both(model, params, catalogue, padded, readers)
    np.testing.assert_allclose(hidden, again, atol=1e-6)
    assert wide.capacity == L + 5
    np.testing.assert_array_equal(cache.length, wide.length)


@pytest.mark.parametrize("kind", [{}, GATED], ids=str)
def test_append_n_times_equals_encode_n(kind):
    model, params, catalogue = small_model.make(dataclasses.replace(small_model.CONFIG, **kind))
    rng = np.random.default_rng(7)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    whole, hidden, _ = both(model, params, catalogue, events, readers)
    nothing = jax.tree.map(jnp.zeros_like, events)
    cache = small_model.apply(
        model, params, nothing, *small_model.vectors(model, params, catalogue, nothing), method="encode"
    )
    assert cache.length.tolist() == [0] * B
    for i in range(L):
        event = jax.tree.map(lambda x, i=i: x[:, i : i + 1], events)
        cache = small_model.apply(
            model, params, cache, event, *small_model.vectors(model, params, catalogue, event), method="append"
        )
    assert cache.length.tolist() == [L] * B
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cache, whole)
    again = small_model.apply(
        model, params, cache, readers, *small_model.vectors(model, params, catalogue, readers), method="read"
    )
    np.testing.assert_allclose(hidden, again, atol=1e-5)
    full = small_model.apply(
        model, params, cache, event, *small_model.vectors(model, params, catalogue, event), method="append"
    )
    jax.tree.map(np.testing.assert_array_equal, full, cache)  # no room: left as it is


def between(events, low, high, width):
    """Of each row b of events those from low[b] to high[b], padded with zeros to a width."""
    place = np.asarray(low)[:, None] + np.arange(width)
    real = jnp.asarray(place < np.asarray(high)[:, None])
    return jax.tree.map(
        lambda x: jnp.where(real, jnp.take_along_axis(x, jnp.asarray(np.minimum(place, L - 1)), axis=1), 0), events
    )


def given_vectors(made, method, *arguments):
    """A method of the model (model, params, catalogue) that takes tokens, the last argument, with their vectors."""
    model, params, catalogue = made
    vectors = small_model.vectors(model, params, catalogue, arguments[-1])
    return small_model.apply(model, params, *arguments, *vectors, method=method)


def assert_caches_hold_the_same(ours, theirs, atol):
    """What lies in free slots does not matter."""
    np.testing.assert_array_equal(ours.length, theirs.length)
    held = np.arange(ours.capacity) < np.asarray(ours.length)[:, None]
    np.testing.assert_array_equal(ours.time[held], theirs.time[held])
    for a, b in zip(ours.keys + ours.values, theirs.keys + theirs.values, strict=True):
        np.testing.assert_allclose(*(np.asarray(x).swapaxes(1, 2)[held] for x in (a, b)), atol=atol)


@KINDS
def test_append_of_many_equals_append_one_by_one_and_encode(kind):
    """A row gains most of its events, one the last few that there is room for, one none at all."""
    made = small_model.make(dataclasses.replace(small_model.CONFIG, **kind))
    rng = np.random.default_rng(13)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    nothing, before, after, most = np.zeros(B, int), np.array([1, 8, 5]), np.array([9, L, 5]), 10
    start = given_vectors(made, "encode", between(events, nothing, before, L))
    at_once = given_vectors(made, "append", start, between(events, before, after, most))
    one_by_one = start
    for i in range(most):
        event = between(events, before + i, after, 1)
        one_by_one = given_vectors(made, "append", one_by_one, event)
    whole = given_vectors(made, "encode", between(events, nothing, after, L))
    assert at_once.length.tolist() == after.tolist()
    readers = dataclasses.replace(readers, visible=jnp.minimum(readers.visible, at_once.length[:, None]))
    hidden = given_vectors(made, "read", at_once, readers)
    for other in (one_by_one, whole):
        assert_caches_hold_the_same(at_once, other, 1e-5)
        np.testing.assert_allclose(hidden, given_vectors(made, "read", other, readers), atol=1e-5)
    for a, b in zip(jax.tree.leaves(at_once), jax.tree.leaves(start), strict=True):
        np.testing.assert_array_equal(a[2], b[2])  # the row that gained nothing, its free slots too


@pytest.mark.parametrize("count", [1, 4])
def test_append_leaves_a_row_without_room_for_all_of_its_events_as_it_is(count):
    made = small_model.make()
    rng = np.random.default_rng(14)
    events, more = small_model.events(rng, B, L), small_model.events(rng, B, count)
    lengths = np.array([L, L - count + 1, L - count])
    cache = given_vectors(made, "encode", between(events, np.zeros(B, int), lengths, L))
    found = given_vectors(made, "append", cache, more)
    assert found.length.tolist() == [L, L - count + 1, L]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(cache), strict=True):
        np.testing.assert_array_equal(a[:2], b[:2])


def test_append_in_bfloat16_is_close_to_float32():
    model, params, catalogue = small_model.make()
    half = synergen.SynerGen(dataclasses.replace(small_model.CONFIG, dtype="bfloat16"), small_model.SPEC)
    rng = np.random.default_rng(15)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    nothing, before, after = np.zeros(B, int), np.full(B, 4), np.full(B, L)

    def hidden(model):
        made = model, params, catalogue
        cache = given_vectors(made, "encode", between(events, nothing, before, L))
        cache = given_vectors(made, "append", cache, between(events, before, after, L - 4))
        return cache, given_vectors(made, "read", cache, readers)

    cache, rounded = hidden(half)
    assert rounded.dtype == jnp.bfloat16 and {x.dtype for x in cache.keys + cache.values} == {jnp.dtype("bfloat16")}
    _, exact = hidden(model)
    error = np.abs(np.asarray(rounded, np.float32) - np.asarray(exact))
    assert error.mean() < 0.03 * np.abs(np.asarray(exact)).mean() + 0.01


@pytest.mark.parametrize("kind", [{"rope": "time"}, {"rope": "split"}], ids=str)
def test_ten_years_shift_nothing_and_one_second_is_seen(kind):
    config = dataclasses.replace(small_model.CONFIG, **kind)
    model, params, catalogue = small_model.make(config)
    rng = np.random.default_rng(8)
    events = small_model.events(rng, B, L, span=10**6)
    readers = small_model.readers(rng, B, R, L, span=10**6)
    shift = lambda t, s: dataclasses.replace(t, time=t.time + s)
    _, hidden, _ = both(model, params, catalogue, events, readers)
    years = 315_360_000 + 12_345
    _, shifted, _ = both(model, params, catalogue, shift(events, years), shift(readers, years))
    np.testing.assert_allclose(hidden, shifted, atol=2e-5)
    _, second, _ = both(model, params, catalogue, shift(events, years), shift(readers, years + 1))
    asks = np.asarray(readers.visible) > 1
    moved = np.abs(np.asarray(second - shifted)).max(-1)
    assert moved[asks].min() > 1e-3  # far above the rounding of the shift


def test_own_phase_replaces_time():
    def by_day(time, order):
        return (time // 86_400)[..., None] * jnp.geomspace(1.0, 1e-3, 4).reshape((1,) * time.ndim + (-1,))

    model, params, catalogue = small_model.make()
    own = synergen.SynerGen(small_model.CONFIG, small_model.SPEC, phase=by_day)
    rng = np.random.default_rng(9)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    _, hidden, (_, oracle) = both(own, params, catalogue, events, readers)
    np.testing.assert_allclose(hidden, oracle, atol=1e-5)
    _, default, _ = both(model, params, catalogue, events, readers)
    assert np.abs(np.asarray(hidden - default)).max() > 1e-2


@pytest.mark.parametrize("remat", [False, True])
def test_bfloat16_and_remat_are_close_to_float32(remat):
    model, params, catalogue = small_model.make()
    rng = np.random.default_rng(10)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    _, hidden, _ = both(model, params, catalogue, events, readers)
    half = synergen.SynerGen(dataclasses.replace(small_model.CONFIG, dtype="bfloat16", remat=remat), small_model.SPEC)
    _, rounded, _ = both(half, params, catalogue, events, readers)
    assert rounded.dtype == jnp.bfloat16
    error = np.abs(np.asarray(rounded, np.float32) - np.asarray(hidden))
    assert error.mean() < 0.03 * np.abs(np.asarray(hidden)).mean() + 0.01


def test_remat_gives_the_same_gradients_with_dropout():
    config = dataclasses.replace(small_model.CONFIG, dropout=0.3)
    rng = np.random.default_rng(11)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    _, params, catalogue = small_model.make(config)

    def gradient(remat):
        model = synergen.SynerGen(dataclasses.replace(config, remat=remat), small_model.SPEC)

        def loss(params):
            rngs = {"dropout": jax.random.key(0)}
            ev, rd = (small_model.vectors(model, params, catalogue, t) for t in (events, readers))
            cache = model.apply(params["model"], events, *ev, False, method="encode", rngs=rngs)
            return jnp.mean(model.apply(params["model"], cache, readers, *rd, False, method="read", rngs=rngs) ** 2)

        return jax.jit(jax.grad(loss))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient(False), gradient(True))


def test_item_and_query_vectors_of_zero_are_zero_and_each_source_counts():
    model, params, catalogue = small_model.make()
    ids = jnp.arange(small_model.SPEC.items)
    vectors = synergen.item_vectors(model, params, catalogue, ids)
    assert (np.asarray(vectors[0]) == 0).all() and (np.abs(np.asarray(vectors[1:])).sum(-1) > 0).all()
    for name in ("genres", "text"):
        without = dataclasses.replace(
            catalogue, item_matrices=catalogue.item_matrices | {name: jnp.zeros_like(catalogue.item_matrices[name])}
        )
        less = np.asarray(synergen.item_vectors(model, params, without, ids))
        assert np.abs(less - vectors)[1:].max() > 1e-3
        other = synergen.SynerGen(dataclasses.replace(model.config, leave_out=name), model.spec)
        np.testing.assert_allclose(synergen.item_vectors(other, params, catalogue, ids), less, atol=1e-6)
    assert (np.asarray(synergen.query_vectors(model, params, catalogue, jnp.zeros(3, jnp.int32))) == 0).all()


def test_a_full_size_model_has_the_shapes_it_should():
    config = ModelConfig(width=1024, heads=16, depth=12, mlp_ratio=4)
    model = synergen.SynerGen(config, small_model.SPEC)
    shapes = jax.eval_shape(lambda key: synergen.init(model, key), jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(shapes["model"]["params"]["block_0"]))
    assert count == 4 * 1024**2 + 3 * 1024 * 2728 + 2 * 1024  # attention, gated feed-forward, norms


def test_readers_may_be_any_number_and_a_context_may_be_empty():
    model, params, catalogue = small_model.make()
    none = jnp.zeros((2, 4), jnp.int32)
    events = Events(none, none, none, none)
    one = jnp.ones((2, 1), jnp.int32)
    readers = Readers(one, one, one, one * 0)
    _, hidden, (_, oracle) = both(model, params, catalogue, events, readers)
    assert np.isfinite(np.asarray(hidden)).all()
    np.testing.assert_allclose(hidden, oracle, atol=1e-5)


def test_rope_wavelengths_are_whole_seconds_in_range():
    waves = rope.wavelengths(16, 60, 315_360_000)
    assert waves.dtype == np.int32 and waves[0] == 60 and waves[-1] == 315_360_000
    assert (np.diff(waves) > 0).all()


def test_time_phase_is_exact_decades_on():
    waves = rope.wavelengths(8, 60, 315_360_000)
    time = np.int64(10 * 31_536_000) + np.arange(120)
    angle = np.asarray(rope.time_phase(jnp.asarray(time.astype(np.int32)), waves), np.float64)
    exact = 2 * np.pi * (time[:, None] % waves.astype(np.int64)) / waves
    np.testing.assert_allclose(np.exp(1j * angle), np.exp(1j * exact), atol=1e-6)


def test_order_phase_is_rope_as_published():
    angle = np.asarray(rope.order_phase(jnp.arange(3), 2, base=100.0))
    np.testing.assert_allclose(angle, [[0, 0], [1, 0.1], [2, 0.2]], rtol=1e-6)


def test_rotation_turns_each_plane():
    x = jnp.asarray([1.0, 2.0, 0.0, 0.0]).reshape(1, 1, 1, 4)  # planes (1, 0) and (2, 0)
    turned = rope.rotate(x, jnp.asarray([np.pi / 2, np.pi]).reshape(1, 1, 2))
    np.testing.assert_allclose(turned.reshape(-1), [0, -2, 1, 0], atol=1e-6)


@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_rms_norm_and_its_gradients_are_those_of_flax(dtype, close):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 16)) * 30, dtype)
    scale, weight = jnp.linspace(0.5, 2, 16), jnp.linspace(-1, 1, 16)

    def run(norm):
        loss = lambda scale, x: jnp.sum(norm.apply({"params": {"scale": scale}}, x) @ weight)
        return jax.tree.map(lambda x: np.asarray(x, np.float32), jax.value_and_grad(loss, (0, 1))(scale, x))

    ours, theirs = run(blocks.RMSNorm(jnp.dtype(dtype))), run(nn.RMSNorm(dtype=dtype))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=close, atol=close * np.abs(b).max()), ours, theirs)


def test_a_pass_computes_its_angles_trigonometry_once():
    """Not again in each block, for queries and keys, and in the backward pass: that was a seventh of a step."""
    model, params, catalogue = small_model.make()
    events = small_model.events(np.random.default_rng(0), B, L)
    vectors = small_model.vectors(model, params, catalogue, events)
    loss = lambda params: jnp.sum(model.apply(params["model"], events, *vectors, method=context_hidden))
    program = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    assert program.count(" cosine(") == 1


def test_the_retrieval_score_and_known_features_weigh_in_the_logits():
    """By their learned weights, one a label; features that are not known (zeros) add nothing."""
    spec = dataclasses.replace(small_model.SPEC, candidate_features=("position",))
    model, params, _ = small_model.make(spec=spec)
    own = params["model"]["params"]
    wide = jnp.array([[2.0, 0.0], [0.5, 1.0], [0.1, 0.2]])  # of the feature, that it is known, and its square
    own = own | {"feature_wide": wide / heads.WIDE, "ranking_match": jnp.array([1.0, 0.3])}
    params = params | {"model": {"params": own}}
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 32)), jnp.float32)
    rank = lambda *more: np.asarray(small_model.apply(model, params, hidden, *more, method="rank"))[0]
    score, none = jnp.array([[0.5, -0.1]]), jnp.zeros((1, 2))
    np.testing.assert_allclose(rank(score) - rank(none), [[10.0, 3.0], [-2.0, -0.6]], atol=1e-5)
    known = jnp.array([[[3.0, 1.0], [0.0, 0.0]]])
    np.testing.assert_allclose(rank(none, known) - rank(none), [[7.4, 2.8], [0.0, 0.0]], atol=1e-5)


@pytest.mark.parametrize("features", [1, 3, 20])
def test_a_hidden_layer_of_features_and_their_products_weighs_in_the_logits(features):
    """Beside the Transformer; nothing of features that are not known."""
    spec = dataclasses.replace(small_model.SPEC, candidate_features=tuple(f"f{i}" for i in range(features)))
    model, params, _ = small_model.make(spec=spec)
    own = params["model"]["params"]
    rng = np.random.default_rng(0)
    out = rng.normal(size=own["feature_deep_out"]["kernel"].shape)
    params = params | {"model": {"params": own | {"feature_deep_out": {"kernel": jnp.asarray(out)}}}}
    x = rng.normal(size=(2, features + 1)).astype(np.float32)
    x[0, -1], x[1] = 1, 0
    hidden, none = jnp.zeros((2, 32)), jnp.zeros(2)
    rank = lambda *more: np.asarray(small_model.apply(model, params, hidden, none, *more, method="rank"))
    columns = [*x[0], *(x[0, i] * x[0, j] for i in range(features) for j in range(i, features))]
    if features > heads.PRODUCTS:
        columns = [*x[0], *x[0, :-1] ** 2]
    h = np.array(columns) @ np.asarray(own["feature_deep_hidden"]["kernel"])
    wanted = h / (1 + np.exp(-h)) @ out
    np.testing.assert_allclose(rank(jnp.asarray(x)) - rank(), [wanted, np.zeros(2)], rtol=1e-4, atol=1e-4)


def test_queries_are_matched_with_items_by_a_part_of_their_own():
    """One inner product of what the hidden state asks for and, times the gain, of the cosine of query and item in that part."""
    config = dataclasses.replace(small_model.CONFIG, query_match=8)
    model, params, catalogue = small_model.make(config)
    assert model.key_width == 40 and {table.shape[-1] for table in params["tables"].values()} == {40}
    params["model"]["params"]["match_gain"] = jnp.float32(0.2)
    call = functools.partial(small_model.apply, model, params)
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(3, 32)), jnp.float32)
    items = synergen.item_vectors(model, params, catalogue, np.arange(60))
    queries = synergen.query_vectors(model, params, catalogue, np.array([0, 1, 2]))  # the first reader has none
    assert items.shape == (60, 40)
    found = np.asarray(call(hidden, queries, method="retrieve") @ call(items, method="keys").T)
    unit = lambda x: np.asarray(x) / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
    taste = unit(hidden @ params["model"]["params"]["retrieval_head"]["kernel"]) @ unit(items[:, :32]).T
    match = unit(queries[:, 32:]) @ unit(items[:, 32:]).T
    np.testing.assert_allclose(found, taste + np.exp(10 * 0.2 - 1) * match, atol=1e-4)
    np.testing.assert_allclose(call(hidden, method="retrieve")[:, 32:], 0)
    no_queries = dataclasses.replace(small_model.SPEC, queries=1, query_matrices=())
    without, those, _ = small_model.make(config, no_queries)
    assert without.key_width == 32 and "match_gain" not in those["model"]["params"]


def test_the_part_for_queries_is_no_part_of_tokens():
    """Neither of the context's nor of readers', and recommendations do not move it."""
    model, params, catalogue = small_model.make(dataclasses.replace(small_model.CONFIG, query_match=8))
    rng = np.random.default_rng(3)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)

    def hidden(params):
        vectors = (small_model.vectors(model, params, catalogue, part) for part in (events, readers))
        (items, queries), (reader_items, reader_queries) = vectors
        cache = small_model.apply(model, params, events, items, queries, method="encode")
        return small_model.apply(model, params, cache, readers, reader_items, reader_queries, method="read")

    weight = jnp.asarray(rng.normal(size=(B, R, 32)), jnp.float32)
    moved = jax.grad(lambda tables: jnp.sum(weight * hidden(params | {"tables": tables})))(params["tables"])
    for table in moved.values():
        assert table[..., :32].any() and not table[..., 32:].any()


def test_readers_may_know_the_date():
    """By the time that they go by; the same histories read a year later give something else, and only then."""
    later = lambda x, seconds: dataclasses.replace(x, time=x.time + seconds)
    rng = np.random.default_rng(4)
    events, readers = small_model.events(rng, B, L), small_model.readers(rng, B, R, L)
    for request_date in (False, True):
        model = small_model.make(dataclasses.replace(small_model.CONFIG, request_date=request_date))
        _, now, _ = both(*model, events, readers)
        _, then, _ = both(*model, later(events, 365 * date.DAY), later(readers, 365 * date.DAY))
        assert np.allclose(now, then, atol=1e-3) != request_date


def test_dates_are_places_within_periods():
    time = jnp.array([0, 16 * date.DAY, 64 * date.DAY, 2**31 - 1])
    found = np.asarray(date.features(time))
    assert found.shape == (4, 2 * len(date.PERIODS)) and np.abs(found).max() <= 1
    np.testing.assert_allclose(found[:3, [0, 9]], [[0, 1], [1, 0], [0, 1]], atol=1e-6)
    angle = np.array([(2**31 - 1) % period / period for period in date.PERIODS.tolist()]) * 2 * np.pi
    np.testing.assert_allclose(found[3], [*np.sin(angle), *np.cos(angle)], atol=1e-5)


def test_a_subclass_has_its_own_methods():
    class Doubled(synergen.SynerGen):
        def keys(self, items):
            return 2 * super().keys(items)

    model, params, _ = small_model.make()
    items = jnp.ones((2, small_model.CONFIG.width))
    plain = synergen.pure(model, params["model"], synergen.SynerGen.keys)(items)
    own = synergen.pure(Doubled(model.config, model.spec), params["model"], synergen.SynerGen.keys)(items)
    np.testing.assert_array_equal(own, 2 * plain)
