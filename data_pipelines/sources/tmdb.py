"""Queries for MovieLens-1M of what TMDB knows of its films: keywords and actors, from a CSV file that the user has.

    movieId         the film's number in MovieLens-1M, once in the file
    title           as MovieLens has it: it tells whether the numbers are those of MovieLens-1M
    tmdb_top_cast   names of actors, set apart by commas; may be empty
    tmdb_keywords   keywords, set apart by commas; may be empty

Other columns are not read, and neither are films that MovieLens-1M lacks. Keywords and actors are nearer to what people
type than words of titles are; still nobody typed them. A film without either has the queries of `search_queries`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import pathlib
import typing

from data_pipelines.features.text import words
from data_pipelines.files import packed, rows
from data_pipelines.sources import search_queries
from data_pipelines.sources.interactions import Interactions
from data_pipelines.sources.movielens import split_title
from synergen_jax.errors import UserError, first_line

NAME = "ml-1m-tmdb"
OF = "ml-1m"  # whose events they are
SAID = "TMDB keywords and actors"  # what queries are generated from, for `EventLog.query_note`
COLUMNS = ("movieId", "title", "tmdb_top_cast", "tmdb_keywords")
MEND = f"mend it, or give --films another CSV file in UTF-8 with the columns {', '.join(COLUMNS)}"
LONGEST = 5  # words of a query
TEMPLATES = {  # name -> how often it is drawn, where a film has what it needs
    "keyword": 0.3,  # serial killer
    "two keywords": 0.2,  # heist los angeles
    "actor": 0.2,  # al pacino
    "actor genre": 0.1,  # al pacino thriller
    "keyword genre": 0.1,  # bank robbery crime
    "actor keyword": 0.05,  # al pacino heist
    "decade keyword": 0.05,  # 90s heist
}


@dataclasses.dataclass(frozen=True)
class Film:
    """What TMDB knows of a film, in the order of the file."""

    row: str  # path and line, for messages
    title: str
    cast: tuple[str, ...]
    keywords: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class File:
    """The file as it was found."""

    path: pathlib.Path
    data: bytes  # unpacked

    @classmethod
    def read(cls, path: str | pathlib.Path) -> File:
        """The bytes of a CSV file, gzipped or plain.

        Raises:
          UserError: it cannot be read, or is a damaged .gz.
        """
        path = pathlib.Path(path).expanduser().resolve()
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"--films: {path} cannot be read: {error.strerror or first_line(error)}") from None
        return cls(path, packed.unpacked(data, path.name, str(path)))

    def sha256(self) -> str:
        """Tells whether two files hold the same films."""
        return hashlib.sha256(self.data).hexdigest()

    def films(self, titles: typing.Mapping[str, str]) -> dict[str, Film]:
        """Films by their ids, of MovieLens alone.

        Args:
          titles: those of MovieLens, by id.

        Raises:
          UserError: the file is empty, damaged or no UTF-8, lacks a column, has a wrong id or one twice, or numbers
            films otherwise than MovieLens-1M does.
        """
        try:
            films = self._films()
        except UserError as error:
            raise UserError(f"{error}; {MEND}") from None
        found = {item: film for item, film in films.items() if item in titles}
        if not found:
            raise UserError(f"{self.path}: no movieId is that of a film of {OF}; {MEND}")
        # Some may be written otherwise; most are so only if the numbers stand for other films.
        others = [item for item, film in found.items() if words(film.title) != words(titles[item])]
        if 2 * len(others) > len(found):
            item = others[0]
            raise UserError(
                f"{found[item].row}: film {item} is {found[item].title!r}, but {titles[item]!r} in {OF}; "
                f"{len(others):,} of {len(found):,} titles differ: movieId must be the film's number in {OF}; {MEND}"
            )
        return found

    def _films(self) -> dict[str, Film]:
        table = rows.Csv(self.data, str(self.path), COLUMNS)
        for row, item in enumerate(table.tokens("movieId")):
            if not (item.isascii() and item.isdecimal() and item[0] != "0"):
                raise table.error(row, f"movieId {item!r} is not a film's number, such as 318")
        where = (f"{table.where}:{table.line(row)}" for row in range(len(table)))
        about = (map(_listed, table.columns[name]) for name in ("tmdb_top_cast", "tmdb_keywords"))
        return dict(zip(table.unique("movieId"), map(Film, where, table.columns["title"], *about)))


def _listed(text: str) -> tuple[str, ...]:
    """What commas set apart, each once.

    >>> _listed("toy, boy  next door,, toy ")
    ('toy', 'boy next door')
    """
    return tuple(dict.fromkeys(filter(None, (" ".join(part.split()) for part in text.split(",")))))


def with_texts(data: Interactions, films: typing.Mapping[str, Film]) -> Interactions:
    """MovieLens with cast and keywords in the texts that are searched; nothing else changes."""
    texts = {item: " ".join([data.texts[item], *film.cast, *film.keywords]) for item, film in films.items()}
    return dataclasses.replace(data, texts=data.texts | texts)


def add(
    parts: dict[str, typing.Any], films: typing.Mapping[str, Film], *, share: float, seed: int
) -> tuple[dict[str, typing.Any], dict[str, typing.Any]]:
    """The parts of a log with generated queries, as `search_queries.add`; and what its `source` says of them."""
    made = search_queries.add(
        parts,
        share=share,
        seed=seed,
        options=functools.partial(options, films),
        templates=search_queries.TEMPLATES | TEMPLATES,
    )
    items = zip(parts["item_titles"][1:], parts["item_ids"][1:])
    without = sum(not _told(films.get(item), title, (), item) for title, item in items)
    return made, {"of": SAID, "templates": len(TEMPLATES), "films_by_title_and_genres": without}


def options(
    films: typing.Mapping[str, Film], title: str, genres: typing.Sequence[str], item_id: str
) -> search_queries.Texts:
    """All queries that each template can make of one film; those of `search_queries.options` where TMDB tells nothing.

    >>> films = {"6": Film("", "", ("Al Pacino",), ("heist", "bank robbery"))}
    >>> made = options(films, "Heat (1995)", ["Crime"], "6")
    >>> made["two keywords"], made["actor genre"], made["decade keyword"]
    (['heist bank robbery'], ['al pacino crime'], ['90s heist', '90s bank robbery'])
    """
    return _told(films.get(item_id), title, genres, item_id) or search_queries.options(title, genres, item_id)


def _told(film: Film | None, title: str, genres: typing.Sequence[str], item_id: str) -> search_queries.Texts:
    """What cast and keywords make; {} if that is nothing."""
    if film is None:
        return {}
    actors, keywords = (_distinct(" ".join(words(text)) for text in texts) for texts in (film.cast, film.keywords))
    kinds = search_queries.genres_as_typed(genres)
    decades = search_queries.decade_as_typed(split_title(title)[1])
    made = {
        "keyword": keywords,
        "two keywords": _joined(itertools.combinations(keywords, 2)),
        "actor": actors,
        "actor genre": _joined(itertools.product(actors, kinds)),
        "keyword genre": _joined(itertools.product(keywords, kinds)),
        "actor keyword": _joined(itertools.product(actors, keywords)),
        "decade keyword": _joined(itertools.product(decades, keywords)),
    }
    short = {name: [text for text in texts if len(text.split()) <= LONGEST] for name, texts in made.items()}
    found = search_queries.without_id(short, item_id)
    return found if any(found.values()) else {}


def _distinct(texts: typing.Iterable[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, texts)))


def _joined(pairs: typing.Iterable[tuple[str, str]]) -> list[str]:
    """Pairs as one text each, but for those that say a word twice.

    >>> _joined([("musical", "musical"), ("new york city", "heist")])
    ['new york city heist']
    """
    return _distinct(f"{a} {b}" for a, b in pairs if not set(a.split()) & set(b.split()))
