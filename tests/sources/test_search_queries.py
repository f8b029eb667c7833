"""Generated queries: from metadata alone, by seed, and never reused under other settings."""

import collections
import itertools

import numpy as np
import pytest
from small_movielens import files_100k, small  # noqa: F401  (a fixture: what passes for MovieLens)

from data_pipelines.event_log.event_log import EventLog
from data_pipelines.features import text
from data_pipelines.sources import interactions, movielens, prepare, search_queries
from synergen_jax.errors import UserError

TITLES = {
    "1": "Usual Suspects, The (1995)",
    "2": "54 (1998)",
    "54": "54 and Counting (1999)",  # holds its own id
    "7": "Land Before Time III (1995) (V)",
    "8": "2001: A Space Odyssey (1968)",
    "9": "Gladiator (2000)",
}
GENRES = {"1": ("Crime", "Thriller"), "2": ("Drama",), "54": (), "7": ("Animation", "Children's"), "8": ("Sci-Fi",)}


def plain(users=40, events=50, titles=TITLES):
    rng = np.random.default_rng(0)
    items = [*TITLES, "99"]  # of 99 nothing is known: its title is its id
    data = interactions.Interactions(
        users=[f"u{i}" for i in range(users) for _ in range(events)],
        items=[*items, *rng.choice(items, users * events - len(items)).tolist()],
        times=np.arange(1, users * events + 1, dtype=np.int64),
        ratings=None,
        titles=titles,
        tags={"genres": GENRES},
        texts={item: movielens.text(title, GENRES.get(item, ())) for item, title in titles.items()},
    )
    return interactions.log_parts(data)


def queries_of(parts):
    """All searches: (item id, text)."""
    return [
        (parts["item_ids"][item], parts["queries"][query])
        for user in parts["users"]
        for item, query in zip(user["item"].tolist(), user["query"].tolist())
        if query
    ]


def test_queries_come_from_the_item_that_was_met():
    parts = plain()
    made = search_queries.add(parts, share=0.5, seed=3)
    assert made["queries"][0] == "" and made["queries"][1:] == sorted(set(made["queries"][1:]))
    found = queries_of(made)
    assert {query for _, query in found} == set(made["queries"][1:])  # none is there for nothing
    texts = dict(zip(parts["item_ids"], parts["item_texts"]))
    for item, query in found:
        assert query == " ".join(text.words(query)) and set(query.split()) <= set(text.words(texts[item]))
        assert item not in query.split()
        assert set(query.split()) < set(text.words(texts[item])), "never all that is known"
    assert {item for item, _ in found} == set(TITLES)  # and none of 99, of which there is but the id
    for before, after in zip(parts["users"], made["users"]):
        assert not before["query"].any()
        assert all(np.array_equal(before[name], after[name]) for name in before if name != "query")


def test_templates():
    made = search_queries.options("Usual Suspects, The (1995)", ("Film-Noir", "Children's"), "12")
    assert set(made) == set(search_queries.TEMPLATES)
    assert made["word"] == ["usual", "suspects"] and made["words"] == ["the usual", "usual suspects"]
    assert made["genre"] == ["film noir", "childrens"] and made["genres"] == ["film noir childrens"]
    assert made["decade genre"] == ["90s film noir", "90s childrens"]
    assert "usual 1995" in made["word year"] and "suspects childrens" in made["word genre"]
    assert "90s childrens usual" in made["decade genre word"]
    assert search_queries.options("Gladiator (2000)", ("Action",), "9")["decade genre"] == ["2000s action"]
    assert not any(search_queries.options("unknown", ("unknown",), "unknown").values())
    long = search_queries.options("One Two Three Four Five Six Seven", (), "1")["title"]
    assert long == ["one two three four five"]


