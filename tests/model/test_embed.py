"""From ids to vectors: rows, ids that were never learned, identity dropout."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import small_model

from synergen_jax.model import embed, synergen


def test_lookup_by_hand():
    learned, matrix = jnp.arange(768 * 2.0).reshape(1, 768, 2), jnp.arange(5.0)[:, None] * 10
    found = embed.rows_of(learned, {"text": matrix}, jnp.array([0, 3, 0, 1, 0]), jnp.array([[1, 2], [3, 4]]))
    # 2 has no training event; 4 is new.
    assert found["id"].tolist() == [[[2, 3], [0, 0]], [[6, 7], [0, 0]]]
    assert found["text"][..., 0].tolist() == [[10, 20], [30, 40]]
    assert set(embed.rows_of(None, {"text": matrix}, jnp.zeros(5, jnp.int32), jnp.array([1]))) == {"text"}


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
def test_identity_dropout_drops_its_share_anew_in_every_step(rate):
    ids = jnp.arange(20_000)
    kept = [np.asarray(embed.IdentityDropout(rate, jnp.uint32(seed)).keeps(ids)) for seed in (1, 2, 12345)]
    for keeps in kept:
        assert abs(keeps.mean() - (1 - rate)) < 0.02
    if rate == 0.5:
        same = np.mean(kept[0] == kept[1])
        assert abs(same - 0.5) < 0.02, "two steps are independent"
        assert abs(np.corrcoef(kept[0][1:], kept[0][:-1])[0, 1]) < 0.03, "so are neighbours"


def test_an_id_is_dropped_wherever_it_stands():
    dropout = embed.IdentityDropout(0.5, jnp.uint32(7))
    ids = jnp.array([[5, 6], [6, 5]])
    keeps = dropout.keeps(ids)
    assert keeps[0, 0] == keeps[1, 1] and keeps[0, 1] == keeps[1, 0]


def test_a_dropped_item_has_the_vector_of_a_new_one():
    """What training shows of a dropped id is what serving sees of an item that was added later."""
    model, params, catalogue = small_model.make()
    ids = jnp.arange(1, 60)
    dropped = synergen.item_vectors(model, params, catalogue, ids, embed.IdentityDropout(0.5, jnp.uint32(3)))
    keeps = embed.IdentityDropout(0.5, jnp.uint32(3)).keeps(ids)
    new = dataclasses.replace(catalogue, counts=jnp.zeros_like(catalogue.counts))
    np.testing.assert_array_equal(dropped[~keeps], synergen.item_vectors(model, params, new, ids)[~keeps])
    np.testing.assert_array_equal(dropped[keeps], synergen.item_vectors(model, params, catalogue, ids)[keeps])


def test_items_beyond_the_table_are_found_by_their_matrices():
    """Three items are added to a trained catalogue of 60; the others' keys stay as they were."""
    model, params, catalogue = small_model.make()
    before = np.asarray(synergen.item_keys(model, params, catalogue))
    grown = dataclasses.replace(
        catalogue,
        item_matrices={name: jnp.concatenate([m, m[5:8]]) for name, m in catalogue.item_matrices.items()},
        counts=jnp.concatenate([catalogue.counts, jnp.zeros(3, jnp.int32)]),
    )
    after = np.asarray(synergen.item_keys(model, params, grown))
    assert after.shape == (63, before.shape[1])
    np.testing.assert_allclose(after[:60], before, atol=1e-6)
    cold = dataclasses.replace(catalogue, counts=catalogue.counts.at[5:8].set(0))
    np.testing.assert_allclose(after[60:], np.asarray(synergen.item_keys(model, params, cold))[5:8], atol=1e-6)
