"""What clients send: the bodies of requests, checked for their form. How much they may ask for is in limits.py."""

from __future__ import annotations

import dataclasses
import typing

import pydantic
from pydantic import Field

from synergen_jax.serving.asking import Ask
from synergen_jax.serving.history.store import LONGEST, Event


def _plain(text: str) -> str:
    """Refuses what no database stores."""
    if "\0" in text:
        raise ValueError("holds a NUL character")
    return text


def _short(text: str) -> str:
    """Refuses an id that is no key of a database."""
    if (length := len(text.encode())) > LONGEST:
        raise ValueError(f"has {length} bytes; an id has at most {LONGEST}")
    return text


def _whole(value: object) -> object:
    """3.0 is a whole number, too: JSON has one kind of numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Some = Field(min_length=1)
_Plain = (pydantic.AfterValidator(_plain), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"}))
_Short = (pydantic.AfterValidator(_short), Field(json_schema_extra={"maxLength": LONGEST}))  # told as characters
Text = typing.Annotated[str, *_Plain]
Words = typing.Annotated[str, _Some, *_Plain]
Id = typing.Annotated[str, _Some, *_Plain, *_Short]
MaybeId = typing.Annotated[str, *_Plain, *_Short]
Count = typing.Annotated[int, Field(ge=1, le=2**53), pydantic.BeforeValidator(_whole)]
Items = typing.Annotated[list[Id], Field(description="original ids of items")]


class Body(pydantic.BaseModel):
    """What all bodies have in common: no unknown fields, and no types but those of JSON."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class Timed(Body):
    """A request with a deadline of its own."""

    timeout_ms: Count | None = Field(None, description="milliseconds within which to answer; null: a setting")


class Recommend(Timed):
    """Items for a user, or for nobody in particular."""

    model_config = pydantic.ConfigDict(json_schema_extra={"examples": [{"user": "196", "k": 3}]})

    user: Id | None = Field(None, description="null: nobody in particular; one without events is somebody new")
    k: Count = Field(10, description="how many items")
    time: Count | None = Field(None, description="of the request, Unix seconds; null: now")
    order: Text = Field("", description="a ranked label whose probability orders what was retrieved")
    allow: Items | None = Field(None, description="the only items that may come back; null: all")
    deny: Items = Field([], description="items that do not come back")
    keep_seen: bool | None = Field(None, description="what the user had may come back; null: as the run's settings say")

    def ask(self) -> Ask:
        """The same, as the engine takes it."""
        allow = None if self.allow is None else frozenset(self.allow)
        return Ask(self.user, "", self.k, self.time, self.order, None, allow, frozenset(self.deny), self.keep_seen)


class Search(Recommend):
    """Items that words ask for, for a user or for nobody in particular."""

    model_config = pydantic.ConfigDict(json_schema_extra={"examples": [{"query": "90s comedy", "user": "196", "k": 3}]})

    query: Words = Field(description="words")

    def ask(self) -> Ask:
        """The same, as the engine takes it."""
        return dataclasses.replace(super().ask(), query=self.query)


class Rank(Timed):
    """Items of the caller's, scored."""

    model_config = pydantic.ConfigDict(
        json_schema_extra={"examples": [{"user": "196", "candidates": ["50", "181", "258"]}]}
    )

    candidates: Items = Field(min_length=1)
    user: Id | None = Field(None, description="null: nobody in particular; one without events is somebody new")
    query: Text = Field("", description="words")
    time: Count | None = Field(None, description="of the request, Unix seconds; null: now")
    order: Text = Field(
        "", description='a ranked label by which the items are put in order; "": they stay as they came'
    )

    def ask(self) -> Ask:
        """The same, as the engine takes it."""
        count = len(self.candidates)
        return Ask(self.user, self.query, count, self.time, self.order, tuple(self.candidates))


class Similar(Timed):
    """Items whose vectors are most like an item's."""

    model_config = pydantic.ConfigDict(json_schema_extra={"examples": [{"item": "50", "k": 3}]})

    item: Id
    k: Count = Field(10, description="how many items")


class OneEvent(Body):
    """Something that a user did."""

    user: Id
    action: Words
    time: Count = Field(description="Unix seconds")
    item: MaybeId = Field("", description='"" where there is only a query')
    query: Text = Field("", description="words")
    request: MaybeId = Field("", description="request_id of the answer that it belongs to")
    id: MaybeId = Field("", description='the caller\'s own, by which it may be sent again; "": one is made')

    @pydantic.model_validator(mode="after")
    def _of_something(self) -> typing.Self:
        if not self.item and not self.query:
            raise ValueError("has neither an item nor a query")
        return self

    def event(self) -> Event:
        """The same, as the engine takes it."""
        return Event(self.user, self.item, self.action, self.time, self.query, self.request, self.id)


class Events(Body):
    """One event, or many, of one user or of several."""

    model_config = pydantic.ConfigDict(
        json_schema_extra={
            "examples": [
                {"events": [{"id": "9f1c", "user": "196", "item": "50", "action": "rating-5", "time": 1767607200}]}
            ]
        }
    )

    events: list[OneEvent] = Field(min_length=1)


_ID = pydantic.TypeAdapter(Id)


def check_id(text: str) -> str:
    """An id that came otherwise than in a body.

    Raises:
      ValueError: it is none; the message says why.
    """
    try:
        return _ID.validate_python(text)
    except pydantic.ValidationError as error:
        raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