def test_share_and_seed():
    parts = plain()
    few, many, other = (search_queries.add(parts, share=s, seed=i) for s, i in ((0.2, 0), (0.6, 0), (0.2, 1)))
    texts = lambda made: [[made["queries"][q] for q in user["query"]] for user in made["users"]]
    assert texts(few) == texts(search_queries.add(parts, share=0.2, seed=0))
    assert texts(few) != texts(other)
    known = sum(parts["item_ids"][item] != "99" for user in parts["users"] for item in user["item"])
    assert abs(len(queries_of(few)) / known - 0.2) < 0.03
    flat = lambda made: itertools.chain.from_iterable(texts(made))
    assert all(a in ("", b) for a, b in zip(flat(few), flat(many)))  # the searches of the smaller share are kept
    longer = dict(
        parts,
        users=[{k: v if k == "user_id" else np.append(v, v[:5]) for k, v in user.items()} for user in parts["users"]],
    )
    assert all(b[: len(a)] == a for a, b in zip(texts(few), texts(search_queries.add(longer, share=0.2, seed=0))))
    variety = collections.defaultdict(set)
    for item, query in queries_of(many):
        variety[item].add(query)
    assert len(variety["1"]) > 10


@pytest.mark.parametrize(
    "share, seed, reason", [(0, 0, "share"), (1.1, 0, "share"), (np.nan, 0, "share"), (0.5, -1, "seed")]
)
def test_wrong_settings(share, seed, reason):
    with pytest.raises(UserError, match=reason):
        search_queries.add(plain(), share=share, seed=seed)


def test_prepared_log_says_what_it_is_and_follows_its_settings(tmp_path):
    files = files_100k(tmp_path / "files")
    make = lambda name="ml-100k-search", **settings: prepare.prepare(name, source=files, data_dir=tmp_path, **settings)
    log = make(query_share=0.9)
    assert log.name == "ml-100k-search" and len(log.queries) > 1
    assert log.source["generated_queries"] is True
    assert log.source["queries"] == {"templates": len(search_queries.TEMPLATES), "share": 0.9, "seed": 0}
    assert (
        log.query_note == "queries are generated from metadata (9 templates, 90% of events, seed 0), nobody typed them"
    )
    width = text.WIDTH
    assert log.spec.item_matrices[-1] == ("text", width) and log.spec.query_matrices == (("text", width),)
    assert log.item_texts[4] == "Seven (Se7en) 1995 1990s 90s Crime Thriller"
    encoder = EventLog.load(log.path).text_encoder()
    for texts, matrix in ((log.item_texts, log.item_matrices["text"]), (log.queries, log.query_matrices["text"])):
        np.testing.assert_allclose(encoder.encode(texts), matrix.astype(np.float32), atol=1e-3)

    when = lambda: (log.path / "log.json").stat().st_mtime_ns
    made = when()
    assert make(query_share=0.9).fingerprint == log.fingerprint and when() == made
    assert make(query_share=0.9, encoder="tfidf:256").fingerprint == log.fingerprint and when() == made
    for settings in ({"query_share": 0.8}, {"query_share": 0.8, "seed": 1}, {"encoder": "none"}):
        made, log = when(), make(**settings)
        assert when() > made, settings
    assert log.source["settings"] == {"share": 0.3, "seed": 0} and log.text_encoder() is None
    assert "text" not in log.item_matrices and not log.query_matrices


def test_plain_logs_stay_as_they_are(tmp_path):
    files = files_100k(tmp_path / "files")
    make = lambda **settings: prepare.prepare("ml-100k", source=files, data_dir=tmp_path, **settings)
    log = make()
    assert not log.query_note and log.text_encoder() is None and set(log.item_matrices) == {"genres"}
    with_text = make(encoder="tfidf:8")
    assert with_text.fingerprint != log.fingerprint and with_text.item_matrices["text"].shape == (5, 8)
    assert not with_text.query_matrices and with_text.text_encoder().width == 8
    assert make().fingerprint == log.fingerprint
    for settings in ({"query_share": 0.3}, {"seed": 0}):
        with pytest.raises(UserError, match="ml-100k has no generated queries"):
            make(**settings)
