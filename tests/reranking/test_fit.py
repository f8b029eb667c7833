"""A ranker learns from lists what retrieval does not know, and leaves its order where there is nothing to learn."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from synergen_jax.errors import UserError
from synergen_jax.reranking import fit
from synergen_jax.reranking.ranker import Ranker

COLUMNS = ("score", "clue", "noise")
SETTINGS = fit.Settings(steps=300, batch=32, every=50)


def lists(seed=0, count=400, size=10, clue=2.0):
    """Lists whose target goes by the score and, `clue` times as much, by a second column."""
    rng = np.random.default_rng(seed)
    feature = rng.normal(size=(count, size, 3)).astype(np.float32)
    feature[..., 0] = -np.sort(-feature[..., 0], axis=1)
    wish = feature[..., 0] + clue * feature[..., 1] + rng.gumbel(size=(count, size))
    there = np.ones((count, size), bool)
    there[::3, -2:] = False
    target = np.where(there, wish, -np.inf).argmax(1)
    return fit.Lists(rng.integers(0, count // 2, count), feature * there[..., None], there, target)


def places(score, these):
    """The place of each target, from 0."""
    score = np.where(these.there, score, -np.inf)
    mine = np.take_along_axis(score, these.target[:, None], 1)
    return np.sum(score > mine, axis=1)


def test_it_finds_what_the_score_does_not_know():
    ranker = fit.fit(lists(), COLUMNS, SETTINGS, {"step": 7})
    new = lists(seed=1)
    score = ranker.scores(new.feature)
    assert places(score, new).mean() < 0.6 * new.target.mean()  # that of retrieval is the order of the list
    about = ranker.about
    assert about["step"] == 7 and about["lists"] + about["held_lists"] == 400 and 0 < about["steps"] <= 300
    assert about["held_loss"] < about["held_loss_before"]
    # Users are held back whole.
    assert about["held_lists"] != 80 or len(set(new.user.tolist())) == 400


def test_where_there_is_nothing_to_learn_the_order_of_retrieval_stays():
    """Targets that go by nothing: whatever is learned is worse on users that are held back, or as good as nothing."""
    rng = np.random.default_rng(3)
    these = lists(clue=0)
    these = these._replace(target=np.where(rng.random(400) < 0.9, 0, these.target))  # the first one, nearly always
    ranker = fit.fit(these, COLUMNS, SETTINGS, {})
    new = lists(seed=4, clue=0)
    assert np.mean(ranker.scores(new.feature).argmax(1) == 0) > 0.95
    assert ranker.about["held_loss"] <= ranker.about["held_loss_before"]


def test_the_loss_is_its_formula():
    score = jnp.array([[1.0, 2, 3], [0, 0, 5]])
    there = np.array([[True, True, True], [True, True, False]])
    wanted = [np.log(np.exp([1, 2, 3]).sum()) - 2, np.log(2)]
    np.testing.assert_allclose(fit.list_loss(score, there, jnp.array([1, 0])), np.mean(wanted), rtol=1e-6)


def test_the_same_seed_gives_the_same_ranker():
    feature = lists(seed=2).feature
    one, other, third = (fit.fit(lists(), COLUMNS, dataclasses.replace(SETTINGS, seed=s), {}) for s in (0, 0, 1))
    np.testing.assert_array_equal(one.scores(feature), other.scores(feature))
    assert not np.array_equal(one.scores(feature), third.scores(feature))


def test_columns_that_are_constant_or_large_do_no_harm():
    these = lists()
    feature = np.concatenate([these.feature, np.full((400, 10, 1), 5.0), 1e6 * these.feature[..., :1]], -1)
    ranker = fit.fit(these._replace(feature=feature.astype(np.float32)), (*COLUMNS, "five", "large"), SETTINGS, {})
    assert np.isfinite(ranker.scores(feature.astype(np.float32))).all()


def test_too_few_lists():
    few = fit.Lists(*(part[:30] for part in lists()))
    with pytest.raises(UserError, match=r"a ranker needs 20 lists .* of other users; there are \d+ and \d+"):
        fit.fit(few, COLUMNS, SETTINGS, {})


def test_a_ranker_is_kept(tmp_path):
    ranker = fit.fit(lists(), COLUMNS, dataclasses.replace(SETTINGS, steps=20), {"step": 3})
    ranker.save(tmp_path)
    found = Ranker.load(tmp_path)
    assert found.columns == COLUMNS and found.about == ranker.about
    np.testing.assert_array_equal(found.scores(lists().feature), ranker.scores(lists().feature))


@pytest.mark.parametrize("name", ["ranker.json", "ranker.msgpack"])
def test_a_ranker_that_cannot_be_read(tmp_path, name):
    fit.fit(lists(), COLUMNS, dataclasses.replace(SETTINGS, steps=20), {}).save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    with pytest.raises(UserError, match=r"is damaged \(.*\): `synergen rerank` writes it again"):
        Ranker.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        Ranker.load(tmp_path)
