"""One question to a trained model: what `synergen recommend` and `synergen search` answer to a person."""

from __future__ import annotations

import dataclasses
import typing

from data_pipelines.importing import history
from synergen_jax.model import synergen
from synergen_jax.runs.known_queries import cleaned
from synergen_jax.runs.run import Run
from synergen_jax.runs.served import Question, Served


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was found, and for whom."""

    name: str  # who asks, for people
    question: Question
    events: int  # of the history
    past: list[dict[str, str]]  # its last ten, as rows of a table
    rows: list[dict[str, typing.Any]]  # the items, best first
    notes: list[str]
    known: bool  # whether anything is known of the query; if not, the answer is that to no query
    unknown_words: list[str]

    def as_json(self) -> dict[str, typing.Any]:
        """What `--json` prints."""
        question = self.question
        about = {"history": self.past, "events": self.events, "query": question.query, "asked": question.k}
        about |= {"given": len(self.rows), "notes": self.notes}
        told = {"query_known": self.known, "unknown_words": self.unknown_words} if question.query else {}
        return about | told | {"recommendations": self.rows}


def answer(
    run: Run,
    params: synergen.Params,
    record: dict[str, typing.Any] | None,
    name: str,
    question: Question,
    notes: typing.Sequence[str] = (),
) -> Answer:
    """The best k items for a history, or as many as are left.

    Args:
      record: the history, as an event log's; None: nobody in particular asks.
      name: who asks, for people.
      notes: what people should know of the history.

    Raises:
      UserError: the query, the items, the time or the label of the order is of no use.
    """
    query = cleaned(question.query)
    served = Served(run, params, question, [query])
    request = served.request(record, "the log" if record is None else name, query)
    found = served.recommender.answer([request], question.k, question.order)[0]
    rows = [
        {"rank": i + 1, "item": served.ids[r.item], "title": served.titles[r.item], "score": r.score} | r.probability
        for i, r in enumerate(found)
    ]
    asked = served.queries[query]
    notes = [*notes, *asked.notes]
    if nothing := [served.ids[item] for item in served.unknown_of(len(run.log.item_ids))]:
        named = ", ".join(nothing[:5]) + (f" and {len(nothing) - 5} more" if len(nothing) > 5 else "")
        notes.append(f"no word of {len(nothing)} of the new items is known: they are never recommended: {named}")
    if len(rows) < question.k:
        seen = record is not None and run.config.data.filter_seen and not question.keep_seen
        and_new = f" and that {name} has not had" if seen else ""
        notes.append(f"{len(rows)} items in place of {question.k}: there are no more that can be recommended{and_new}")
    events, past = (0, []) if record is None else (len(record["item"]), _past(run.log, record))
    return Answer(name, question, events, past, rows, notes, bool(asked.id), asked.unknown)


def _past(log, record: dict[str, typing.Any]) -> list[dict[str, str]]:
    """The last ten events of a record, as rows of a table; without a column of queries where there is none."""
    rows = history.last_events(log, record)
    searched = any(row["query"] for row in rows)
    return [{name: value for name, value in row.items() if searched or name != "query"} for row in rows]
