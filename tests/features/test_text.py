"""Text encoders: TF-IDF against scikit-learn's own, degenerate corpora, sentence-transformers, and the cache."""

import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.features import text
from synergen_jax.errors import UserError

ADJECTIVES, NOUNS = (
    ("red", "blue", "old", "new", "last", "lost"),
    ("ship", "river", "garden", "city", "winter", "train"),
)
CORPUS = [f"The {a} {n} {1980 + i} {'Comedy' if i % 2 else 'Drama'}" for i, a in enumerate(ADJECTIVES) for n in NOUNS]


def test_a_text_is_nearest_to_the_queries_that_it_holds():
    encoder = text.make("tfidf:16", CORPUS)
    assert (encoder.name, encoder.width) == ("tfidf:16", 16)
    items, queries = encoder.encode(CORPUS), encoder.encode(["LOST city", "gardén blue", "wintr old"])
    assert items.dtype == np.float32 and items.shape == (36, 16)
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, atol=1e-6)
    nearest = [CORPUS[i] for i in (queries @ items.T).argmax(axis=1)]
    assert nearest == ["The lost city 1985 Comedy", "The blue garden 1981 Comedy", "The old winter 1982 Drama"]


def test_texts_without_a_known_term_are_zero():
    encoder = text.make("tfidf:4", CORPUS)
    assert not encoder.encode(["", "  ", "!?", "qqq"]).any()
    assert encoder.encode([]).shape == (0, 4)


def test_weights_are_those_of_scikit_learn():
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=text.terms, sublinear_tf=True)
    matrix = vectorizer.fit_transform(CORPUS)
    full = text.TfIdf(vectorizer.get_feature_names_out(), vectorizer.idf_, np.eye(matrix.shape[1], dtype=np.float32))
    np.testing.assert_allclose(full.encode(CORPUS), matrix.toarray(), atol=1e-6)
    fitted = text.make(f"tfidf:{len(CORPUS)}", CORPUS)  # all axes: the SVD turns and weighs, and loses nothing
    assert np.linalg.matrix_rank(fitted.encode(CORPUS), tol=1e-4) == np.linalg.matrix_rank(matrix.toarray(), tol=1e-4)


@pytest.mark.parametrize("corpus", [[], ["", "!"], ["a"], ["one text"], ["same words"] * 5, ["a b", "", "b c", "c a"]])
def test_degenerate_corpora(corpus):
    encoder = text.make("tfidf:8", corpus)
    vectors = encoder.encode(["", *corpus])
    assert vectors.shape == (1 + len(corpus), 8) and np.isfinite(vectors).all()
    known = [bool(text.words(one)) for one in ["", *corpus]]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), known, atol=1e-6)


def test_fitting_again_gives_the_same(tmp_path):
    first, second = text.make("tfidf", CORPUS), text.make("tfidf", CORPUS)
    assert first.width == text.WIDTH and first.fingerprint == second.fingerprint
    assert text.make("tfidf", CORPUS[1:]).fingerprint != first.fingerprint


