"""Hard candidates: found as one would by hand, on every mesh, and drawn among the first hundred."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synergen_jax.batch import Candidates
from synergen_jax.config import MeshConfig
from synergen_jax.sharding import device_mesh
from synergen_jax.training import hard_negatives

B, E, K, L, D, V = 8, 2, 3, 6, 4, 768
MESHES = [(1, 1), (8, 1), (4, 2), (2, 4)]


def make_mesh(shape):
    return device_mesh.make_mesh(MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]])


ONE = make_mesh((1, 1))
draw = jax.jit(hard_negatives.draw, static_argnames="count")


def lists(item, first=None):
    """Lists of those items, the first of each chosen."""
    label = np.where(np.arange(item.shape[2]) == 0, 1, 0)[None, None, :, None].astype(np.int8)
    zeros = np.zeros(item.shape[:2], np.int32)
    return Candidates(item, np.broadcast_to(label, (*item.shape, 1)), zeros, zeros, zeros, first=first)


def one_by_one(query, keys, ids, candidates, had, first, most):
    """Places of the best items, one ranked event after the other, fewer where there are fewer."""
    found = {}
    for b, e in np.ndindex(query.shape[:2]):
        mine = slice(None) if first is None else first[b] == candidates.first[b, e]
        listed = slice(None) if first is None else candidates.first[b] == candidates.first[b, e]
        known = {*had[b][mine].tolist(), *candidates.item[b][listed].ravel().tolist()}
        score = keys @ query[b, e]
        free = [place for place in range(len(ids)) if ids[place] > 0 and ids[place] not in known]
        found[b, e] = sorted(free, key=lambda place: (-score[place], place))[:most]
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", [*MESHES, None])
def test_the_best_of_the_pool_are_found_on_every_mesh(monkeypatch, shape, packed):
    """Scores are whole numbers, so that many are equal; tiles are small. No mesh: a pool that is whole on every device."""
    monkeypatch.setattr(hard_negatives, "TILE", (3 * E, 40))
    rng = np.random.default_rng(0)
    whole = lambda *size: rng.integers(-3, 4, size).astype(np.float32)
    query, keys, stored = whole(B, E, D), whole(V, D), shape is not None
    ids = np.arange(V, dtype=np.int32) if stored else rng.integers(0, 200, V).astype(np.int32)
    ids[rng.random(V) < 0.1] = 0
    first, own = (np.sort(rng.choice([0, 2, 3], (B, n)), axis=1).astype(np.int32) for n in (L, E))
    candidates = lists(rng.integers(0, 50, (B, E, K)).astype(np.int32), own if packed else None)
    had, first = rng.integers(0, 50, (B, L)).astype(np.int32), first if packed else None
    mesh = make_mesh(shape or (4, 2))
    lay = lambda x: x.reshape(1, V, *x.shape[1:]) if stored else x
    find = jax.jit(
        lambda query, keys, ids, *rest: hard_negatives.best(
            mesh, query, hard_negatives.Pool(keys, ids, stored), *rest, 100
        )
    )
    found = jax.device_get(find(query, lay(keys), lay(ids), candidates, had, first))
    assert found.score.shape == (B, E, 100)
    for (b, e), places in one_by_one(query, keys, ids, candidates, had, first, 100).items():
        assert found.place[b, e].tolist() == places
        assert found.item[b, e].tolist() == ids[places].tolist()
        np.testing.assert_array_equal(found.score[b, e], keys[places] @ query[b, e])


def test_where_there_are_fewer_items_the_rest_is_empty():
    """Ten items, of which a user had three."""
    keys = np.random.default_rng(0).normal(size=(1, V, D)).astype(np.float32)
    ids = np.where(np.arange(V) <= 10, np.arange(V), 0)[None]
    candidates = lists(np.broadcast_to(np.array([1, 0, 0], np.int32), (B, E, K)))
    had = np.broadcast_to(np.array([2, 3], np.int32), (B, 2))
    query = np.ones((B, E, D), np.float32)
    find = jax.jit(
        lambda *x: hard_negatives.best(
            make_mesh((8, 1)), x[0], hard_negatives.Pool(x[1], x[2], True), *x[3:], None, 100
        )
    )
    found = jax.device_get(find(query, keys, ids, candidates, had))
    assert (found.score[..., 7:] == -np.inf).all()
    assert (np.sort(found.item[..., :7]) == [4, 5, 6, 7, 8, 9, 10]).all()
    longer, _ = draw(candidates, found, 9, jax.random.key(0))
    assert (np.sort(longer.item[..., K:]) == [0, 0, 4, 5, 6, 7, 8, 9, 10]).all()
    assert ((longer.label[..., K:, 0] == 0) == (longer.item[..., K:] > 0)).all()


@pytest.mark.parametrize("shape", MESHES)
def test_vectors_and_their_gradients_are_those_of_plain_rows(shape):
    rng = np.random.default_rng(0)
    values, outer = rng.normal(size=(2, V, D)), rng.normal(size=(B, E, K, D))
    place = rng.integers(0, 2 * V, (B, E, K))
    place[1:3] = place[0]  # several users have the same items
    pool = hard_negatives.Pool(jnp.zeros(()), jnp.zeros(()), True)
    mesh = make_mesh(shape)

    @jax.jit
    def both(values, place, outer):
        got, back = jax.vjp(lambda values: hard_negatives.vectors(mesh, pool, values, place), values)
        return got, back(outer)[0]

    got, gradient = both(values.astype(np.float32), place, outer.astype(np.float32))
    np.testing.assert_allclose(got, values.reshape(-1, D)[place], rtol=1e-6)
    wanted = np.zeros((2 * V, D))
    np.add.at(wanted, place, outer)
    np.testing.assert_allclose(gradient.reshape(-1, D), wanted, rtol=1e-5, atol=1e-6)


@functools.partial(jax.jit, static_argnums=4)
def best(scores, pool, candidates, had, most):
    """`hard_negatives.best` of one user for scores that are given: vectors have one number."""
    query = jnp.ones((*candidates.item.shape[:2], 1))
    return hard_negatives.best(
        ONE, query, hard_negatives.Pool(scores[:, None], pool, False), candidates, had, None, most
    )


def test_hard_candidates_by_hand():
    label = jnp.full((1, 2, 2, 2), -1, jnp.int8).at[:, 0, :, 0].set(jnp.array([1, 0], jnp.int8))
    zeros = jnp.zeros((1, 2), jnp.int32)
    candidates = Candidates(jnp.array([[[1, 2], [0, 0]]]), label, zeros, zeros, zeros)
    scores, pool = jnp.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.9]), jnp.array([1, 3, 4, 2, 5, 0])
    longer, place = draw(candidates, best(scores, pool, candidates, jnp.array([[4, 0, 0]]), 3), 3, None)
    # 1 and 2 are in the list, 4 was had, the last place is empty: 3 and 5 are left, and one place is empty.
    assert longer.item.tolist() == [[[1, 2, 3, 5, 0], [0, 0, 0, 0, 0]]]
    assert longer.label[0, 0, :, 0].tolist() == [1, 0, 0, 0, -1]
    assert place[0, 0, :2].tolist() == [1, 4]
    assert (longer.label[0, 0, 2:, 1] == -1).all() and (longer.label[0, 1] == -1).all()
    longer, _ = draw(candidates, best(scores, pool, candidates, None, 4), 4, None)
    assert longer.item[0, 0].tolist() == [1, 2, 3, 4, 5, 0], "where people come back to items, 4 may come again"


@pytest.mark.parametrize("shape", [*MESHES, None])
def test_an_item_with_a_key_of_zeros_is_no_hard_candidate(shape):
    """All others score less than 0. It comes of an item without text whose id is dropped in a step."""
    keys = -np.arange(V, dtype=np.float32)[:, None] * np.ones((1, D), np.float32)
    keys[3] = 0
    candidates, had = lists(np.ones((B, E, K), np.int32)), np.full((B, L), 2, np.int32)
    ids, query = np.arange(V, dtype=np.int32), np.ones((B, E, D), np.float32)
    lay = (lambda x: x[None]) if shape else lambda x: x
    mesh = make_mesh(shape or (4, 2))
    find = jax.jit(
        lambda q, k, i, c, h: hard_negatives.best(mesh, q, hard_negatives.Pool(k, i, shape is not None), c, h, None, 3)
    )
    found = jax.device_get(find(query, lay(keys), lay(ids), candidates, had))
    assert (found.item == [4, 5, 6]).all() and (found.score == [-16, -20, -24]).all()


def test_an_item_with_a_key_of_zeros_is_never_expected_among_the_drawn():
    found = hard_negatives.Best(jnp.array([[[-1.0, -jnp.inf]]]), *jnp.zeros((2, 1, 1, 2)))
    drawn = hard_negatives.expected_draws(jnp.array([[[-1.0, -jnp.inf]]]), found, 2, None)
    np.testing.assert_array_equal(drawn, [[[1, 0]]])


def test_hard_candidates_are_drawn_from_the_first_hundred():
    """Of 300 items, each of the first hundred comes up, no other does, and none twice in a list."""
    candidates = lists(np.full((1, 50, 1), 300, np.int32))
    found = best(
        -jnp.arange(1.0, 301.0), jnp.arange(1, 301), candidates, jnp.zeros((1, 4), jnp.int32), hard_negatives.FIRST
    )
    assert (found.score[..., -1] == -100).all()
    drawn, _ = draw(candidates, found, 20, jax.random.key(0))
    rows = np.asarray(drawn.item[0, :, 1:])
    assert set(rows.ravel().tolist()) == set(range(1, 101))
    assert all(len(set(row.tolist())) == 20 for row in rows)


def test_the_first_hundred_alone_are_expected_among_the_drawn():
    found = hard_negatives.Best(jnp.linspace(0.9, 0.5, 100)[None, None], *jnp.zeros((2, 1, 1, 100)))
    score = jnp.array([[[0.8, 0.5 - 1e-7, 0.4]]])  # that of the last one, computed another way, is off by rounding
    np.testing.assert_allclose(hard_negatives.expected_draws(score, found, 5, None), [[[0.05, 0.05, 0]]])
    twice = jnp.log(jnp.array([[[2.0, 1.0, 1.0]]]))
    np.testing.assert_allclose(hard_negatives.expected_draws(score, found, 5, twice), [[[0.1, 0.05, 0]]], rtol=1e-6)


@pytest.mark.parametrize(("count", "each"), [(2, 2 / 3), (3, 1.0), (5, 1.0)])
def test_where_fewer_are_found_each_is_drawn_the_more_often(count, each):
    """Three items are all that there is: none lies behind them."""
    found = hard_negatives.Best(jnp.array([[[0.9, 0.7, 0.5, -jnp.inf, -jnp.inf]]]), *jnp.zeros((2, 1, 1, 5)))
    drawn = hard_negatives.expected_draws(jnp.array([[[0.8, 0.5, 0.1]]]), found, count, None)
    np.testing.assert_allclose(drawn, [[[each] * 3]], rtol=1e-6)


def test_hard_candidates_leave_the_order_of_what_is_chosen():
    """Of six items, the first two come up as hard ones. With log q off, the best logits are in the order of p."""
    p = np.array([0.3, 0.2, 0.18, 0.14, 0.1, 0.08])
    sampled, drawn = 2 / 6, np.array([0.75, 0.75, 0, 0, 0, 0])
    best = np.log(p / (sampled + drawn))  # where the binary cross-entropy of chosen items and candidates is least
    assert np.argmax(best) == 2, "without the correction the first item of retrieval is not ranked first"
    corrected = best + np.asarray(hard_negatives.log_oversampled(jnp.array(drawn), jnp.array(sampled)))
    np.testing.assert_allclose(corrected, np.log(p / sampled), rtol=1e-6)
