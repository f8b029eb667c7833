"""Generated search queries: some events of a log become searches that led to their item.

No public data set joins what people search with what they watch, so the text is drawn from the item's own metadata, as
a person might type it: a word of the title, a genre with a decade, ... It never holds the item's id, and it rarely says
all that is known of an item. A log with such queries says so in its `source`, and results on it must say so too.

What can be said of an item is a function, here `options`, which goes by title and genres; `tmdb.options` knows more.
"""

from __future__ import annotations

import bisect
import itertools
import typing

import numpy as np

from data_pipelines.features.text import words
from data_pipelines.sources.movielens import split_title
from synergen_jax.errors import UserError

SHARE = 0.3  # of the events that become searches
LONGEST = 5  # words of a title that one types
# fmt: off
COMMON = frozenset((  # words of titles that nobody searches for alone
    "a", "an", "and", "at", "by", "de", "des", "du", "for", "from", "i", "ii", "iii", "il", "in", "iv", "la", "le", "les",
    "mr", "mrs", "my", "of", "on", "or", "part", "s", "the", "to", "v", "with", "you", "your",
))
# fmt: on
TEMPLATES = {  # name -> how often it is drawn, where an item has what it needs
    "word": 0.15,  # toy
    "words": 0.2,  # toy story
    "title": 0.15,  # the usual suspects
    "genre": 0.05,  # comedy
    "genres": 0.05,  # comedy romance
    "decade genre": 0.15,  # 90s thriller
    "word genre": 0.1,  # toy comedy
    "word year": 0.05,  # toy 1995
    "decade genre word": 0.1,  # 90s comedy toy
}


Texts = dict[str, list[str]]  # template -> all queries that it can make of one item


def options(title: str, genres: typing.Sequence[str], item_id: str) -> Texts:
    """All queries that each template can make of one item; none of them holds the id as a word.

    >>> options("Usual Suspects, The (1995)", ["Crime"], "12")["title"]
    ['the usual suspects']
    >>> options("Usual Suspects, The (1995)", ["Crime"], "12")["decade genre word"]
    ['90s crime usual', '90s crime suspects']
    """
    name, year = split_title(title) if title != item_id else ("", "")
    title_words = words(name)
    telling = [word for word in title_words if word not in COMMON]
    kinds, decades = genres_as_typed(genres), decade_as_typed(year)
    join = lambda *lists: list(dict.fromkeys(map(" ".join, itertools.product(*lists))))
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(title_words) if b not in COMMON]
    made = {
        "word": list(dict.fromkeys(telling)),
        "words": list(dict.fromkeys(pairs)),
        "title": [" ".join(title_words[:LONGEST])] if title_words else [],
        "genre": kinds,
        "genres": [f"{a} {b}" for a, b in itertools.combinations(kinds, 2)],
        "decade genre": join(decades, kinds),
        "word genre": join(telling, kinds),
        "word year": join(telling, [year]) if year else [],
        "decade genre word": join(decades, kinds, telling),
    }
    return without_id(made, item_id)


def genres_as_typed(genres: typing.Iterable[str]) -> list[str]:
    """Genres as words.

    >>> genres_as_typed(["Film-Noir", "unknown", "Children's"])
    ['film noir', 'childrens']
    """
    return [" ".join(words(genre)) for genre in genres if genre != "unknown"]


def decade_as_typed(year: str) -> list[str]:
    """The decade of a year in four digits; [] of none.

    >>> decade_as_typed("1995"), decade_as_typed("2000"), decade_as_typed("")
    (['90s'], ['2000s'], [])
    """
    return [f"{year[2]}0s" if year < "2000" else f"{year[:3]}0s"] if year else []


def without_id(made: Texts, item_id: str) -> Texts:
    """The queries that do not hold the item's id as a word."""
    own = set(words(item_id))
    return {template: [text for text in texts if not own & set(text.split())] for template, texts in made.items()}


def add(
    parts: dict[str, typing.Any],
    *,
    share: float = SHARE,
    seed: int = 0,
    options: typing.Callable[[str, typing.Sequence[str], str], Texts] = options,
    templates: typing.Mapping[str, float] = TEMPLATES,
) -> dict[str, typing.Any]:
    """The parts of a log, as `interactions.log_parts` gives them, with generated queries.

    Each event with an item becomes a search with probability `share`. Whether, and which text, is a function of
    (seed, user, event) alone; searches of a smaller share are among those of a larger one.

    Args:
      options: what can be said of an item, by its title, genres and id.
      templates: how often each template of `options` is drawn, where an item has what it needs.

    Raises:
      UserError: share is no probability, the seed is below 0, or the log has queries already.
    """
    if not 0 < share <= 1:
        raise UserError(f"--query-share must lie above 0 and not above 1, not {share}")
    if seed < 0:
        raise UserError(f"--seed must not be below 0, not {seed}")
    if len(parts["queries"]) > 1:
        raise UserError("the log has queries of its own; none are generated")
    columns = parts["item_columns"].get("genres", [])
    flags = parts["item_matrices"]["genres"] > 0 if columns else np.zeros((len(parts["item_ids"]), 0), bool)
    genres = [[columns[i] for i in row.nonzero()[0]] for row in flags]
    items = zip(parts["item_titles"][1:], genres[1:], parts["item_ids"][1:])
    pools = [_Pool({}, templates), *(_Pool(options(*item), templates) for item in items)]

    drawn = []
    for number, record in enumerate(parts["users"]):
        # A row an event: a longer history changes nothing before it.
        chance = np.random.default_rng((seed, number)).random((len(record["item"]), 3))
        items = np.where(chance[:, 0] < share, record["item"], 0).tolist()
        drawn.append([pools[item].draw(a, b) if item else "" for item, (_, a, b) in zip(items, chance.tolist())])
    queries = ["", *sorted(set(itertools.chain.from_iterable(drawn)) - {""})]
    number = {text: i for i, text in enumerate(queries)}
    users = [
        record | {"query": np.array([number[text] for text in texts], np.int32)}
        for record, texts in zip(parts["users"], drawn)
    ]
    return parts | {"users": users, "queries": queries}


class _Pool:
    """The queries of one item, from which two uniform numbers pick one."""

    def __init__(self, made: Texts, templates: typing.Mapping[str, float]):
        self._texts = [texts for texts in made.values() if texts]
        weights = [templates[template] for template, texts in made.items() if texts]
        self._ends = list(itertools.accumulate(weight / sum(weights) for weight in weights))[:-1]

    def draw(self, which: float, text: float) -> str:
        """A query, or "" for an item of which nothing can be said."""
        if not self._texts:
            return ""
        texts = self._texts[bisect.bisect(self._ends, which)]
        return texts[int(text * len(texts))]
