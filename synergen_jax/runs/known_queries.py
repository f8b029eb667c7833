"""What a trained run knows of queries, by their texts: those of its log, and others by their words."""

from __future__ import annotations

import collections.abc
import difflib
import typing

import numpy as np

from synergen_jax.batch import Catalogue
from synergen_jax.errors import UserError
from synergen_jax.runs.run import Run
from synergen_jax.serving import catalogue as catalogues


class Known(typing.NamedTuple):
    """What is known of one query."""

    id: int  # 0: nothing is known of it, and the answer is that to no query
    unknown: list[str]  # words that are not known, of a query that the log does not have
    notes: list[str]


def cleaned(text: str) -> str:
    """A query as logs hold it: words with single spaces."""
    return " ".join(text.split())


def known(run: Run, catalogue: Catalogue, texts: collections.abc.Iterable[str]) -> tuple[dict[str, Known], Catalogue]:
    """What is known of each text, `cleaned`, and the catalogue, to which those are added that the log does not have.

    A text is the log's query that reads the same, but for capitals if there is one such. "" is no query.

    Raises:
      UserError: the log knows queries by their ids alone, and not this one.
    """
    log = run.log
    texts = list(dict.fromkeys(texts))
    number = {text: i for i, text in enumerate(log.queries)}
    folded: dict[str, list[int]] = {}
    for i, text in enumerate(log.queries[1:], 1):
        folded.setdefault(text.casefold(), []).append(i)
    ids: dict[str, int] = {}
    new: list[str] = []
    for text in texts:
        other_case = folded.get(text.casefold(), [])
        if text in number:
            ids[text] = number[text]
        elif len(other_case) == 1:
            ids[text] = other_case[0]
        else:
            ids[text] = len(log.queries) + len(new)
            new.append(text)
    unknown: dict[str, list[str]] = {}
    if new:
        unknown, rows = _encoded(run, new)
        catalogue = catalogues.extended(catalogue, queries={"text": rows})
    return {text: _known(run, catalogue, text, ids[text], unknown.get(text, [])) for text in texts}, catalogue


def _encoded(run: Run, texts: list[str]) -> tuple[dict[str, list[str]], np.ndarray]:
    """The words of each text that are not known, and the row of each text in the matrix "text"."""
    log = run.log
    encoder = log.text_encoder()
    if encoder is None or "text" not in log.query_matrices:
        near = difflib.get_close_matches(texts[0], log.queries[1:], n=3, cutoff=0.3)
        said = f"; near it: {', '.join(map(repr, near))}" if near else ""
        raise UserError(f"log {log.name} knows queries by their ids alone, and not {texts[0]!r}{said}")
    words = list(dict.fromkeys(word for text in texts for word in text.split()))
    rows = encoder.encode([*texts, *words])
    there = dict(zip(words, np.any(rows[len(texts) :], axis=1).tolist()))
    return {text: [word for word in text.split() if not there[word]] for text in texts}, rows[: len(texts)]


def _known(run: Run, catalogue: Catalogue, text: str, query: int, unknown: list[str]) -> Known:
    if not query:
        return Known(0, [], [])
    learned = run.config.model.query_ids and catalogue.query_counts[query] > 0
    matrices = [matrix for name, matrix in catalogue.query_matrices.items() if run.config.model.uses(name)]
    if not learned and not any(np.any(matrix[query]) for matrix in matrices):
        return Known(0, unknown, [f"no word of {text!r} is known: this is what is recommended without a query"])
    notes = [f"words that are not known: {', '.join(map(repr, unknown))}"] if unknown else []
    return Known(query, unknown, notes)
