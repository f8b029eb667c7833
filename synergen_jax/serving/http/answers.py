"""What clients get: the bodies of answers."""

from __future__ import annotations

import pydantic

from synergen_jax.serving import asking
from synergen_jax.serving.history.store import History, Outcome, Status


class Told(pydantic.BaseModel):
    """What all answers have in common."""

    request_id: str


class Item(pydantic.BaseModel):
    """One item that was found."""

    item: str
    score: pydantic.FiniteFloat | None  # JSON has no NaN, and a model that says it has failed; null: nothing is known
    probability: dict[str, pydantic.FiniteFloat]  # of each ranked label


class Found(Told):
    """Items, best first."""

    model: str  # which model answered: log, version, step
    items: list[Item]


class Answer(Found):
    """Items, and what was known of the user and of the words."""

    version: int  # of the user's history that the answer knows; 0: there is none
    events: int  # of it that the model saw
    time: int  # of the request, Unix seconds
    query_known: bool  # false: no word is known, and the answer is that to no query
    unknown_words: list[str]

    @classmethod
    def of(cls, request_id: str, answer: asking.Answer) -> Answer:
        """The engine's answer, as JSON has it."""
        return cls(
            request_id=request_id,
            model=answer.model,
            items=items(answer.items),
            version=answer.version,
            events=answer.events,
            time=answer.time,
            query_known=answer.query_known,
            unknown_words=answer.unknown_words,
        )


class OneOutcome(pydantic.BaseModel):
    """What became of an event."""

    id: str  # the caller's, or the one that was made
    status: Status


class Outcomes(Told):
    """What became of each event, in their order; what is stored stays stored."""

    outcomes: list[OneOutcome]

    @classmethod
    def of(cls, request_id: str, outcomes: list[Outcome]) -> Outcomes:
        """The engine's outcomes, as JSON has them."""
        return cls(request_id=request_id, outcomes=[OneOutcome(id=one.id, status=one.status) for one in outcomes])


class KeptEvent(pydantic.BaseModel):
    """An event of a user's history."""

    item: str
    action: str
    time: int
    query: str
    request: str
    id: str


class User(Told):
    """A user's newest events, in the order of their times."""

    user: str
    version: int  # another one after each change; 0: no event is known
    events: list[KeptEvent]

    @classmethod
    def of(cls, request_id: str, user: str, history: History) -> User:
        """The engine's history, as JSON has it."""
        names = list(KeptEvent.model_fields)
        events = [KeptEvent(**{name: getattr(event, name) for name in names}) for event in history.events]
        return cls(request_id=request_id, user=user, version=history.version, events=events)


class Deleted(Told):
    """What was removed of a user."""

    user: str
    deleted: int  # events


class Health(Told):
    """Whether the service lives, or is ready to answer."""

    status: str


class ProblemDetails(pydantic.BaseModel):
    """What was wrong (RFC 9457)."""

    type: str  # urn:problem:synergen:KIND
    title: str
    status: int
    detail: str  # one sentence
    request_id: str


def items(found: list[asking.Found]) -> list[Item]:
    """The engine's items, as JSON has them."""
    return [Item(item=one.item, score=one.score, probability=one.probability) for one in found]
