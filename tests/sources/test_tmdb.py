"""Queries of TMDB's keywords and actors: on the events of ml-1m, by seed, and from a file that is checked."""

import gzip
import re

import numpy as np
import pytest
from small_movielens import files_1m, small  # noqa: F401  (a fixture: what passes for MovieLens)

from data_pipelines.features import text
from data_pipelines.sources import prepare, search_queries, tmdb
from synergen_jax.cli import main
from synergen_jax.errors import UserError

HEAD = "movieId,title,tmdb_overview,tmdb_top_cast,tmdb_keywords\n"
SEVEN = '7,Seven (Se7en) (1995),"He said ""no"",\nthen left.","Brad Pitt, Morgan  Freeman","serial killer, rain, "\n'
LES = '2,"Misérables, Les (1995)",,,\n'  # neither keywords nor actors
LAND = '3,Land Before Time III (1995) (V),,,"3 friends, dinosaur"\n'
OTHER = "900,Not of ours (1999),,Nobody,nothing\n"  # and film 1 has no row
FILMS = HEAD + SEVEN + LES + LAND + OTHER


def film(cast=(), keywords=()):
    return tmdb.Film("", "", tuple(cast), tuple(keywords))


@pytest.fixture
def make(tmp_path):
    """Prepares the log, from films and with settings."""
    source = files_1m(tmp_path / "files")
    (path := tmp_path / "films.csv").write_text(FILMS, encoding="utf-8")

    def prepared(content=None, *, name="ml-1m-tmdb", **settings):
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return prepare.prepare(name, source=source, data_dir=tmp_path, **{"films": path, **settings})

    return prepared


def searches(log):
    """All searches: (item id, text)."""
    return [
        (log.item_ids[item], log.queries[query])
        for user in log
        for item, query in zip(user["item"].tolist(), user["query"].tolist())
        if query
    ]


def test_templates():
    films = {"6": film(["Al Pacino", "Jean-Claude Van Damme"], ["Heist", "Los Angeles", "crime", "a b c d e f"])}
    made = tmdb.options(films, "Heat (1995)", ["Crime", "Film-Noir"], "6")
    assert set(made) == set(tmdb.TEMPLATES) and not set(tmdb.TEMPLATES) & set(search_queries.TEMPLATES)
    assert sum(tmdb.TEMPLATES.values()) == pytest.approx(1)
    assert made["keyword"] == ["heist", "los angeles", "crime"], "nobody types six words"
    assert made["two keywords"] == ["heist los angeles", "heist crime", "los angeles crime"]
    assert made["actor"] == ["al pacino", "jean claude van damme"]
    assert made["actor genre"] == ["al pacino crime", "al pacino film noir", "jean claude van damme crime"]
    assert "heist crime" in made["keyword genre"] and "crime crime" not in made["keyword genre"]
    assert made["decade keyword"] == ["90s heist", "90s los angeles", "90s crime"]
    assert "al pacino los angeles" in made["actor keyword"]


def test_a_film_of_which_tmdb_tells_nothing_has_the_queries_of_its_title():
    known = ("Heat (1995)", ["Crime"], "6")
    for films in ({}, {"6": film()}, {"6": film(["!"], ["-"])}, {"6": film(keywords=["6 men"])}):
        assert tmdb.options(films, *known) == search_queries.options(*known)
    actors = tmdb.options({"6": film(["Al Pacino"])}, "Heat", [], "6")
    assert actors["actor"] == ["al pacino"] and not any(made for name, made in actors.items() if name != "actor")


def test_the_events_are_those_of_ml_1m_and_the_texts_know_more(make):
    log, plain = make(query_share=1.0), make(name="ml-1m-search", films=None, query_share=1.0)
    assert (log.name, log.user_ids, log.item_ids, log.item_titles) == (
        "ml-1m-tmdb",
        plain.user_ids,
        plain.item_ids,
        plain.item_titles,
    )
    assert (log.actions, log.labels, log.item_columns) == (plain.actions, plain.labels, plain.item_columns)
    assert np.array_equal(log.item_matrices["genres"], plain.item_matrices["genres"])
    for mine, theirs in zip(log, plain):
        assert all(np.array_equal(mine[name], theirs[name]) for name in mine if name != "query")
    more = "Brad Pitt Morgan Freeman serial killer rain"
    assert log.item_texts == [
        *plain.item_texts[:3],
        f"{plain.item_texts[3]} 3 friends dinosaur",
        f"{plain.item_texts[4]} {more}",
    ]
    found = searches(log)
    texts = dict(zip(log.item_ids, log.item_texts))
    assert {item for item, _ in found} == {"1", "2", "3", "7"}
    for item, query in found:
        assert query == " ".join(text.words(query)) and set(query.split()) <= set(text.words(texts[item]))
        assert item not in query.split()
    seven = {"7": film(["Brad Pitt", "Morgan Freeman"], ["serial killer", "rain"])}
    made = tmdb.options(seven, "Seven (Se7en) (1995)", ["Crime", "Thriller"], "7")
    assert {query for item, query in found if item == "7"} <= {query for texts in made.values() for query in texts}


