"""Queries as ids: those of the log, and others in slots of the catalogue that are written when somebody types them."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np

from synergen_jax.batch import Catalogue
from synergen_jax.serving import catalogue as catalogues
from synergen_jax.serving import compiled
from synergen_jax.serving.deployed import Deployed


class Query(typing.NamedTuple):
    """What is known of a query."""

    id: int  # 0: nothing
    unknown: list[str]  # words that are not known, of a query that the log does not have


class Words:
    """Queries of one deployed model.

    Args:
      slots: queries that the log does not have, that are held at one time; the least recently used one makes room.
    """

    def __init__(self, deployed: Deployed, slots: int):
        self._deployed = deployed
        self._numbers = {text: i for i, text in enumerate(deployed.queries) if i}
        folded = collections.defaultdict(list)
        for text, number in self._numbers.items():
            folded[text.casefold()].append(number)
        self._folded = {text: ids[0] for text, ids in folded.items() if len(ids) == 1}
        self._first = len(deployed.queries)
        matrices = deployed.catalogue.query_matrices
        typed = deployed.encode is not None and deployed.uses_query_text and "text" in matrices
        self._slots = slots if typed else 0
        rows = {"text": np.zeros((slots, matrices["text"].shape[1]), np.float32)} if typed else {}
        self.catalogue: Catalogue = jax.device_put(catalogues.extended(deployed.catalogue, queries=rows))
        self._held: collections.OrderedDict[str, Query] = collections.OrderedDict()
        self._free = list(range(self._first + self._slots - 1, self._first - 1, -1))

    @property
    def size(self) -> int:
        """Ids that there are, 0 included."""
        return self._first + self._slots

    def find(self, texts: collections.abc.Iterable[str]) -> dict[str, Query]:
        """What is known of each text; "" is no query. They are held together: at most as many new ones as there are slots."""
        found: dict[str, Query] = {}
        new: list[str] = []
        for text in dict.fromkeys(texts):
            number = self._numbers.get(text) or self._folded.get(text.casefold())
            if number is not None and self._told(number):
                found[text] = Query(number, [])
            elif text and not self._slots:
                found[text] = Query(0, text.split())
            elif text in self._held:
                self._held.move_to_end(text)
                found[text] = self._held[text]
            elif text:
                new.append(text)
            else:
                found[text] = Query(0, [])
        for text, query in zip(new, self._made(new), strict=True):
            found[text] = query
        return found

    def _told(self, number: int) -> bool:
        """Whether the model knows anything of a query of the log."""
        catalogue = self._deployed.catalogue
        learned = self._deployed.model.config.query_ids and catalogue.query_counts[number] > 0
        uses = self._deployed.model.config.uses
        return bool(learned) or any(np.any(m[number]) for name, m in catalogue.query_matrices.items() if uses(name))

    def _made(self, texts: list[str]) -> list[Query]:
        if not texts:
            return []
        assert self._deployed.encode is not None
        words = list(dict.fromkeys(word for text in texts for word in text.split()))
        rows = self._deployed.encode([*texts, *words])
        known = dict(zip(words, np.any(rows[len(texts) :], axis=1).tolist()))
        made = []
        for text, row in zip(texts, rows):
            unknown = [word for word in text.split() if not known[word]]
            query = Query(self._place(row) if np.any(row) else 0, unknown)
            if query.id:
                self._held[text] = query
            made.append(query)
        return made

    def _place(self, row: np.ndarray) -> int:
        """Writes a row to a slot; its id."""
        if not self._free:
            _, oldest = self._held.popitem(last=False)
            self._free.append(oldest.id)
        place = self._free.pop()
        matrix = self.catalogue.query_matrices["text"]
        written = compiled.with_row(matrix, jnp.int32(place), jnp.asarray(row, matrix.dtype))
        matrices = {**self.catalogue.query_matrices, "text": written}
        self.catalogue = dataclasses.replace(self.catalogue, query_matrices=matrices)
        return place
