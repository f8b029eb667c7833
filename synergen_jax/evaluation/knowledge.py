"""What each row of a table goes by: two systems are compared like with like only where they know the same.

ids             the items of the user's past, by learned vectors or by counts
past times      when these were
request time    when the target was asked for, which is its own time in an offline evaluation
query           that of the request
past queries    those of the user's past
actions         those of the user's past, such as ratings
counts          of training events, of items or of pairs
NAME            a semantic matrix of items or queries, such as "text" or "genre"
"""

from __future__ import annotations

import collections.abc

from synergen_jax.batch import LogSpec
from synergen_jax.config import ModelConfig

BASELINES: dict[str, tuple[str, ...]] = {
    "most_popular": ("counts",),
    "most_recent": ("counts of the newest events",),
    "random": (),
    "last_seen_first": ("ids", "counts"),
    "user_knn": ("ids",),
    "item_knn": ("ids",),
    "popular_for_query": ("query", "counts"),
    "query_lookup": ("query", "words", "counts"),
    "query_user_knn": ("ids", "query", "counts"),
    "lookup_user_knn": ("ids", "query", "words", "counts"),
    "bm25": ("query", "words"),
    "user_item_mean": ("labels of training",),
    "feature_regression": ("candidate features",),
    "shown_order": ("place in the list",),
}


def of_model(config: ModelConfig, spec: LogSpec, own_phase: bool = False) -> tuple[str, ...]:
    """What a model knows by its config and its log.

    Args:
      own_phase: an encoding of time and order of the caller's own takes the place of `config.rope`: it may know both.
    """
    timed = own_phase or config.rope in ("time", "split") or config.time_bias
    queries = spec.queries > 1
    known = {
        "ids": config.item_ids,
        "past times": timed,
        "request time": config.request_time and (timed or config.request_date),
        "query": queries,
        "past queries": queries and config.context_query,
        "actions": spec.actions > 2 and config.context_action,
        "candidate features": bool(spec.candidate_features),
    }
    if config.request_date and not config.request_time:
        known["past times"] = True  # readers tell the date of the last event
    matrices = [name for name, _ in (*spec.item_matrices, *(spec.query_matrices if queries else ()))]
    return (*(name for name, is_known in known.items() if is_known), *dict.fromkeys(filter(config.uses, matrices)))


def of_systems(systems: collections.abc.Iterable[str], model: collections.abc.Collection[str]) -> dict[str, str]:
    """What each system of an evaluation goes by, in words; "" of one that nothing is known of.

    Args:
      systems: their names in the report; model: what the model knows.
    """
    less = {
        "query_without_history": {"ids", "past times", "past queries", "actions"},
        "history_without_query": {"query"},
    }

    def known(system: str) -> collections.abc.Iterable[str]:
        if system in less:
            return (name for name in model if name not in less[system])
        if system == "model_second_stage":
            return (*model, "counts")
        return model if system.startswith("model") else BASELINES.get(system, ())

    return {system: ", ".join(known(system)) for system in systems}
