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
    from synergen_jax.config import load as load_config  # noqa: F401  (exported by `_WHERE`)
    from synergen_jax.errors import UserError as UserError
    from synergen_jax.model.synergen import SynerGen as SynerGen
    from synergen_jax.model.synergen import init as init
    from synergen_jax.model.synergen import token_vectors as token_vectors
    from synergen_jax.runs.evaluate import evaluate as evaluate
    from synergen_jax.runs.run import Run as Run
    from synergen_jax.runs.run import load as load
    from synergen_jax.runs.train import train as train
    from synergen_jax.serving.recommender import Recommender as Recommender

_WHERE = {
    # a log, and what is fed of it
    "EventLog": "data_pipelines.event_log.event_log",
    "prepare": "data_pipelines.sources.prepare",
    "import_log": "data_pipelines.importing.own_log",
    "user_history": "data_pipelines.feed.examples",
    # a config, and a run of it
    "Config": "synergen_jax.config",
    "load_config": "synergen_jax.config:load",
    "Run": "synergen_jax.runs.run",
    "train": "synergen_jax.runs.train",
    "evaluate": "synergen_jax.runs.evaluate",
    "load": "synergen_jax.runs.run",
    # the model, and a trained one that is asked
    "SynerGen": "synergen_jax.model.synergen",
    "init": "synergen_jax.model.synergen",
    "token_vectors": "synergen_jax.model.synergen",
    "Recommender": "synergen_jax.serving.recommender",
    # what travels between them
    "Events": "synergen_jax.batch",
    "Readers": "synergen_jax.batch",
    "Candidates": "synergen_jax.batch",
    "TrainBatch": "synergen_jax.batch",
    "EvalBatch": "synergen_jax.batch",
    "Catalogue": "synergen_jax.batch",
    "LogSpec": "synergen_jax.batch",
    "UserError": "synergen_jax.errors",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_WHERE)}")
    module, _, other = _WHERE[name].partition(":")
    found = getattr(importlib.import_module(module), other or name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
