"""SynerGen in JAX and Flax: personalised search and recommendation, retrieval and ranking, in one decoder.

    import synergen_jax as sg

    run, params = sg.load("runs/ml-1m")
    served = sg.Recommender(run.model, params, run.catalogue)

The names of `__all__` are stable: a release that changes one says so in CHANGELOG.md. Each is imported when it is first
used, so that importing this package loads nothing else. Deeper modules may change with any release.
"""

from __future__ import annotations

import importlib
import typing

__version__ = "0.1.0"

if typing.TYPE_CHECKING:  # what `_WHERE` says, in the form that editors and type checkers read
    from data_pipelines.event_log.event_log import EventLog as EventLog
    from data_pipelines.feed.examples import user_history as user_history
    from data_pipelines.importing.append import append as append_log
    from data_pipelines.importing.own_log import import_log as import_log
    from data_pipelines.sources.prepare import prepare as prepare
    from synergen_jax.batch import Candidates as Candidates
    from synergen_jax.batch import Catalogue as Catalogue
    from synergen_jax.batch import EvalBatch as EvalBatch
    from synergen_jax.batch import Events as Events
    from synergen_jax.batch import LogSpec as LogSpec
    from synergen_jax.batch import Readers as Readers
    from synergen_jax.batch import TrainBatch as TrainBatch
    from synergen_jax.config import Config as Config
    from synergen_jax.config import load as load_config
    from synergen_jax.errors import UserError as UserError
    from synergen_jax.model.synergen import SynerGen as SynerGen
    from synergen_jax.model.synergen import init as init
    from synergen_jax.model.synergen import token_vectors as token_vectors
    from synergen_jax.runs.evaluate import evaluate as evaluate
    from synergen_jax.runs.run import Run as Run
    from synergen_jax.runs.run import load as load
    from synergen_jax.runs.served import Question as Question
    from synergen_jax.runs.served import Served as Served
    from synergen_jax.runs.train import train as train
    from synergen_jax.serving.recommender import Recommender as Recommender

__all__ = [  # noqa: RUF022  (in the order in which they are used)
    # a log, and what is fed of it
    "EventLog",
    "prepare",
    "import_log",
    "append_log",
    "user_history",
    # a config, and a run of it
    "Config",
    "load_config",
    "Run",
    "train",
    "evaluate",
    "load",
    # the model, and a trained one that is asked
    "SynerGen",
    "init",
    "token_vectors",
    "Recommender",
    "Question",
    "Served",
    # what travels between them
    "Events",
    "Readers",
    "Candidates",
    "TrainBatch",
    "EvalBatch",
    "Catalogue",
    "LogSpec",
    "UserError",
]

_WHERE = {
    "data_pipelines.event_log.event_log": ("EventLog",),
    "data_pipelines.feed.examples": ("user_history",),
    "data_pipelines.importing.append": ("append_log",),
    "data_pipelines.importing.own_log": ("import_log",),
    "data_pipelines.sources.prepare": ("prepare",),
    "synergen_jax.batch": ("Candidates", "Catalogue", "EvalBatch", "Events", "LogSpec", "Readers", "TrainBatch"),
    "synergen_jax.config": ("Config", "load_config"),
    "synergen_jax.errors": ("UserError",),
    "synergen_jax.model.synergen": ("SynerGen", "init", "token_vectors"),
    "synergen_jax.runs.evaluate": ("evaluate",),
    "synergen_jax.runs.run": ("Run", "load"),
    "synergen_jax.runs.served": ("Question", "Served"),
    "synergen_jax.runs.train": ("train",),
    "synergen_jax.serving.recommender": ("Recommender",),
}
_THERE = {"load_config": "load", "append_log": "append"}  # what has another name in its module


def __getattr__(name: str) -> object:
    module = next((module for module, names in _WHERE.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    found = getattr(importlib.import_module(module), _THERE.get(name, name))
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
