"""How much another order of what is retrieved first can gain: features of lists, and the command that measures."""

import pathlib

import numpy as np
import pytest
from small_log import SmallLog, user

from synergen_jax import config as configs
from synergen_jax.runs.run import Run

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "reranking"
DAY = 86_400
CONFIG = configs.from_dict(
    {
        "data": {"max_history": 8},
        "model": {"width": 16, "heads": 2, "depth": 1},
        "evaluate": {"batch": 4, "rank_candidates": 3},
    }
)


@pytest.fixture
def list_features(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import list_features

    return list_features


@pytest.fixture(scope="module")
def run():
    """Three users whose days are numbered; the last two events of each are targets."""
    days = lambda *numbers: [DAY * (100 + number) for number in numbers]
    users = [
        user([1, 2, 3, 4], name="a", time=days(0, 10, 50, 60), query=[0, 1, 0, 1]),
        user([1, 2, 5, 6], name="b", time=days(0, 40, 41, 70)),
        user([2, 7, 1, 5], name="c", time=days(5, 59, 61, 90)),
    ]
    return Run(CONFIG, SmallLog(users, 9, queries=2))


def test_features_tell_what_was_before_the_request(list_features, run):
    keys = np.eye(9, 16, dtype=np.float32)
    make = list_features.ListFeatures(run, keys)
    batch = next(iter(run.targets("test")))
    assert batch.user[:3].tolist() == [0, 1, 2]
    first = np.tile([2, 1, 7], (len(batch.user), 1))
    found = make.table(batch, first, np.tile([3.0, 2, 1], (len(batch.user), 1)))
    column = lambda name: found[:3, :, list_features.NAMES.index(name)]
    # Training has 1, 2 of each of a and b, and 2, 7 of c. a asks at day 60, b at 70, c at 90.
    np.testing.assert_allclose(column("popularity"), np.log1p([[3, 2, 1]] * 3), rtol=1e-5)
    np.testing.assert_allclose(column("recent popularity"), np.log1p([[1, 0, 1], [1, 0, 1], [0, 0, 0]]), rtol=1e-5)
    np.testing.assert_allclose(column("idle")[:, 0], np.log1p([20, 30, 50]), rtol=1e-5)
    np.testing.assert_allclose(column("age")[0], np.log1p([55, 60, 1]), rtol=1e-5)
    np.testing.assert_allclose(column("score")[0], [3, 2, 1])
    np.testing.assert_allclose(column("place")[0], [0, 1, 2])
    np.testing.assert_allclose(column("search")[:, 0], [1, 0, 0])
    np.testing.assert_allclose(column("events")[:, 0], np.log1p([3, 3, 3]), rtol=1e-5)
    np.testing.assert_allclose(column("days since")[:, 0], np.log1p([10, 29, 29]), rtol=1e-5)
    # The query of a's target, 1, led to item 2 once.
    np.testing.assert_allclose(column("query count")[0], np.log1p([1, 0, 0]), rtol=1e-5)
    # By their keys items are like themselves alone.
    np.testing.assert_allclose(column("key, most")[0], [1, 1, 0], atol=1e-6)
    # 1 and 2 go together twice, of 2 and 3 times.
    np.testing.assert_allclose(column("item kNN, most")[0, 1], 2 / np.sqrt(6), rtol=1e-5)
    assert np.isfinite(found).all()
