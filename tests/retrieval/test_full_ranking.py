"""Ranking among all items where they lie: as over whole scores, on every mesh, and without moving the catalogue."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_model

from synergen_jax.config import MeshConfig
from synergen_jax.evaluation import metrics
from synergen_jax.model import synergen
from synergen_jax.planning import hlo
from synergen_jax.retrieval import full_ranking
from synergen_jax.sharding import device_mesh, table

B, D, M, LINES, ITEMS = 8, 4, 30, 3, 1900
MESHES = [(1, 1), (8, 1), (2, 4)]


def make_mesh(shape):
    return device_mesh.make_mesh(MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Five of them on one device; one on each of eight."""
    monkeypatch.setattr(full_ranking, "TILE", 500)


def draw(seed=0):
    """Whole numbers, so that many scores are equal; what is stored behind the items scores best of all."""
    rng = np.random.default_rng(seed)
    whole = lambda *size: rng.integers(-3, 4, size).astype(np.float32)
    query, keys = whole(B, D), whole(LINES * table.COLUMNS, D)
    keys[~keys.any(axis=1)] = 1  # each is of an item of which something is known
    keys[0] = keys[ITEMS:] = 0
    query[:, 0], keys[ITEMS:, 0] = 3, 99
    seen = rng.integers(0, ITEMS, (B, M)).astype(np.int32)
    target = rng.integers(1, ITEMS, B).astype(np.int32)
    target[-1] = 0
    return query, keys, target, seen


stored = lambda keys: keys.reshape(LINES, table.COLUMNS, D)


@pytest.mark.parametrize("shape", MESHES)
def test_ranks_are_those_of_whole_scores_on_every_mesh(shape):
    query, keys, target, seen = draw()
    seen[0, 0] = target[0]  # counts all the same
    ranks = jax.jit(functools.partial(full_ranking.ranks, make_mesh(shape), items=ITEMS))
    expected = metrics.ranks(query @ keys.T, target, seen, ITEMS)
    np.testing.assert_array_equal(ranks(query, stored(keys), target, seen), expected)
    first, last = np.asarray(expected).T
    assert first[-1] == last[-1] == 0 and (last[:-1] > 1).all() and (first < last).any()


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_scores_that_are_not_numbers_and_targets_that_are_no_items_are_marked(shape):
    query, keys, target, seen = draw()
    query[2] = np.nan
    target[3], target[4] = ITEMS, -1
    keys[ITEMS:] = np.nan  # no item
    ranks = jax.jit(functools.partial(full_ranking.ranks, make_mesh(shape), items=ITEMS))
    found = np.asarray(ranks(query, stored(keys), target, seen))
    assert found.shape == (B, 2)
    assert (found == -1).all(1).tolist() == [False, False, True, True, True, False, False, False]
    keys[7] = np.nan
    assert (np.asarray(ranks(query, stored(keys), target, seen))[:-1] == -1).all()


@pytest.mark.parametrize("shape", MESHES)
def test_the_first_items_are_found_on_every_mesh(shape):
    query, keys, _, seen = draw()
    first = jax.jit(functools.partial(full_ranking.first, make_mesh(shape), most=60, items=ITEMS))
    score, ids = first(query, stored(keys), seen)
    for row in range(B):
        scores = keys @ query[row]
        free = [item for item in range(1, ITEMS) if item not in set(seen[row].tolist())]
        expected = sorted(free, key=lambda item, s=scores: (-s[item], item))[:60]
        assert ids[row].tolist() == expected
        np.testing.assert_array_equal(score[row], scores[expected])


def test_where_there_are_fewer_items_the_score_says_so():
    query, keys, _, seen = draw()
    first = jax.jit(functools.partial(full_ranking.first, make_mesh((2, 4)), most=12, items=8))
    score, ids = first(query, stored(keys), seen % 8)
    for row in range(B):
        free = {item for item in range(1, 8) if item not in set((seen[row] % 8).tolist())}
        kept = np.asarray(score[row]) > -np.inf
        assert set(np.asarray(ids[row])[kept].tolist()) == free and kept.sum() == len(free) < 12


@pytest.mark.parametrize("shape", MESHES)
def test_items_of_which_nothing_is_known_rank_behind_all_others(shape):
    """Known items score -1, -2, ...; those with a key of zeros would score 0, before all of them."""
    mesh, unknown = make_mesh(shape), [2, 700, 1500]
    keys = -np.arange(LINES * table.COLUMNS, dtype=np.float32)[:, None] * np.ones((1, D), np.float32)
    keys[unknown] = 0
    query, seen = np.eye(D, dtype=np.float32)[np.arange(B) % D], np.zeros((B, M), np.int32)
    target = np.array([1, 3, 2, 1899, 1, 700, 0, ITEMS], np.int32)
    seen[4:6, :2] = [3, 1500]
    ranks = jax.jit(functools.partial(full_ranking.ranks, mesh, items=ITEMS))(query, stored(keys), target, seen)
    # Of 1,899 items 1,896 are known. Unknown ones tie behind them; users 4 and 5 have seen one of them, and item 3.
    wanted = [[1, 1], [2, 2], [1897, 1899], [1896, 1896], [1, 1], [1896, 1897], [0, 0], [-1, -1]]
    assert np.asarray(ranks).tolist() == wanted
    score, ids = jax.jit(functools.partial(full_ranking.first, mesh, most=1000, items=ITEMS))(query, stored(keys), seen)
    assert ids[0, :4].tolist() == [1, 3, 4, 5] and score[0, :2].tolist() == [-1, -3]
    assert ids[4, :4].tolist() == [1, 4, 5, 6] and not np.isin(ids, unknown).any()
    query[1] = np.nan
    ranks = jax.jit(functools.partial(full_ranking.ranks, mesh, items=ITEMS))(query, stored(keys), target, seen)
    assert np.asarray(ranks)[1].tolist() == [-1, -1], "a score that is no number is told all the same"


def test_where_fewer_items_are_known_than_asked_for_the_score_says_so():
    keys = np.zeros((LINES * table.COLUMNS, D), np.float32)
    keys[[5, 9]] = -1
    arguments = np.ones((B, D), np.float32), stored(keys), np.zeros((B, M), np.int32)
    score, ids = full_ranking.first(make_mesh((2, 4)), *arguments, 4, ITEMS)
    np.testing.assert_array_equal(score, [[-4, -4, -np.inf, -np.inf]] * B)
    assert ids[:, :2].tolist() == [[5, 9]] * B


@pytest.mark.parametrize("shape", [(1, 1), (2, 4)])
def test_keys_are_those_of_one_device(shape, monkeypatch):
    monkeypatch.setattr(full_ranking, "TILE", 1)  # lines one after the other
    model, params, catalogue = small_model.make()
    mesh = make_mesh(shape)
    keys = jax.jit(functools.partial(full_ranking.item_keys.__wrapped__, mesh, model))  # traced anew, with that size
    found = keys(params, table.place_catalogue(catalogue, mesh))
    expected = np.asarray(synergen.item_keys(model, params, catalogue))
    np.testing.assert_allclose(np.asarray(found).reshape(-1, expected.shape[1])[: len(expected)], expected, atol=1e-6)
    assert found.sharding.shard_shape(found.shape)[1] == table.COLUMNS // mesh.size


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_neither_the_catalogue_nor_all_scores_are_made_whole(shape):
    lines, devices = 64, 8
    mesh = make_mesh(shape)
    one = lambda spec, dtype, *size: jax.ShapeDtypeStruct(size, dtype, sharding=jax.NamedSharding(mesh, spec))
    users = functools.partial(one, jax.P("data"))
    keys = one(table.SPLIT, jnp.float32, lines, table.COLUMNS, D)

    def both(query, keys, target, seen):
        ranks = full_ranking.ranks(mesh, query, keys, target, seen, lines * table.COLUMNS)
        return ranks, full_ranking.first(mesh, query, keys, seen, 10, lines * table.COLUMNS)

    arguments = users(jnp.float32, B, D), keys, users(jnp.int32, B), users(jnp.int32, B, M)
    text = jax.jit(both).lower(*arguments).compile().as_text()
    found = hlo.collectives(text)
    assert {"all-gather", "all-reduce"} <= {part.kind for part in found}, "else queries do not travel"
    assert max(np.prod(part.shape) for part in found) * 10 < lines * table.COLUMNS * D / devices
    assert max(np.prod(s) for part in hlo.instructions(text) for s in part.shapes) < B * lines * table.COLUMNS
