"""What the serving engine is asked, and what it answers: by original ids, as text."""

from __future__ import annotations

import collections.abc
import dataclasses
import typing

from synergen_jax.errors import UserError


class Overloaded(UserError):
    """Too many requests wait already. Ask again later."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after  # seconds


class TooLate(UserError):
    """The deadline of a request has passed before it was answered."""


class Unknown(UserError):
    """An item, an action, a label or a user that there is not.

    Args:
      what: "item", "action", "order" or "user"; value: what was asked for.
    """

    def __init__(self, what: str, value: str, message: str):
        super().__init__(message)
        self.what, self.value = what, value


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """One request to the engine.

    Without `candidates` the k best items of the catalogue are wanted; with them these alone, scored.
    """

    user: str | None = None  # None: nobody in particular; one whom no event tells of is answered as somebody new
    query: str = ""  # words; "": a recommendation
    k: int = 10
    time: int | None = None  # Unix seconds; None: now
    order: str = ""  # a ranked label, by whose probability what was retrieved is ordered; "": by retrieval
    candidates: tuple[str, ...] | None = None  # original ids, to be ranked
    allow: collections.abc.Collection[str] | None = None  # original ids: the only ones that may come back
    deny: collections.abc.Collection[str] = ()  # original ids that must not
    keep_seen: bool | None = None  # what the user had may come back; None: as the run's data.filter_seen says


class Found(typing.NamedTuple):
    """One item of an answer."""

    item: str
    score: float | None  # of retrieval; None: nothing is known of the item, which only `candidates` can name
    probability: dict[str, float]  # of each ranked label; empty where nothing is known


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What was found."""

    items: list[Found]  # best first; of `candidates` in their order, unless `order` asks for another
    model: str  # which model answered: log, version, step
    version: int  # of the user's history in the store, that the answer knows; 0: it has none there
    events: int  # of the user's history that the model saw
    time: int  # of the request, Unix seconds
    query_known: bool  # False: no word of the query is known, and the answer is that to no query
    unknown_words: list[str]
