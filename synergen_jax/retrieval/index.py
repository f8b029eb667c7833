"""Search for the items of largest inner product: exact, and approximate with ScaNN.

Both kinds of index keep one protocol. `vectors` is (V, D), row v the vector of item v; row 0, the padding item, is
never indexed and never returned, and nor is a row of zeros: nothing is known of that item, and a score of 0 would put it
before all items of negative score. Scores are inner products, best first.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
import tempfile
import time
import typing

import jax
import jax.numpy as jnp
import numpy as np

from synergen_jax.errors import UserError

_DESCRIPTION = "index.json"
_SUFFIXES = (".npy", ".pb", ".pbtxt", ".txt")  # what an index is made of; nothing that runs code when it is read
_CELLS = 2**25  # scores that one call of the exact search may hold: 128 MiB

_AH_FROM = 256  # fewer items than this: asymmetric hashing has too little to learn its 16 centres a block from
_TREE_FROM = 20_000  # fewer items than this: one pass of hashing over all of them beats a tree
_LEAVES_SHARE = 5  # of sqrt(V) leaves, search one in so many
_REORDER = 200  # candidates whose exact score is computed, of the first 10 or 50 results alike
_REORDER_PER_RESULT = 4
_THREADS_FROM = 512  # queries from which ScaNN's threads pay


class Index(typing.Protocol):
    """What retrieval needs of an index."""

    ids: np.ndarray  # (size,) int32, the items that can be returned
    size: int
    width: int  # D
    build_seconds: float

    @property
    def method(self) -> str:
        """In words, for reports."""
        ...

    @classmethod
    def build(cls, vectors: np.ndarray, ids: np.ndarray | None = None) -> typing.Self:
        """Indexes (V, D) vectors.

        Args:
          vectors: (V, D), taken as float32.
          ids: (V,) the item of each row; None: row v is item v. A row of item 0 is left out, and so are rows of zeros.

        Raises:
          UserError: a NaN or infinite vector, no item at all or none that is not zeros, or an item twice.
        """
        ...

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k items of largest inner product with each query, best first.

        Args:
          queries: (B, D), taken as float32.

        Returns:
          Scores (B, k) float32 and item ids (B, k) int32.

        Raises:
          UserError: k is not within 1 .. `size`, or the queries are not of the index's width, or not finite.
        """
        ...

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the index to a folder, which can be moved; an index that is there already is replaced."""
        ...

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> typing.Self:
        """Reads what `save` wrote.

        Raises:
          UserError: the folder is missing, incomplete, changed since, or holds another kind of index.
        """
        ...


class ExactIndex:
    """All inner products, in full float32, then the top k: the oracle. Equal scores: the earlier row first."""

    method = "exact"

    def __init__(self, vectors: np.ndarray, ids: np.ndarray):
        """Of checked vectors (V, D) and ids (V,); callers use `build` or `load`."""
        start = time.perf_counter()
        self.ids = ids
        self._vectors = jax.block_until_ready(jnp.asarray(vectors))
        self.size, self.width = vectors.shape
        self.build_seconds = time.perf_counter() - start

    @classmethod
    def build(cls, vectors: np.ndarray, ids: np.ndarray | None = None) -> typing.Self:
        return cls(*_checked(vectors, ids))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries = _checked_queries(queries, k, self)
        # Blocks of a power of two: few shapes to compile, bounded memory.
        most = max(1, _CELLS // self.size)
        block = 1 << min(most.bit_length() - 1, max(len(queries) - 1, 0).bit_length(), 10)
        wide = min(self.size, 1 << (k - 1).bit_length())
        scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int32)
        for start in range(0, len(queries), block):
            part = queries[start : start + block]
            padded = np.zeros((block, self.width), np.float32)
            padded[: len(part)] = part
            best = jax.device_get(_top_k(self._vectors, padded, wide))
            scores[start : start + block], rows[start : start + block] = (x[: len(part), :k] for x in best)
        return scores, self.ids[rows]

    def save(self, folder: str | pathlib.Path) -> None:
        with _written(folder, self, "exact") as temporary:
            np.save(temporary / "vectors.npy", np.asarray(self._vectors))
            np.save(temporary / "ids.npy", self.ids)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> typing.Self:
        folder, _ = _verified(folder, "exact")
        return cls.build(np.load(folder / "vectors.npy"), np.load(folder / "ids.npy"))


@functools.partial(jax.jit, static_argnums=2)
def _top_k(vectors, queries, k: int):
    return jax.lax.top_k(jnp.matmul(queries, vectors.T, precision=jax.lax.Precision.HIGHEST), k)


class ScannIndex:
    """ScaNN (Guo et al. 2020): anisotropic hashing, below a k-means tree where there are many items.

    | items | what is searched |
    |---|---|
    | fewer than 256 | everything, exactly: too few to train the hashing on |
    | fewer than 20,000 | the hashes of all items; the best 200 are scored exactly |
    | more | the hashes in one leaf of five, of about sqrt(V) leaves; the best 200 are scored exactly |

    From k = 50 on, 4 k are scored exactly in place of 200. ScaNN runs on the CPU.
    """

    def __init__(self, searcher, ids: np.ndarray, width: int, build_seconds: float):
        """Of a ScaNN searcher; callers use `build` or `load`."""
        self._searcher, self.ids = searcher, ids
        self.size, self.width, self.build_seconds = len(ids), width, build_seconds
        self._leaves, self._searched = _leaves(self.size)

    @property
    def method(self) -> str:
        if self.size < _AH_FROM:
            return f"scann brute force (fewer than {_AH_FROM} items)"
        if not self._leaves:
            return f"scann hashing, reorder {_REORDER}"
        return f"scann tree ({self._searched} of {self._leaves} leaves), hashing, reorder {_REORDER}"

    @classmethod
    def build(cls, vectors: np.ndarray, ids: np.ndarray | None = None) -> typing.Self:
        scann = load_scann()
        vectors, ids = _checked(vectors, ids)
        start = time.perf_counter()
        builder = scann.builder(vectors, 10, "dot_product")
        leaves, searched = _leaves(len(ids))
        if leaves:
            builder = builder.tree(leaves, searched, training_sample_size=400 * leaves)
        if len(ids) < _AH_FROM:
            builder = builder.score_brute_force()
        else:
            builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(_REORDER)
        with _silence():
            searcher = builder.build()
        return cls(searcher, ids, vectors.shape[1], time.perf_counter() - start)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        queries = _checked_queries(queries, k, self)
        if not len(queries):
            return np.empty((0, k), np.float32), np.empty((0, k), np.int32)
        search = self._searcher.search_batched
        if len(queries) >= _THREADS_FROM:
            search = self._searcher.search_batched_parallel
        reorder = min(self.size, max(_REORDER, _REORDER_PER_RESULT * k))
        # A leaf holds some sqrt(V) items: many results need more leaves than few do.
        searched = min(self._leaves, max(self._searched, math.ceil(reorder / self.size * self._leaves))) or None
        rows, scores = search(queries, k, reorder, searched)
        short = np.isnan(scores).any(axis=1)  # the leaves searched held fewer than k items
        if short.any():
            rows, scores = rows.copy(), scores.copy()
            rows[short], scores[short] = self._searcher.search_batched(queries[short], k, reorder, self._leaves)
        return scores, self.ids[rows]

    def save(self, folder: str | pathlib.Path) -> None:
        with _written(folder, self, "scann") as temporary:
            np.save(temporary / "ids.npy", self.ids)
            (temporary / "scann").mkdir()
            with _silence():
                self._searcher.serialize(str(temporary / "scann"), relative_path=True)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> typing.Self:
        scann = load_scann()
        folder, description = _verified(folder, "scann")
        if not np.load(folder / "scann" / "dataset.npy", mmap_mode="r").any(axis=1).all():
            raise UserError(
                f"index {folder}: holds items with a vector of zeros, which are left out now: build it anew"
            )
        with _silence():
            searcher = scann.load_searcher(str(folder / "scann"), assets_backcompat_shim=False)
        return cls(searcher, np.load(folder / "ids.npy"), description["width"], description["build_seconds"])


def load(folder: str | pathlib.Path) -> Index:
    """Reads an index of whichever kind `folder` holds."""
    _, description = _verified(folder)
    return {"exact": ExactIndex, "scann": ScannIndex}[description["kind"]].load(folder)


def recall(approximate_ids: np.ndarray, exact_ids: np.ndarray) -> float:
    """Mean share of the exact results, (B, k), that are among the approximate ones, (B, any)."""
    if len(approximate_ids) != len(exact_ids) or not exact_ids.size:
        raise ValueError(f"results {approximate_ids.shape} and {exact_ids.shape} are not of the same queries")
    found = [np.isin(exact, approximate).mean() for approximate, exact in zip(approximate_ids, exact_ids)]
    return float(np.mean(found))


def compare(exact: Index, approximate: Index, queries: np.ndarray, k: int = 10, repeats: int = 3) -> dict:
    """Recall and throughput of two indexes on the same batch of queries.

    Both answer the whole batch once unmeasured, then `repeats` times in turn; the median counts.

    Returns:
      {"recall@k", "exact_qps", "approximate_qps", "build_seconds", "method"}: queries a second, and the approximate
      index's time to build and description.
    """
    ids = {index: index.search(queries, k)[1] for index in (exact, approximate)}
    seconds = {exact: [], approximate: []}
    for _ in range(repeats):
        for index, spent in seconds.items():
            start = time.perf_counter()
            index.search(queries, k)
            spent.append(time.perf_counter() - start)
    return {
        f"recall@{k}": recall(ids[approximate], ids[exact]),
        "exact_qps": len(queries) / float(np.median(seconds[exact])),
        "approximate_qps": len(queries) / float(np.median(seconds[approximate])),
        "build_seconds": approximate.build_seconds,
        "method": approximate.method,
    }


def _leaves(size: int) -> tuple[int, int]:
    """Leaves of the tree, and how many of them a query searches; (0, 0) for no tree."""
    leaves = round(math.sqrt(size)) if size >= _TREE_FROM else 0
    return leaves, math.ceil(leaves / _LEAVES_SHARE)


def _checked(vectors: np.ndarray, ids: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and ids without item 0, and without items whose vectors are zeros."""
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise UserError(f"an index needs vectors of shape (items, width), not {vectors.shape}")
    ids = np.arange(len(vectors)) if ids is None else np.asarray(ids)
    if ids.shape != vectors.shape[:1]:
        raise UserError(f"{len(vectors)} vectors need as many ids, not {ids.shape}")
    vectors, ids = np.ascontiguousarray(vectors[ids != 0], np.float32), ids[ids != 0].astype(np.int32)
    if not len(ids):
        raise UserError("the catalogue is empty: an index needs at least one item beside id 0")
    if len(bad := ids[~np.isfinite(vectors).all(axis=1)]):
        raise UserError(f"{len(bad)} of {len(ids)} item vectors hold NaN or infinity, the first that of item {bad[0]}")
    unique, count = np.unique(ids, return_counts=True)
    if len(unique) < len(ids):
        raise UserError(f"item {unique[count > 1][0]} has more than one vector")
    known = vectors.any(axis=1)
    if not known.any():
        raise UserError(f"nothing is known of any of the {len(ids)} items: all their vectors are zeros")
    return (vectors, ids) if known.all() else (vectors[known], ids[known])