def test_the_log_says_what_it_is_and_follows_its_settings(make, tmp_path):
    log = make(query_share=0.9)
    assert log.query_note == (
        "queries are generated from TMDB keywords and actors (7 templates, 90% of events, seed 0), nobody typed them"
    )
    assert log.source["queries"] == {
        "of": "TMDB keywords and actors",
        "templates": 7,
        "films_by_title_and_genres": 2,
        "share": 0.9,
        "seed": 0,
    }
    assert log.source["films"] == str(tmp_path / "films.csv") and len(log.source["settings"]["films"]) == 64
    assert log.spec.query_matrices == (("text", text.WIDTH),)
    when = lambda: (log.path / "log.json").stat().st_mtime_ns
    made = when()
    assert make(query_share=0.9).fingerprint == log.fingerprint and when() == made
    (tmp_path / "films.csv.gz").write_bytes(gzip.compress(FILMS.encode()))
    assert make(query_share=0.9, films=tmp_path / "films.csv.gz").fingerprint == log.fingerprint and when() == made
    for films, seed in ((FILMS, 1), (FILMS.replace("rain", "snow"), 1)):
        made, log = when(), make(films, query_share=0.9, seed=seed)
        assert when() > made


def test_searches_of_a_smaller_share_are_among_those_of_a_larger_one():
    one = {name: np.arange(1, 200, dtype=np.int32) % 2 + 1 for name in ("item", "action")} | {"user_id": "u"}
    parts = {
        "users": [one | {"query": np.zeros(199, np.int32)}],
        "queries": [""],
        "item_ids": ["", "6", "9"],
        "item_titles": ["", "Heat (1995)", "Sudden Death (1995)"],
        "item_columns": {},
        "item_matrices": {},
    }
    films = {"6": film(["Al Pacino"], ["heist", "rain"])}
    drawn = []
    for share, seed in ((0.2, 0), (0.6, 0), (0.2, 1)):
        made, said = tmdb.add(parts, films, share=share, seed=seed)
        assert said["films_by_title_and_genres"] == 1
        drawn.append([made["queries"][query] for query in made["users"][0]["query"]])
    few, many, other = drawn
    assert few != other and all(a in ("", b) for a, b in zip(few, many)) and few.count("") > many.count("")
    assert {"al pacino", "sudden death"} <= set(many)


@pytest.mark.parametrize(
    "content, reason",
    [
        ("", ": the file is empty"),
        (HEAD, ": there are no rows after the header"),
        (FILMS.encode("latin-1"), ":4: byte 0xe9 is not UTF-8 text"),
        (FILMS.replace("tmdb_keywords", "keywords"), ":1: there is no column tmdb_keywords; it has movieId, title"),
        (HEAD + SEVEN + "2,Les\n", ":4: 2 columns, not 5"),
        (HEAD + SEVEN + '2,"Les,,,\n', ":4: not CSV"),
        (HEAD + SEVEN + ",Les,,,\n", ":4: movieId is empty"),
        (HEAD + SEVEN + "2.0,Les,,,\n", ":4: movieId '2.0' is not a film's number, such as 318"),
        (HEAD + SEVEN + "tt0113277,Heat,,,\n", ":4: movieId 'tt0113277' is not a film's number"),
        (HEAD + SEVEN + "07,Seven,,,\n", ":4: movieId '07' is not a film's number"),
        (FILMS + SEVEN, ":7: movieId '7' comes a second time; line 2 has it"),
        (HEAD + OTHER, ": no movieId is that of a film of ml-1m"),
        (
            HEAD + LES.replace("2,", "3,", 1) + SEVEN + LAND.replace("3,", "2,", 1),
            ":2: film 3 is 'Misérables, Les (1995)', but 'Land Before Time III (1995) (V)' in ml-1m; 2 of 3 titles differ: "
            "movieId must be the film's number in ml-1m",
        ),
    ],
)
def test_bad_films(make, tmp_path, content, reason):
    mend = "; mend it, or give --films another CSV file in UTF-8 with the columns movieId, title, tmdb_top_cast, "
    with pytest.raises(UserError, match=f"^{re.escape(f'{tmp_path}/films.csv{reason}')}.*{mend}tmdb_keywords$"):
        make(content)
    assert not (tmp_path / "logs").exists()


def test_files_that_cannot_be_read(make, tmp_path):
    with pytest.raises(UserError, match=r"--films: .*/none.csv cannot be read: No such file"):
        make(films=tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        make(films=tmp_path)
    (tmp_path / "films.csv.gz").write_bytes(b"movieId")
    with pytest.raises(UserError, match=r"films.csv.gz: not a whole \.gz file"):
        make(films=tmp_path / "films.csv.gz")


@pytest.mark.parametrize("name", ["ml-1m", "ml-1m-search", "ml-100k-search", "lastfm", "some/folder"])
def test_films_are_for_one_log_alone(make, tmp_path, name):
    with pytest.raises(UserError, match=f"^--films is for ml-1m-tmdb alone, not for {name}: leave it out, or prepare"):
        make(name=name, films=tmp_path / "films.csv")


def test_the_command(make, tmp_path, capsys):
    command = ["data", "prepare", "ml-1m-tmdb", "--source", str(tmp_path / "files"), "--data-dir", str(tmp_path)]
    assert main.main(command) != 0
    assert "ml-1m-tmdb needs --films FILE.csv, a table with the columns movieId, title, " in capsys.readouterr().err
    assert main.main([*command, "--films", str(tmp_path / "films.csv"), "--query-share", "1"]) == 0
    told = "".join(capsys.readouterr())
    assert "generated from TMDB keywords and actors (7 templates, 100% of events, seed 0), nobody typed them" in told
