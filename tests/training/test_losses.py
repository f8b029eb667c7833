"""Each loss against a loop in NumPy that follows its formula, and at the extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from synergen_jax.training import losses


def unit(rng, rows, width=5):
    x = rng.normal(size=(rows, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def plain_info_nce(query, positive, positive_id, negative, negative_id, weight, log_q, temperature):
    """`info_nce` with all scores at once."""
    hit = jnp.sum(query * positive, axis=-1) / temperature
    miss = query @ negative.T / temperature
    if log_q is not None:
        hit, miss = hit - log_q[0], miss - log_q[1][None]
    allowed = (negative_id[None] != positive_id[:, None]) & (negative_id > 0)[None]
    every = jnp.concatenate([hit[:, None], jnp.where(allowed, miss, -jnp.inf)], axis=1)
    return jnp.sum(weight * (jax.nn.logsumexp(every, axis=-1) - hit))


def plain_full_softmax(query, positive, among, keys, allowed, weight, temperature):
    """`full_softmax` with all scores at once."""
    hit = jnp.sum(query * positive, axis=-1) / temperature
    scores = jnp.where(allowed[None], query @ keys.T / temperature, -jnp.inf)
    scores = jnp.concatenate([scores, jnp.where(among, -jnp.inf, hit)[:, None]], axis=1)
    return jnp.sum(jnp.where(weight > 0, weight * (jax.nn.logsumexp(scores, axis=-1) - hit), 0.0))


def info_nce_loop(query, positive, positive_id, negative, negative_id, weight, log_q, temperature):
    """The formula of `info_nce`, term by term."""
    total = 0.0
    for p in range(len(query)):
        score = lambda vector, lq, p=p: float(query[p] @ vector) / temperature - lq
        log = (lambda side, i: 0.0) if log_q is None else (lambda side, i: float(log_q[side][i]))
        hit = np.exp(score(positive[p], log(0, p)))
        below = hit
        for n in range(len(negative)):
            if negative_id[n] != 0 and negative_id[n] != positive_id[p]:
                below += np.exp(score(negative[n], log(1, n)))
        total += weight[p] * -np.log(hit / below)
    return total


@pytest.fixture
def sampled():
    rng = np.random.default_rng(0)
    items = 12
    table = unit(rng, items)
    positive_id = rng.integers(1, items, 7).astype(np.int32)
    negative_id = np.append(rng.integers(0, items, 9), positive_id[:3]).astype(np.int32)  # with accidental hits
    negative_id[0] = 0  # an empty slot
    weight = np.array([1, 1, 0, 1, 0.5, 1, 1], np.float32)
    counts = rng.integers(0, 30, items).astype(np.int32)
    log_q = np.asarray(losses.log_expected_count(jnp.asarray(counts), int(counts.sum()), int((counts > 0).sum()), 3, 9))
    log_q = log_q[positive_id], log_q[negative_id]
    return unit(rng, 7), table[positive_id], positive_id, table[negative_id], negative_id, weight, log_q


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_info_nce_is_its_formula(sampled, corrected, temperature):
    *args, log_q = sampled
    log_q = log_q if corrected else None
    found = losses.info_nce(*jax.tree.map(jnp.asarray, (*args, log_q)), temperature)
    np.testing.assert_allclose(found, info_nce_loop(*args, log_q, temperature), rtol=1e-5)


def test_the_correction_and_the_mask_matter(sampled):
    """What the formula's test compares is not the same number whatever one does."""
    *args, log_q = sampled
    plain = info_nce_loop(*args, None, 0.05)
    assert abs(info_nce_loop(*args, log_q, 0.05) - plain) > 0.1
    query, positive, positive_id, negative, negative_id, weight = args
    unmasked = info_nce_loop(query, positive, positive_id + 100, negative, negative_id, weight, None, 0.05)
    assert unmasked - plain > 0.1