def _checked_queries(queries: np.ndarray, k: int, index: Index) -> np.ndarray:
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != index.width:
        raise UserError(f"queries of shape {queries.shape} do not fit an index of width {index.width}")
    if not 1 <= k <= index.size:
        raise UserError(f"{k} results were asked for, but the index holds {index.size} items")
    if not np.isfinite(queries).all():
        raise UserError("a query vector holds NaN or infinity")
    return queries


def load_scann() -> typing.Any:  # to a type checker, a builder's methods give texts
    """ScaNN's Python interface without TensorFlow, imported where it is needed.

    Raises:
      UserError: it cannot be loaded.
    """
    try:
        with _silence():
            from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise UserError(
            f"ScaNN cannot be loaded ({error}): install it with `pip install scann` (Linux on x86_64 or aarch64, "
            "Python up to 3.13), or use exact search"
        ) from None
    return scann_ops_pybind


@contextlib.contextmanager
def _silence():
    """Drops what native code writes to stderr: ScaNN logs its progress there and has no switch for it."""
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _written(folder: str | pathlib.Path, index: Index, kind: str):
    """A temporary folder that takes the place of `folder` once it is complete."""
    folder = pathlib.Path(os.path.abspath(folder))
    if (
        folder.exists()
        and not (folder / _DESCRIPTION).is_file()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise UserError(f"{folder} exists and is no index: it is not overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new = temporary / "new"
        new.mkdir()
        yield new
        description = {
            "kind": kind,
            "method": index.method,
            "size": index.size,
            "width": index.width,
            "build_seconds": index.build_seconds,
            "files": _digests(new),
        }
        (new / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(temporary / "old")  # a folder cannot be renamed onto one with content
        new.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _verified(folder: str | pathlib.Path, kind: str | None = None) -> tuple[pathlib.Path, dict]:
    """An index's folder and description, once its files are found to be those that were written."""
    folder = pathlib.Path(folder)
    path = folder / _DESCRIPTION
    if not path.is_file():
        raise UserError(f"{folder} holds no index: {_DESCRIPTION} is missing; build the index first")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        files, found = description["files"], description["kind"]
        _ = int(description["size"]), int(description["width"]), float(description["build_seconds"])  # may fail
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): build the index anew") from None
    if found not in ("exact", "scann") or kind not in (None, found):
        raise UserError(f"{folder} holds an index of kind {found!r}, not {kind or 'exact or scann'!r}")
    present = _digests(folder)
    for name in sorted(files.keys() | present.keys()):
        if files.get(name) != present.get(name):
            what = (
                "is missing"
                if name not in present
                else "was not written with it"
                if name not in files
                else "is damaged"
            )
            raise UserError(f"index {folder}: {name} {what}: build the index anew")
        if not name.endswith(_SUFFIXES):  # ScaNN unpickles a file of ids if it finds one
            raise UserError(f"index {folder}: {name} is no part of an index")
    return folder, description


def _digests(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but the description, by relative name."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / _DESCRIPTION:
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests
