"""Search: exact against a plain loop, ScaNN against exact, and what is saved is what is loaded."""

import json
import sys

import numpy as np
import pytest

from synergen_jax.errors import UserError
from synergen_jax.retrieval import index
from synergen_jax.retrieval.index import ExactIndex, ScannIndex


def clustered(items, width, clusters=40, spread=0.8, seed=0):
    """Unit vectors about cluster centres, as a trained item table has them; and row 0, which must never be found."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    x = centres[rng.integers(0, clusters, items + 1)] + spread * rng.normal(size=(items + 1, width)) / np.sqrt(width)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32)


def near(vectors, n, spread=0.8, seed=1):
    """Unit queries in the neighbourhood of items."""
    rng = np.random.default_rng(seed)
    x = vectors[rng.integers(1, len(vectors), n)]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    x = x + spread * rng.normal(size=x.shape) / np.sqrt(x.shape[1])
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def norms_over_a_decade(vectors, seed=2):
    return (vectors * 10 ** np.random.default_rng(seed).uniform(0, 1, (len(vectors), 1))).astype(np.float32)


KINDS = pytest.mark.parametrize("kind", [ExactIndex, ScannIndex])


def test_exact_search_by_hand():
    vectors = np.array([[99, 99], [1, 0], [0, 2], [1, 1], [-3, 0]], np.float32)
    scores, ids = ExactIndex.build(vectors).search(np.array([[1, 0], [-1, 1]]), 4)
    np.testing.assert_array_equal(ids, [[1, 3, 2, 4], [4, 2, 3, 1]])  # item 1 before 3: equal scores
    np.testing.assert_array_equal(scores, [[1, 1, 0, -3], [3, 2, 0, -1]])
    assert scores.dtype == np.float32 and ids.dtype == np.int32


def test_few_programs_serve_every_k():
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    exact, before = ExactIndex.build(vectors), index._top_k._cache_size()
    for k in range(1, 50):  # item 0 is never found
        assert exact.search(vectors[:1], k)[1].shape == (1, k)
    assert index._top_k._cache_size() - before <= 7  # 1, 2, 4, ... 32, and all of them


def test_exact_search_equals_sorting_in_many_blocks(monkeypatch):
    vectors, queries = clustered(500, 8), near(clustered(500, 8), 77)
    one = ExactIndex.build(vectors).search(queries, 20)
    monkeypatch.setattr(index, "_CELLS", 500 * 20)  # blocks of 16 queries
    many = ExactIndex.build(vectors).search(queries, 20)
    expected = 1 + np.argsort(-queries @ vectors[1:].T, axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(one[1], expected)
    np.testing.assert_array_equal(many[1], expected)
    np.testing.assert_allclose(many[0], one[0], rtol=1e-6)


@KINDS
def test_ids_are_those_given_and_item_0_is_never_found(kind):
    vectors = clustered(400, 16)
    ids = np.random.default_rng(0).permutation(2000)[:401]
    ids[7] = 0
    vectors[7] = 100.0
    found = kind.build(vectors, ids).search(vectors[10:20], 400)[1]
    assert set(found.ravel()) == set(ids) - {0}
    np.testing.assert_array_equal(kind.build(vectors, ids).search(vectors[10:20], 1)[1][:, 0], ids[10:20])
    assert 0 not in kind.build(vectors).search(vectors[:1], 400)[1]


@KINDS
@pytest.mark.parametrize("items", [40, 400])
def test_items_with_vectors_of_zeros_are_never_found(kind, items, tmp_path):
    """All others score less than 0: they would come first. What is saved keeps it."""
    vectors = np.abs(clustered(items, 8)) + 0.1
    vectors[[2, items]] = 0
    built = kind.build(vectors)
    built.save(tmp_path / "index")
    for one in (built, index.load(tmp_path / "index")):
        assert one.size == items - 2 and set(one.ids.tolist()) == set(range(1, items)) - {2}
        scores, ids = one.search(-vectors[1:4], items - 2)
        assert not np.isin(ids, [0, 2, items]).any() and (scores < 0).sum() == 2 * (items - 2)
        np.testing.assert_allclose(scores[0], -vectors[ids[0]] @ vectors[1], rtol=1e-4)
        with pytest.raises(UserError, match=f"holds {items - 2} items"):
            one.search(vectors[:1], items - 1)
    with pytest.raises(UserError, match=r"nothing is known of any of the 39 items"):
        kind.build(np.zeros((40, 8), np.float32))


@KINDS
def test_an_index_that_was_saved_with_vectors_of_zeros_never_finds_them(kind, tmp_path, monkeypatch):
    vectors = clustered(400, 8)
    vectors[7] = 0
    with monkeypatch.context() as before:
        before.setattr(index, "_checked", lambda vectors, ids: (vectors[1:], np.arange(1, 401, dtype=np.int32)))
        kind.build(vectors).save(tmp_path / "index")
    if kind is ExactIndex:
        assert 7 not in index.load(tmp_path / "index").search(-vectors[:9], 399)[1]
    else:
        with pytest.raises(UserError, match="build it anew"):
            index.load(tmp_path / "index")


@KINDS
def test_wrong_input_is_refused(kind):
    vectors = clustered(30, 4)
    built = kind.build(vectors)
    with pytest.raises(UserError, match=r"31 results .* holds 30 items"):
        built.search(vectors, 31)
    with pytest.raises(UserError, match="0 results"):
        built.search(vectors, 0)
    with pytest.raises(UserError, match=r"\(2, 5\) do not fit an index of width 4"):
        built.search(np.zeros((2, 5)), 1)
    with pytest.raises(UserError, match="query vector holds NaN"):
        built.search(np.full((1, 4), np.nan), 1)
    broken = vectors.copy()
    broken[5, 2], broken[9, 0] = np.nan, np.inf
    with pytest.raises(UserError, match="2 of 30 item vectors hold NaN or infinity, the first that of item 5"):
        kind.build(broken)
    with pytest.raises(UserError, match="item 3 has more than one"):
        kind.build(vectors[:2], np.array([3, 3]))
    with pytest.raises(UserError, match="catalogue is empty"):
        kind.build(vectors[:1])
    broken[0], broken[5], broken[9] = np.nan, 0, 0
    kind.build(broken)  # the padding row may hold anything
    assert [x.shape for x in built.search(np.zeros((0, 4)), 3)] == [(0, 3), (0, 3)]


@pytest.mark.parametrize("items", [1682, 3706])
@pytest.mark.parametrize("scale", [lambda x: x, norms_over_a_decade], ids=["unit", "decade"])
@pytest.mark.parametrize("k", [10, 200])
def test_scann_finds_nearly_all_of_a_movielens_sized_catalogue(items, scale, k):
    vectors = scale(clustered(items, 64))
    queries = near(vectors, 300)
    exact, approximate = ExactIndex.build(vectors), ScannIndex.build(vectors)
    assert approximate.method == "scann hashing, reorder 200"
    scores, ids = approximate.search(queries, k)
    assert index.recall(ids, exact.search(queries, k)[1]) >= 0.98
    np.testing.assert_allclose(scores, np.einsum("bd,bkd->bk", queries, vectors[ids]), rtol=1e-4, atol=1e-5)
    assert np.all(np.diff(scores, axis=1) <= 0)


def test_scann_of_a_large_catalogue_searches_a_tree():
    vectors = clustered(20_000, 32, clusters=150)
    queries = near(vectors, 600)
    exact, approximate = ExactIndex.build(vectors), ScannIndex.build(vectors)
    assert approximate.method == "scann tree (29 of 141 leaves), hashing, reorder 200"
    assert index.recall(approximate.search(queries, 10)[1], exact.search(queries, 10)[1]) >= 0.95
    # More results than the usual leaves hold: more leaves, and no holes.
    scores, ids = approximate.search(queries[:5], 8000)
    assert np.isfinite(scores).all() and all(len(set(row)) == 8000 for row in ids.tolist())


@pytest.mark.parametrize("width", [1, 2, 3, 7, 33])
def test_scann_takes_any_width(width):
    vectors = np.random.default_rng(0).normal(size=(400, width)).astype(np.float32)
    ids = ScannIndex.build(vectors).search(vectors[:50], 5)[1]
    assert index.recall(ids, ExactIndex.build(vectors).search(vectors[:50], 5)[1]) >= 0.98


@pytest.mark.parametrize("items", [1, 3, 17, 255])
def test_scann_searches_a_tiny_catalogue_by_brute_force_and_says_so(items):
    vectors = clustered(items, 8)
    approximate = ScannIndex.build(vectors)
    assert approximate.method.startswith("scann brute force")
    k = min(items, 10)
    np.testing.assert_array_equal(approximate.search(vectors, k)[1], ExactIndex.build(vectors).search(vectors, k)[1])


def test_scann_survives_items_that_are_all_the_same():
    assert ScannIndex.build(np.ones((300, 8), np.float32)).search(np.ones((2, 8)), 5)[1].shape == (2, 5)


def test_scann_is_silent(capfd):
    vectors = clustered(400, 8)
    ScannIndex.build(vectors).search(vectors, 5)
    assert capfd.readouterr() == ("", "")
    print("seen", file=sys.stderr)
    assert capfd.readouterr().err == "seen\n"  # and what comes after is heard again


def test_without_scann_the_error_says_what_to_do(monkeypatch):
    for name in ("scann", "scann.scann_ops", "scann.scann_ops.py", "scann.scann_ops.py.scann_ops_pybind"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install scann.*or use exact search"):
        ScannIndex.build(clustered(30, 4))


@KINDS
@pytest.mark.parametrize("items", [40, 400])
def test_a_saved_index_can_be_moved_and_replaced(kind, items, tmp_path):
    vectors = clustered(items, 8)
    ids = np.arange(items + 1) * 3
    built = kind.build(vectors, ids)
    built.save(tmp_path / "a" / "index")
    (tmp_path / "a").rename(tmp_path / "b")
    for loaded in (index.load(tmp_path / "b" / "index"), kind.load(tmp_path / "b" / "index")):
        assert (type(loaded), loaded.method, loaded.size, loaded.width) == (kind, built.method, items, 8)
        for one, other in zip(loaded.search(vectors, 10), built.search(vectors, 10)):
            np.testing.assert_array_equal(one, other)
    kind.build(-vectors).save(tmp_path / "b" / "index")
    assert index.load(tmp_path / "b" / "index").search(-vectors[5:6], 1)[1] == 5
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["index"]  # nothing temporary is left behind


@KINDS
def test_a_damaged_index_is_refused(kind, tmp_path):
    folder = tmp_path / "index"
    with pytest.raises(UserError, match="holds no index"):
        kind.load(folder)
    built = kind.build(clustered(400, 8))
    built.save(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        if content:
            with pytest.raises(UserError, match="damaged"):
                index.load(folder)
        path.unlink()
        with pytest.raises(UserError, match="missing"):
            index.load(folder)
        path.write_bytes(content)
    index.load(folder)
    (folder / "scann_docids.pkl").write_bytes(b"")
    with pytest.raises(UserError, match=r"scann_docids.pkl was not written with it"):
        kind.load(folder)


def test_an_index_of_another_kind_and_a_folder_of_other_things_are_refused(tmp_path):
    ExactIndex.build(clustered(30, 4)).save(tmp_path / "index")
    with pytest.raises(UserError, match="kind 'exact', not 'scann'"):
        ScannIndex.load(tmp_path / "index")
    description = json.loads((tmp_path / "index" / "index.json").read_text())
    assert description["size"] == 30 and "vectors.npy" in description["files"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("dear to me")
    with pytest.raises(UserError, match="not overwritten"):
        ExactIndex.build(clustered(30, 4)).save(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_a_failed_save_keeps_the_old_index(tmp_path, monkeypatch):
    old = ExactIndex.build(clustered(30, 4))
    old.save(tmp_path / "index")
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        ExactIndex.build(clustered(50, 4)).save(tmp_path / "index")
    assert index.load(tmp_path / "index").size == 30
    assert len(list(tmp_path.iterdir())) == 1


def test_recall_by_hand():
    assert index.recall(np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 1, 9], [6, 5, 4]])) == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match="same queries"):
        index.recall(np.zeros((1, 3)), np.zeros((2, 3)))


def test_compare_reports_recall_and_throughput():
    vectors = clustered(400, 8)
    exact, approximate = ExactIndex.build(vectors), ScannIndex.build(vectors)
    result = index.compare(exact, approximate, vectors[1:101], 10)
    assert list(result) == ["recall@10", "exact_qps", "approximate_qps", "build_seconds", "method"]
    assert result["recall@10"] > 0.95 and min(result["exact_qps"], result["approximate_qps"]) > 100
    assert result["build_seconds"] == approximate.build_seconds > 0
    same = index.compare(exact, exact, vectors[1:11], 5)
    assert same["recall@5"] == 1 and same["method"] == "exact"