def test_accidental_hits_and_empty_slots_have_no_gradient(sampled):
    query, positive, positive_id, negative, negative_id, weight, log_q = jax.tree.map(jnp.asarray, sampled)
    log_q = log_q[0][:1], log_q[1]
    alone = lambda n: losses.info_nce(query[:1], positive[:1], positive_id[:1], n, negative_id, weight[:1], log_q, 0.1)
    grad = np.asarray(jax.grad(alone)(negative))
    out = (np.asarray(negative_id) == 0) | (np.asarray(negative_id) == int(positive_id[0]))
    assert out.any() and (grad[out] == 0).all() and (np.abs(grad[~out]).sum(1) > 0).all()


def test_queries_of_weight_zero_have_no_gradient(sampled):
    query, *rest = jax.tree.map(jnp.asarray, sampled)
    grad = np.asarray(jax.grad(lambda q: losses.info_nce(q, *rest, 0.1))(query))
    assert (grad[2] == 0).all() and (np.abs(np.delete(grad, 2, 0)).sum(1) > 0).all()


def test_no_negative_left_is_no_loss():
    query = jnp.ones((2, 3))
    found = losses.info_nce(query, query, jnp.array([1, 1]), query, jnp.array([1, 0]), jnp.ones(2), None, 0.1)
    assert float(found) == 0.0


def test_a_positive_that_is_not_among_the_items_joins_their_sum():
    """Three items of scores 0, 1 and 2, of which the last is not allowed and is the target: -log(e^2 / (1 + e + e^2))."""
    keys = jnp.array([[0.0], [0.0], [1.0], [2.0]])
    loss = lambda q: losses.full_softmax(
        q, keys[3:], jnp.array([False]), keys, jnp.array([False, True, True, False]), jnp.ones(1), 1.0
    )
    value, grad = jax.value_and_grad(loss)(jnp.ones((1, 1)))
    share = np.exp([0.0, 1.0, 2.0]) / np.exp([0.0, 1.0, 2.0]).sum()
    np.testing.assert_allclose(value, -np.log(share[2]), rtol=1e-6)
    np.testing.assert_allclose(grad, [[share @ [0, 1, 2] - 2]], rtol=1e-5)
    # Scored ever higher, it tends to no loss, and to no less.
    far = losses.full_softmax(
        jnp.ones((1, 1)),
        50 * keys[3:],
        jnp.array([False]),
        keys,
        jnp.array([False, True, True, False]),
        jnp.ones(1),
        1.0,
    )
    assert 0 <= float(far) < 1e-6
    nothing = losses.full_softmax(
        jnp.ones((1, 1)), keys[3:], jnp.array([False]), keys, jnp.zeros(4, bool), jnp.ones(1), 1.0
    )
    assert float(nothing) == 0, "the target alone"


@pytest.mark.parametrize(("queries", "keys"), [(2, 0), (0, 3), (0, 0)])
def test_no_negatives_and_no_queries(queries, keys):
    """Without a key the sum is empty, its log -inf, and InfoNCE nothing; gradients are zeros, not NaN."""
    query, key, ids = jnp.ones((queries, 4)), jnp.ones((keys, 4)), jnp.arange(1, keys + 1)
    mine = jnp.ones(queries, jnp.int32)
    found = losses.log_sum_exp(query, key, jnp.zeros(keys), mine, ids)
    assert found.shape == (queries,) and (np.asarray(found) == -np.inf).all()
    loss = lambda q, k: losses.info_nce(q, jnp.ones((queries, 4)), mine, k, ids, jnp.ones(queries), None, 0.1)
    value, grads = jax.value_and_grad(loss, (0, 1))(query, key)
    assert float(value) == 0
    assert [g.shape for g in grads] == [query.shape, key.shape] and not any(np.asarray(g).any() for g in grads)
    whole = losses.full_softmax(query, query, mine > 0, key, ids > 0, jnp.zeros(queries), 0.1)
    assert float(whole) == 0


