"""What a table says that a system knows is what moves its answers, and nothing else does."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import small_model

from synergen_jax.evaluation import baselines, knowledge

SPEC = small_model.SPEC
RNG = np.random.default_rng(5)
EVENTS = small_model.events(RNG, 4, 9)
READERS = dataclasses.replace(
    small_model.readers(RNG, 4, 6, 9), item=jnp.zeros((4, 6), jnp.int32), visible=jnp.full((4, 6), 9, jnp.int32)
)
READERS = dataclasses.replace(READERS, time=READERS.time + 10**8)
# What else each kind of knowledge might have been.
CHANGES = {
    "past times": lambda events, readers: (dataclasses.replace(events, time=events.time // 3), readers),
    "request time": lambda events, readers: (events, dataclasses.replace(readers, time=readers.time + 10**7)),
    "query": lambda events, readers: (events, dataclasses.replace(readers, query=(readers.query + 1) % SPEC.queries)),
    "past queries": lambda events, readers: (
        dataclasses.replace(events, query=(events.query + 1) % SPEC.queries),
        readers,
    ),
    "actions": lambda events, readers: (
        dataclasses.replace(events, action=1 + events.action % (SPEC.actions - 1)),
        readers,
    ),
}
KINDS = (
    {},
    {"rope": "order"},
    {"rope": "order", "request_date": True},
    {"rope": "order", "request_date": True, "request_time": False},
    {"rope": "order", "time_bias": True},
    {"rope": "none", "request_time": False},
    {"request_time": False},
    {"context_query": False, "context_action": False},
)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_model_knows_what_moves_its_answers(kind):
    config = dataclasses.replace(small_model.CONFIG, **kind)
    model, params, catalogue = small_model.make(config)

    def answer(events, readers):
        vectors = (small_model.vectors(model, params, catalogue, tokens) for tokens in (events, readers))
        cache = small_model.apply(model, params, events, *next(vectors), method="encode")
        return np.asarray(small_model.apply(model, params, cache, readers, *next(vectors), method="read"))

    known, before = knowledge.of_model(config, SPEC), answer(EVENTS, READERS)
    moved = {name for name, change in CHANGES.items() if not np.array_equal(answer(*change(EVENTS, READERS)), before)}
    assert moved == set(known) & set(CHANGES)


def test_what_a_model_of_another_log_knows():
    config = dataclasses.replace(small_model.CONFIG, item_ids=False, leave_out="genres")
    assert "ids" not in knowledge.of_model(config, SPEC)
    assert [name for name in ("genres", "text") if name in knowledge.of_model(config, SPEC)] == ["text"]
    assert knowledge.of_model(dataclasses.replace(config, matrices=False), SPEC)[-1] == "actions"
    plain = dataclasses.replace(SPEC, queries=1, actions=2, item_matrices=(), query_matrices=())
    order = dataclasses.replace(small_model.CONFIG, rope="order")
    assert knowledge.of_model(order, plain) == ("ids",)
    assert knowledge.of_model(order, plain, own_phase=True) == ("ids", "past times", "request time")


def test_every_system_of_a_report_is_told():
    model = ("ids", "past times", "query", "past queries", "text")
    names = ["model", "model_reranked", "model_second_stage", "query_without_history", "history_without_query", "mine"]
    found = knowledge.of_systems([*names, *baselines.LISTS], model)
    assert found["model"] == found["model_reranked"] == "ids, past times, query, past queries, text"
    assert found["model_second_stage"] == found["model"] + ", counts"
    assert found["query_without_history"] == "query, text"
    assert found["history_without_query"] == "ids, past times, past queries, text"
    assert found["mine"] == "" and all(found[name] for name in baselines.LISTS)
