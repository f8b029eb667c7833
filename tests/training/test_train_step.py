"""What XLA makes of a training step on eight devices: no work, and no traffic, of a table's size."""

import functools

import jax
import numpy as np
import pytest
from small_log import random_log

from data_pipelines.feed import examples, feed, splits
from synergen_jax import config as configs
from synergen_jax.batch import Catalogue
from synergen_jax.config import MeshConfig
from synergen_jax.planning import hlo
from synergen_jax.planning.plan import placed
from synergen_jax.sharding import device_mesh, table
from synergen_jax.training import train_step

ITEMS, WIDTH = 50_000, 16
WORDS = {
    "model": {"width": WIDTH, "heads": 4, "depth": 1},
    "data": {"batch": 16, "max_history": 8, "negatives": 32, "rank_events": 2, "rank_candidates": 3},
    "loss": {"in_batch": 16},
}
# What may have the shape of a device's part of a table: to receive it, hand it on, and write rows into it in place.
IN_PLACE = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "scatter"}


@functools.cache
def program(shape, kind, batch=16, **loss):
    """The compiled step, as text, over a table of 50,000 items that is updated by `kind`."""
    words = WORDS | {"data": WORDS["data"] | {"batch": batch}, "optimiser": {"table": kind}}
    words["loss"] = WORDS["loss"] | loss
    config = configs.from_dict(words)
    log = random_log(users=30)
    split = splits.split(log, config.data)
    catalogue = examples.catalogue(log, split)
    one = next(feed.train_feed(log, split, config, catalogue.counts)(0))
    spec = log.spec.__class__(ITEMS, log.spec.actions, log.spec.queries, log.spec.labels)
    catalogue = Catalogue({}, {}, np.zeros(ITEMS, np.int32), catalogue.query_counts)
    mesh = device_mesh.make_mesh(MeshConfig(*shape), jax.devices()[: shape[0] * shape[1]])
    state = train_step.abstract_state(config, train_step.make_model(config, spec), mesh)
    step = train_step.make_step(
        config, train_step.make_model(config, spec), mesh, jax.tree.map(lambda x: x.sharding, state)
    )
    arguments = state, placed(one, device_mesh.batch_shardings(mesh)), table.abstract_catalogue(catalogue, mesh)
    # As outside of the tests, which compile in a shorter time: what a scatter becomes is what is looked at.
    return step.lower(*arguments).compile({"xla_cpu_use_fusion_emitters": True}).as_text()


def of_table_size(text, devices):
    """Kinds of the instructions that give something as large as a device's part of the table; fusions by their names."""
    rows = table.lines(ITEMS) * table.COLUMNS // devices
    large = [part for part in hlo.instructions(text) if any(np.prod(shape) >= rows for shape in part.shapes)]
    return {part.name if part.kind == "fusion" else part.kind for part in large}


def is_dense(kinds):
    return {kind for kind in kinds if kind not in IN_PLACE and not kind.startswith("wrapped_scatter")}


SLOW = pytest.mark.slow  # half a minute each, to compile for eight devices


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((8, 1), "adam"), *(pytest.param(*x, marks=SLOW) for x in (((2, 4), "adam"), ((8, 1), "adagrad")))],
)
def test_a_step_touches_the_rows_of_its_batch_alone(shape, kind):
    text = program(shape, kind)
    kinds = of_table_size(text, 8)
    assert "scatter" in kinds and not is_dense(kinds)
    largest = max(np.prod(one.shape) for one in hlo.collectives(text))
    assert largest * 10 < ITEMS * WIDTH / 8, "collectives carry rows, not tables"
    assert "all-to-all" in {one.kind for one in hlo.collectives(text)}


@SLOW  # test_device_mesh.py reads a smaller one in the ordinary suite
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_the_full_softmax_and_hard_candidates_leave_the_rows_where_they_are(shape):
    """Every row has a gradient; still nothing of a table's size is sent, forth or back."""
    found = hlo.collectives(program(shape, "dense", full_softmax=True, hard_candidates=3, in_batch=0))
    assert {"all-gather", "all-to-all"} <= {one.kind for one in found}, "else queries do not travel"
    assert max(np.prod(one.shape) for one in found) * 10 < ITEMS * WIDTH / 8


@SLOW
def test_a_dense_update_is_told_from_it():
    assert is_dense(of_table_size(program((8, 1), "dense"), 8))


@SLOW
def test_what_a_device_sends_does_not_grow_with_the_devices():
    """Weak scaling: as many users on each device."""
    few, many = (hlo.payload(program((n, 1), "adam", batch=2 * n)) for n in (2, 8))
    assert sum(many.values()) <= 1.15 * sum(few.values())
