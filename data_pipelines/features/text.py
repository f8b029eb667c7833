"""Text encoders: from texts to frozen vectors of unit length, behind one small interface.

`make` gives an encoder by name: "tfidf" or "tfidf:WIDTH", fitted to the texts of the items, or "st:NAME_OR_DIR", any
sentence-transformers model. A log keeps its encoder (`save`, `load`), so that queries typed later, and items that come
later, get vectors of the same space. Nothing is pickled.
"""

from __future__ import annotations

import collections
import hashlib
import io
import json
import pathlib
import re
import tempfile
import typing
import unicodedata

import numpy as np
from tqdm import tqdm

from data_pipelines.files import disk
from synergen_jax.errors import UserError

WIDTH = 256  # of "tfidf": a query's own film is among the ten nearest for 79% on MovieLens-100K, with 128 for 77%
MAX_TERMS = 200_000  # the most frequent ones; 200 MB of components at the default width
BATCH = 1024  # texts
FORMAT = 1
FILE = "encoder.json"


class Encoder(typing.Protocol):
    """Texts to vectors."""

    name: str  # what `make` takes
    width: int
    fingerprint: str  # two encoders of one fingerprint give the same vectors

    def encode(self, texts: typing.Sequence[str]) -> np.ndarray:
        """Vectors of unit length, float32 (n, width); a text of which nothing is known has a row of zeros."""
        ...


def make(name: str, corpus: typing.Sequence[str]) -> Encoder:
    """The encoder of this name; `corpus` is what TF-IDF is fitted to.

    Raises:
      UserError: there is no such encoder, its package is missing, or its model cannot be read.
    """
    kind, rest = _parse(name)
    return TfIdf.fit(corpus, int(rest)) if kind == "tfidf" else SentenceTransformers(rest)


def identity(name: str) -> str:
    """Tells whether a name still stands for the same encoder, without loading it: a local model by its files' bytes.

    >>> identity("tfidf") == identity("tfidf:256"), identity("st:some/model")
    (True, 'st:some/model')
    """
    kind, rest = _parse(name)
    folder = pathlib.Path(rest).expanduser()
    return f"st:{folder.resolve()} {_folder_hash(folder)}" if kind == "st" and folder.is_dir() else f"{kind}:{rest}"


def _parse(name: str) -> tuple[str, str]:
    kind, _, rest = name.partition(":")
    if name == "tfidf":
        return "tfidf", str(WIDTH)
    if kind == "tfidf" and rest.isdecimal() and int(rest):
        return kind, str(int(rest))
    if kind == "st" and rest:
        return kind, rest
    raise UserError(f"text encoder {name!r} is none of tfidf, tfidf:WIDTH and st:NAME_OR_DIRECTORY")


def words(text: str) -> list[str]:
    """Words in lower case, without accents and apostrophes.

    >>> words("Schindler's Liste: Les Misérables (1995)")
    ['schindlers', 'liste', 'les', 'miserables', '1995']
    """
    text = unicodedata.normalize("NFKD", text.lower())
    return re.findall(r"[^\W_]+", "".join(c for c in text if c not in "'’`" and not unicodedata.combining(c)))


def terms(text: str) -> list[str]:
    """Words, and their runs of three characters, which forgive typing errors and endings.

    >>> terms("Toy")
    ['toy', '~^to', '~toy', '~oy$']
    """
    found = words(text)
    marked = [f"^{word}$" for word in found]
    return found + [f"~{word[i : i + 3]}" for word in marked for i in range(len(word) - 2)]