def test_round_trip_on_disk_needs_no_scikit_learn(tmp_path):
    encoder = text.make("tfidf:8", CORPUS)
    text.save(encoder, tmp_path / "saved")
    assert sorted(path.suffix for path in (tmp_path / "saved").iterdir()) == [".json", ".json", ".npy", ".npy"]
    code = (
        "import sys, json; from data_pipelines.features import text\n"
        f"encoder = text.load({str(tmp_path / 'saved')!r})\n"
        "vector = encoder.encode(['the lost city']).tolist()\n"
        "print(json.dumps([encoder.name, encoder.fingerprint, vector, 'sklearn' in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    name, fingerprint, vector, heavy = json.loads(found)
    assert (name, fingerprint, heavy) == ("tfidf:8", encoder.fingerprint, False)
    np.testing.assert_array_equal(np.array(vector, np.float32), encoder.encode(["the lost city"]))


def test_a_damaged_encoder_is_refused(tmp_path):
    encoder = text.make("tfidf:8", CORPUS)

    def damaged(file, change):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        text.save(encoder, folder)
        change(folder / file)
        with pytest.raises(UserError, match="prepare the log again"):
            text.load(folder)

    damaged("components.npy", lambda path: path.write_bytes(path.read_bytes()[:-5]))
    damaged("components.npy", lambda path: np.save(path, encoder.components * 2))
    damaged("vocabulary.json", lambda path: path.write_text('["a"'))
    damaged("vocabulary.json", lambda path: path.write_text('["a"]'))
    damaged("idf.npy", lambda path: path.unlink())
    damaged("encoder.json", lambda path: path.write_text("[]"))


@pytest.mark.parametrize("name", ["", "bert", "tfidf:", "tfidf:0", "tfidf:-3", "tfidf:x", "st:", "st"])
def test_unknown_encoders(name):
    with pytest.raises(UserError, match="is none of tfidf, tfidf:WIDTH and st:NAME_OR_DIRECTORY"):
        text.identity(name)
    with pytest.raises(UserError, match="is none of"):
        text.make(name, CORPUS)


def test_queries_without_a_word_of_an_item_are_not_lost(tmp_path):
    items, queries = ["", "red dress", ""], ["", "red", "blauer hut", "?"]
    encoder, found = text.matrices("tfidf:8", items, queries, tmp_path)
    assert found["item"].any(axis=1).tolist() == [False, True, False]
    assert found["query"].any(axis=1).tolist() == [False, True, True, False]
    assert "hut" in encoder.vocabulary
    same, _ = text.matrices("tfidf:8", items, ["", "red", "dress", "reds"], tmp_path)  # of each, something is known
    assert same.fingerprint == text.make("tfidf:8", items[1:]).fingerprint
    assert text.matrices("tfidf:8", items, [""], tmp_path)[1].keys() == {"item"}
    assert text.matrices("tfidf:8", [""], queries, tmp_path)[1].keys() == {"query"}


def test_the_cache(tmp_path):
    class Counting(text.TfIdf):
        texts = 0

        def encode(self, texts):
            self.texts += len(texts)
            return super().encode(texts)

    encoder = Counting.fit(CORPUS, 8)
    texts = ["", *CORPUS] * 60  # more than one batch
    first = text.encoded(encoder, texts, tmp_path / "cache")
    assert first.dtype == np.float16 and not first[0].any() and encoder.texts == len(texts) > text.BATCH
    np.testing.assert_array_equal(first, text.TfIdf.encode(encoder, texts).astype(np.float16))
    encoder.texts = 0
    np.testing.assert_array_equal(text.encoded(encoder, texts, tmp_path / "cache"), first)
    assert encoder.texts == 0

    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    np.testing.assert_array_equal(np.load(file), first)
    for broken in (whole[:-1], whole[:200], b"", whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]):
        file.write_bytes(broken)
        encoder.texts = 0
        np.testing.assert_array_equal(text.encoded(encoder, texts, tmp_path / "cache"), first)
        assert encoder.texts == len(texts) and file.read_bytes() == whole

    encoder.texts = 0
    text.encoded(encoder, [*texts[:-1], "other"], tmp_path / "cache")  # stale by its text, then by its encoder
    assert encoder.texts == len(texts)
    other = Counting.fit(CORPUS[1:], 8)
    text.encoded(other, texts, tmp_path / "cache")
    assert other.texts == len(texts) and len(list((tmp_path / "cache").iterdir())) == 3


def test_sentence_transformers_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"pip install 'synergen-jax\[text\]'"):
        text.make("st:some/model", CORPUS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_local_sentence_transformers_model(tmp_path):
    pytest.importorskip("sentence_transformers")
    import tokenizers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0, "toy": 1, "story": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    module = StaticEmbedding(tokenizer, embedding_weights=weights)
    SentenceTransformer(modules=[module], device="cpu").save(str(tmp_path / "model"))
    name = f"st:{tmp_path / 'model'}"

    encoder = text.make(name, [])
    found = encoder.encode(["toy", "", "toy story"])
    expected = np.stack([weights[1], np.zeros(8), weights[1] + weights[2]])
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    text.save(encoder, tmp_path / "saved")
    np.testing.assert_array_equal(text.load(tmp_path / "saved").encode(["story"]), encoder.encode(["story"]))

    before = text.identity(name)
    (tmp_path / "model" / "README.md").write_text("changed")
    assert text.identity(name) != before
    with pytest.raises(UserError, match="is no longer the model that encoded this log"):
        text.load(tmp_path / "saved")
    with pytest.raises(UserError, match="there is no such folder"):
        text.make(f"st:{tmp_path / 'none'}", [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded"):
        text.make(f"st:{tmp_path / 'empty'}", [])