@pytest.mark.parametrize("scale", [0.0, 1e4, -1e4])
def test_extreme_scores_stay_finite(scale):
    query = jnp.array([[scale]])
    args = query, jnp.ones((1, 1)), jnp.array([1]), -jnp.ones((1, 1)), jnp.array([2]), jnp.ones(1), None, 0.05
    value, grad = jax.value_and_grad(lambda q: losses.info_nce(q, *args[1:]))(query)
    assert np.isfinite(value) and np.isfinite(grad).all()
    np.testing.assert_allclose(value, np.logaddexp(0, -2 * scale / 0.05), rtol=1e-5)


def test_full_softmax_is_its_formula():
    rng = np.random.default_rng(1)
    query, keys, target = unit(rng, 6), unit(rng, 11), np.array([1, 5, 10, 0, 5, 2])
    weight = (target > 0).astype(np.float32)
    wanted = 0.0
    for p in range(6):
        if weight[p]:
            exp = np.exp(keys[1:].astype(np.float64) @ query[p] / 0.1)  # id 0 is never in the sum
            wanted -= np.log(exp[target[p] - 1] / exp.sum())
    args = [jnp.asarray(x) for x in (query, keys[target], target > 0, keys, np.arange(11) > 0, weight)]
    np.testing.assert_allclose(losses.full_softmax(*args, 0.1), wanted, rtol=1e-5)
    grad = jax.grad(lambda q: losses.full_softmax(q, *args[1:], 0.1))(args[0])
    assert np.isfinite(grad).all() and (np.asarray(grad)[3] == 0).all()


def test_sampling_the_whole_catalogue_is_the_full_softmax():
    """Every item once, no correction: InfoNCE's own definition of its limit."""
    rng = np.random.default_rng(2)
    query, keys, target = unit(rng, 6), unit(rng, 11), np.array([1, 5, 10, 3, 5, 2])
    ids = np.arange(11, dtype=np.int32)
    sampled = losses.info_nce(
        *map(jnp.asarray, (query, keys[target], target, keys, ids, np.ones(6, np.float32))), None, 0.1
    )
    full = losses.full_softmax(
        *map(jnp.asarray, (query, keys[target], target > 0, keys, np.arange(11) > 0, np.ones(6, np.float32))), 0.1
    )
    np.testing.assert_allclose(sampled, full, rtol=1e-5)


@pytest.fixture
def tiled(monkeypatch):
    """Tiles of 4 x 3, so that small problems take several, the last of them padded."""
    monkeypatch.setattr(losses, "TILE", (4, 3))


@pytest.mark.parametrize("corrected", [True, False])
def test_info_nce_in_tiles_is_its_plain_form(tiled, sampled, corrected):
    *args, log_q = jax.tree.map(jnp.asarray, sampled)
    rest = *args[2:], log_q if corrected else None, 0.05
    form = lambda loss: jax.value_and_grad(lambda q, p, n: loss(q, p, rest[0], n, *rest[2:]), (0, 1, 2))
    (value, grads), (wanted, others) = (
        form(loss)(args[0], args[1], args[3]) for loss in (losses.info_nce, plain_info_nce)
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=3e-5), grads, others)
    assert all(np.abs(g).max() > 1 for g in grads)


def test_full_softmax_in_tiles_is_its_plain_form(tiled):
    rng = np.random.default_rng(7)
    query, keys, target = unit(rng, 6), unit(rng, 11), np.array([1, 5, 10, 0, 7, 2])  # 7 is not allowed
    allowed = ~np.isin(np.arange(11), [0, 7])
    rest = [jnp.asarray(allowed), jnp.asarray((target > 0).astype(np.float32)), 0.05]
    form = lambda loss: jax.value_and_grad(
        lambda q, k: loss(q, k[target], jnp.asarray(allowed[target]), k, *rest), (0, 1)
    )
    (value, grads), (wanted, others) = (
        form(loss)(jnp.asarray(query), jnp.asarray(keys)) for loss in (losses.full_softmax, plain_full_softmax)
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, others)


def test_memory_does_not_grow_with_the_negatives():
    """What the compiled gradient holds beside its inputs and outputs, at 1 and at 16 times the negatives."""

    def temporary(loss, negatives):
        shapes = (2048, 16), (2048, 16), (2048,), (negatives, 16), (negatives,), (2048,)
        kinds = jnp.float32, jnp.float32, jnp.int32, jnp.float32, jnp.int32, jnp.float32
        args = [jax.ShapeDtypeStruct(s, k) for s, k in zip(shapes, kinds)]
        grad = jax.jit(jax.grad(lambda *a: loss(*a, None, 0.05), argnums=(0, 1, 3)))
        return grad.lower(*args).compile().memory_analysis().temp_size_in_bytes

    assert temporary(losses.info_nce, 16 * 1024) < 1.3 * temporary(losses.info_nce, 1024)
    assert temporary(plain_info_nce, 16 * 1024) > 5 * temporary(plain_info_nce, 1024), "what this test can see"


def test_what_fits_one_tile_takes_no_loop():
    args = [jax.ShapeDtypeStruct(s, k) for s, k in (((64, 8), jnp.float32), ((64,), jnp.int32))]
    grad = jax.jit(jax.grad(lambda x, i: losses.info_nce(x, x, i, x, i, x[:, 0], None, 0.1)))
    assert " while(" not in grad.lower(*args).compile().as_text()


def test_expected_counts_by_hand():
    found = np.exp(losses.log_expected_count(jnp.array([0, 6, 3, 0]), 9, 2, 5, 9))
    # Shares 6 and 3 of 9, and at least one; uniform draws fall on the two items that training meets.
    np.testing.assert_allclose(found, 5 * np.array([1, 6, 3, 1]) / 9 + 9 / 2, rtol=1e-6)


def test_expected_counts_match_the_draws():
    """The correction is that of the sampling: counted over many draws."""
    rng = np.random.default_rng(3)
    counts = np.array([0, 50, 30, 15, 5])
    in_batch, uniform, rounds = 6, 4, 4000
    drawn = np.concatenate(
        [rng.choice(5, in_batch * rounds, p=counts / counts.sum()), rng.integers(1, 5, uniform * rounds)]
    )
    seen = np.bincount(drawn, minlength=5)[1:] / rounds
    np.testing.assert_allclose(
        np.exp(losses.log_expected_count(jnp.asarray(counts), int(counts.sum()), 4, in_batch, uniform))[1:],
        seen,
        rtol=0.05,
    )


def test_correction_makes_sampled_gradients_unbiased_in_the_limit():
    """With log-Q, many popularity draws give the full softmax's loss; without, they do not."""
    rng = np.random.default_rng(4)
    items, draws = 9, 20_000
    counts = np.append(0, rng.integers(1, 200, items - 1))
    keys, query = unit(rng, items), unit(rng, 1)
    target = np.array([3])
    ids = rng.choice(items, draws, p=counts / counts.sum()).astype(np.int32)
    ids = ids[ids != 3]
    full = float(
        losses.full_softmax(
            *map(jnp.asarray, (query, keys[target], target > 0, keys, np.arange(9) > 0, np.ones(1, np.float32))), 1.0
        )
    )
    log_q = losses.log_expected_count(jnp.asarray(counts), int(counts.sum()), items - 1, draws, 0)
    args = [jnp.asarray(x) for x in (query, keys[target], target, keys[ids], ids, np.ones(1, np.float32))]
    # The positive stands for itself once: its own correction is log 1.
    corrected = float(losses.info_nce(*args, (jnp.zeros(1), log_q[ids]), 1.0))
    assert abs(corrected - full) < 0.02
    assert abs(float(losses.info_nce(*args, None, 1.0)) - full) > 1


def test_pointwise_is_its_formula():
    rng = np.random.default_rng(5)
    logits, label = rng.normal(size=(3, 4, 2)) * 3, rng.integers(-1, 2, (3, 4, 2))
    weight = np.array([[1.0, 2.0], [0.0, 0.0], [2.5, 0.5]], np.float32)
    chance = 1 / (1 + np.exp(-logits))
    terms = {
        i: -np.log(chance[i] if label[i] == 1 else 1 - chance[i]) for i in np.ndindex(label.shape) if label[i] >= 0
    }
    args = jnp.asarray(logits, jnp.float32), jnp.asarray(label, jnp.int8), jnp.asarray(weight)
    np.testing.assert_allclose(
        losses.pointwise(*args), sum(weight[i[0], i[2]] * x for i, x in terms.items()), rtol=1e-5
    )
    np.testing.assert_allclose(losses.known(*args[1:]), sum(weight[i[0], i[2]] for i in terms), rtol=1e-6)


def test_pairwise_is_its_formula():
    rng = np.random.default_rng(6)
    logits, label = rng.normal(size=(3, 5, 2)) * 3, rng.integers(-1, 2, (3, 5, 2))
    weight = np.array([[1.0, 3.0], [0.5, 0.0], [2.0, 1.0]], np.float32)
    wanted, pairs = 0.0, 0
    for b, a in np.ndindex(3, 2):
        for i, j in np.ndindex(5, 5):
            if label[b, i, a] == 1 and label[b, j, a] == 0:
                wanted -= weight[b, a] * np.log(1 / (1 + np.exp(logits[b, j, a] - logits[b, i, a])))
                pairs += weight[b, a]
    args = jnp.asarray(logits, jnp.float32), jnp.asarray(label, jnp.int8), jnp.asarray(weight)
    np.testing.assert_allclose(losses.pairwise(*args), wanted, rtol=1e-5)
    assert float(losses.pairs(*args[1:])) == pairs > 5


def test_listwise_is_its_formula():
    rng = np.random.default_rng(7)
    logits, label = rng.normal(size=(4, 5, 2)) * 3, rng.integers(-1, 2, (4, 5, 2))
    label[0, :, 0] = [1, 1, -1, 1, -1]  # no negative
    weight = np.array([[1.0, 3.0], [0.5, 0.0], [2.0, 1.0], [1.0, 1.0]], np.float32)
    wanted, count = 0.0, 0
    for b, a in np.ndindex(4, 2):
        power = np.exp(logits[b, :, a])
        others = power[label[b, :, a] == 0].sum()
        for i in np.flatnonzero((label[b, :, a] == 1) & (others > 0)):
            wanted -= weight[b, a] * np.log(power[i] / (power[i] + others))
            count += weight[b, a]
    args = jnp.asarray(logits, jnp.float32), jnp.asarray(label, jnp.int8), jnp.asarray(weight)
    np.testing.assert_allclose(losses.listwise(*args), wanted, rtol=1e-5)
    assert float(losses.chosen(*args[1:])) == count > 5


@pytest.mark.parametrize("name", ["pointwise", "pairwise", "listwise"])
def test_ranking_losses_at_the_extremes(name):
    label = jnp.array([[[1], [0], [-1]]], jnp.int8)
    loss = getattr(losses, name)
    for logit in (0.0, 1e4, -1e4):
        logits = jnp.array([[[logit], [-logit], [jnp.inf]]])
        value, grad = jax.value_and_grad(loss)(logits.at[0, 2].set(0.0), label, jnp.ones((1, 1)))
        assert np.isfinite(value) and np.isfinite(grad).all()
    nothing = jnp.full((1, 3, 1), -1, jnp.int8)
    value, grad = jax.value_and_grad(loss)(jnp.ones((1, 3, 1)), nothing, jnp.ones((1, 1)))
    assert float(value) == 0 and (np.asarray(grad) == 0).all()


def test_lists_of_no_candidates():
    empty = jnp.zeros((2, 0, 1)), jnp.zeros((2, 0, 1), jnp.int8), jnp.ones((2, 1))
    for loss in (losses.pointwise, losses.pairwise, losses.listwise):
        assert float(loss(*empty)) == 0