class TfIdf:
    """TF-IDF over `terms`, reduced by a truncated SVD: scikit-learn fits it, numpy and scipy alone apply it.

    The SVD's axes are weighed by 1 / sqrt(singular value), half-way to whitening, so that genres, which many texts
    share, do not drown the words of titles.
    """

    def __init__(self, vocabulary: typing.Sequence[str], idf: np.ndarray, components: np.ndarray):
        """Terms in the order of columns, their weights (terms,), and the reduction (terms, width), float32."""
        self.vocabulary, self.idf, self.components = list(vocabulary), idf, components
        self.width = components.shape[1]
        self.name = f"tfidf:{self.width}"
        self._column = {term: i for i, term in enumerate(self.vocabulary)}
        digest = hashlib.sha256(json.dumps(self.vocabulary).encode())
        for array in (idf, components):
            digest.update(np.ascontiguousarray(array, "<f4").tobytes())
        self.fingerprint = digest.hexdigest()

    @classmethod
    def fit(cls, corpus: typing.Sequence[str], width: int) -> TfIdf:
        """Fits to texts. Where they are too few or too alike for `width` axes, the columns that are left are zero."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = [text for text in corpus if words(text)]
        if not texts:
            return cls([], np.zeros(0, np.float32), np.zeros((0, width), np.float32))
        vectorizer = TfidfVectorizer(
            analyzer=terms,  # pyright: ignore[reportArgumentType]  # no stubs: takes the default's type for all there is
            sublinear_tf=True,
            max_features=MAX_TERMS,
        )
        matrix = vectorizer.fit_transform(texts)
        with np.errstate(invalid="ignore"):  # the variance of texts that are all alike, which is not used
            svd = TruncatedSVD(min(width, *matrix.shape), random_state=0).fit(matrix)
        size = svd.singular_values_
        kept = size > 1e-5 * size[0]  # beyond the rank there is but noise
        components = np.zeros((matrix.shape[1], width), np.float32)
        components[:, : kept.sum()] = np.asarray(svd.components_)[kept].T / np.sqrt(size[kept])
        return cls(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_.astype(np.float32), components)

    def encode(self, texts: typing.Sequence[str]) -> np.ndarray:
        """See `Encoder`."""
        import scipy.sparse

        values, columns, ends = [], [], [0]
        for text in texts:
            counts = collections.Counter(self._column[term] for term in terms(text) if term in self._column)
            columns += counts.keys()
            values += counts.values()
            ends.append(len(columns))
        columns = np.array(columns, np.int64)
        values = (1 + np.log(np.array(values, np.float64))) * self.idf[columns]
        found = scipy.sparse.csr_array((values, columns, ends), shape=(len(texts), len(self.vocabulary)))
        return _unit(found @ self.components)

    def save(self, folder: pathlib.Path) -> None:
        """Writes its arrays."""
        (folder / "vocabulary.json").write_text(json.dumps(self.vocabulary, ensure_ascii=False), encoding="utf-8")
        disk.save(folder / "idf.npy", self.idf)
        disk.save(folder / "components.npy", self.components)

    @classmethod
    def read(cls, folder: pathlib.Path) -> TfIdf:
        """Reads what `save` wrote."""
        vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        return cls(vocabulary, np.load(folder / "idf.npy"), np.load(folder / "components.npy"))


class SentenceTransformers:
    """A sentence-transformers model, by its name on the Hugging Face hub or its folder; needs the extra `[text]`."""

    def __init__(self, model: str):
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise UserError(
                f"text encoder 'st:{model}' needs sentence-transformers: pip install 'synergen-jax[text]'"
            ) from None
        folder = pathlib.Path(model).expanduser()
        local = folder.is_dir()
        if not local and (folder.is_absolute() or model.startswith((".", "~"))):
            raise UserError(f"text encoder 'st:{model}': there is no such folder")
        try:
            self._model = SentenceTransformer(str(folder.resolve()) if local else model)
        except (
            Exception
        ) as error:  # the hub's client, the weights' reader and the tokeniser all have errors of their own
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"text encoder 'st:{model}' cannot be loaded ({type(error).__name__}: {reason})") from None
        self.name = f"st:{folder.resolve()}" if local else f"st:{model}"
        self.width = len(self._model.encode("one"))
        if local:  # wherever it lies
            of = _folder_hash(folder)
        else:  # a name may get new weights
            config = getattr(getattr(self._model[0], "auto_model", None), "config", None)
            of = f"{model} {getattr(config, '_commit_hash', None)}"
        self.fingerprint = hashlib.sha256(of.encode()).hexdigest()

    def encode(self, texts: typing.Sequence[str]) -> np.ndarray:
        """See `Encoder`."""
        found = np.zeros((len(texts), self.width), np.float32)
        rows = [i for i, text in enumerate(texts) if text.strip()]
        if rows:
            found[rows] = self._model.encode([texts[i] for i in rows], batch_size=64, show_progress_bar=False)
        return _unit(found)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length; rows of zeros stay."""
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(length > 1e-9, length, np.inf)).astype(np.float32)


def _folder_hash(folder: pathlib.Path) -> str:
    """sha256 over the names and bytes of all files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


# --- on disk --------------------------------------------------------------------------------------------------


def save(encoder: Encoder, folder: str | pathlib.Path) -> None:
    """Writes an encoder to a new folder; of a sentence-transformers model its name and fingerprint alone."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    if isinstance(encoder, TfIdf):
        encoder.save(folder)
    about = {"format": FORMAT, "name": encoder.name, "width": encoder.width, "fingerprint": encoder.fingerprint}
    (folder / FILE).write_text(json.dumps(about), encoding="utf-8")


def load(folder: str | pathlib.Path) -> Encoder:
    """The encoder that `save` wrote.

    Raises:
      UserError: the folder is damaged, or a sentence-transformers model is gone or is no longer the same.
    """
    folder = pathlib.Path(folder)
    try:
        about = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise UserError(f"{folder}: format {about['format']} of text encoder, this version reads {FORMAT}")
        kind, rest = _parse(about["name"])
        encoder = TfIdf.read(folder) if kind == "tfidf" else SentenceTransformers(rest)
        same = encoder.fingerprint == about["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{folder}: damaged ({type(error).__name__}: {error}); prepare the log again") from None
    if not same:
        raise UserError(
            f"{folder}: {about['name']} is no longer the model that encoded this log; prepare the log again"
        )
    return encoder


def has_words(texts: typing.Iterable[str]) -> bool:
    """Whether there is a word in any of the texts."""
    return any(map(words, texts))


def check_words(name: str, items: typing.Sequence[str], queries: typing.Sequence[str]) -> None:
    """Refuses to encode where there is nothing to encode: the encoder `name` was asked for."""
    if not has_words(items) and not has_words(queries):
        raise UserError(f"--text {name}: no item has a title or text, and no query a word: leave --text out")


def matrices(
    name: str, items: typing.Sequence[str], queries: typing.Sequence[str], cache: str | pathlib.Path
) -> tuple[Encoder, dict[str, np.ndarray]]:
    """An encoder made for a log, and the float16 matrices of its texts: {"item": ..., "query": ...}.

    It is fitted to the texts of items, and to those queries of which these would tell nothing.

    Args:
      name: what `make` takes. items, queries: texts, "" at 0; of a kind that has no words there is no matrix.
    """
    known: set[str] = set()
    for item in items if has_words(queries) else ():
        known.update(terms(item))
    encoder = make(name, [*items[1:], *(query for query in queries[1:] if known.isdisjoint(terms(query)))])
    texts = {"item": items, "query": queries}
    return encoder, {kind: encoded(encoder, values, cache) for kind, values in texts.items() if has_words(values)}


def encoded(encoder: Encoder, texts: typing.Sequence[str], cache: str | pathlib.Path) -> np.ndarray:
    """The vectors of texts, float16 (n, width), from the folder `cache` if they are there, or else put there.

    A file is named by the encoder's fingerprint and all texts, so a stale one is never read; it ends with a checksum,
    so a damaged one is made again.
    """
    key = hashlib.sha256(json.dumps([encoder.fingerprint, encoder.width, list(texts)]).encode()).hexdigest()
    path = pathlib.Path(cache) / f"{key}.npy"
    found = _cached(path)
    if found is None or found.shape != (len(texts), encoder.width):
        found = np.zeros((len(texts), encoder.width), np.float16)
        with tqdm(total=len(texts), desc=f"encode {encoder.name}", unit=" texts", disable=None) as bar:
            for start in range(0, len(texts), BATCH):
                batch = texts[start : start + BATCH]
                found[start : start + BATCH] = encoder.encode(batch)
                bar.update(len(batch))
        _write_cache(path, found)
    return found


def _cached(path: pathlib.Path) -> np.ndarray | None:
    try:
        data = path.read_bytes()
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            return None
        return np.load(io.BytesIO(data[:-32]))
    except (OSError, ValueError):
        return None


def _write_cache(path: pathlib.Path, matrix: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, matrix)
    data = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            part = pathlib.Path(folder) / path.name
            part.write_bytes(data + hashlib.sha256(data).digest())
            part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
