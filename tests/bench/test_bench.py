"""Benchmarks at tiny sizes: each runs, its fields are there and finite, and its ratios follow from its seconds."""

import dataclasses
import itertools
import json
import math

import jax
import numpy as np
import pytest

from data_pipelines.feed import examples, splits
from data_pipelines.files import records
from synergen_jax import config as configs
from synergen_jax.bench import feed, readers, suite, timing
from synergen_jax.bench.setting import Setting
from synergen_jax.bench.timing import Spread
from synergen_jax.cli import main
from synergen_jax.errors import UserError
from synergen_jax.planning.synthetic import LENGTHS, SyntheticLog, zipf
from synergen_jax.runs import inputs

SETTING = Setting(inputs.of_log, ("--mesh.data=1",), small=True, rounds=2, say=lambda text: None)

UNRANKED = dataclasses.replace(SETTING, words=("--mesh.data=1", "--data.rank_events=0"))  # half of what is compiled


def numbers(tree):
    return [x for x in jax.tree.leaves(tree) if isinstance(x, int | float)]


def checked(name, setting=SETTING):
    """A benchmark's result, once it is what every result must be."""
    result = suite.BENCHES[name](setting)
    answer = json.loads(json.dumps(result.as_json()))
    assert answer["bench"] == name and answer["device"]["platform"] == "cpu"
    assert result.rows and result.ratios
    assert all(math.isfinite(x) for x in numbers(answer))
    for spread in result.ratios.values():
        assert 0 < spread.low <= spread.median <= spread.high
    assert all(len(seconds) == setting.rounds and min(seconds) > 0 for seconds in result.times.values())
    words = suite.text(result)
    assert all(name in words for name in result.ratios)
    return result


def test_step_and_trace(tmp_path):
    result = checked("step", dataclasses.replace(UNRANKED, trace=tmp_path))
    (row,) = result.rows
    assert row["MFU"] is None and "'cpu' is not known" in result.note
    step = Spread.of(result.times["step"]).median
    assert row["GFLOP/s"] == pytest.approx(row["GFLOP/step"] / step)
    assert row["padding"] == 0  # all users of the small log are longer than a window
    assert row["events/s"] == pytest.approx(8 * 12 / step)
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_feed():
    result = checked("feed", UNRANKED)
    alone, step = result.times["feed"], result.times["step"]
    assert result.ratios["feed over step, batches a second"] == timing.ratio(step, alone)
    histories = ["feed, one long history", "feed, many short histories"]
    assert [row["what"] for row in result.rows] == ["feed", "step", "together", *histories]
    long, short = (result.times[name] for name in histories)
    assert result.ratios["feed of one long history over many short ones, seconds"] == timing.ratio(long, short)


def test_one_long_history_and_many_short_ones_have_the_same_windows():
    sizes = {}
    for name, (config, log) in feed.histories_of(configs.from_dict({"data": {"max_history": 12}})).items():
        split = splits.split(log, config.data)
        where = examples.train_windows(split.train_stop, split.first_target, 12, config.data.stride)
        sizes[name] = len(log), len(where), set((where[:, 2] - where[:, 1]).tolist())
    assert sizes == {"one long history": (1, 1000, {12}), "many short histories": (1000, 1000, {12})}


@pytest.mark.slow  # compiles two training steps
def test_catalogue():
    result = checked("catalogue", UNRANKED)
    small, large = result.times.values()
    assert result.ratios["2,000 items over 200 items"] == timing.ratio(large, small)
    assert result.rows[0]["over 200 items"] == 1
    assert result.rows[1]["table MiB"] == 3 * result.rows[0]["table MiB"]  # lines of 768 rows


def test_loss():
    rows = checked("loss").rows
    assert [row["negatives"] for row in rows] == [16, 32, 64, 128, 256]
    assert all(one["peak MiB"] < two["peak MiB"] for one, two in itertools.pairwise(rows))


def test_attention():
    result = checked("attention")
    assert [(row["tokens"], row["backend"]) for row in result.rows] == [
        ("context", "xla"),
        ("context", "jax.nn.dot_product_attention"),
        ("readers", "xla"),
    ]
    assert "model.attention 'splash' runs on TPUs" in result.note, "what cannot run here is told"


@pytest.mark.slow  # compiles two training steps
def test_packing():
    result = checked("packing", UNRANKED)
    padded, packed = result.rows
    assert padded["padding"] > 0.4 > packed["padding"]
    assert packed["events a row"] > 2 * padded["events a row"]
    rates = [
        [batches * row["events a row"] * 8 / s for s in result.times[row["rows"]]]
        for row, batches in zip(result.rows, (4, 4))
    ]
    found = result.ratios["packed over padded, events a second"]
    assert found == pytest.approx(timing.ratio(rates[1], rates[0]))


def test_readers_compute_the_same():
    """Both steps have the same loss and the same gradient, and still have them after an update."""
    config = configs.override(SETTING.config(readers.config(8), readers.SMALL), readers.SAME)
    factorised, masked = readers.make_sides(SETTING, config).values()
    for _ in range(2):
        ours, theirs = factorised(), masked()
        for name in ("loss", "norm/gradient"):
            assert float(ours[name]) > 0.1
            np.testing.assert_allclose(ours[name], theirs[name], rtol=2e-5)


def test_readers():
    result = checked("readers", dataclasses.replace(SETTING, sizes=(8,)))
    ours, theirs = (result.times[f"{side}, 8 events"] for side in ("factorised", "masked"))
    assert result.ratios["masked over factorised, 8 events"] == timing.ratio(theirs, ours)


def test_sides_take_turns():
    turns = []
    times = timing.alternate({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, 3)
    assert turns == ["a", "b"] * 5, "two rounds of warming up, then three that count"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_ratios_go_round_by_round():
    assert timing.ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == Spread(2.0, 2.0, 2.5)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["step", "--sizes=3"], "--sizes is for catalogue, readers, loss, not for 'step'"),
        (["loss", "--config=ml_1m"], "--config is for step, feed, packing, not for 'loss'"),
        (["readers", "--log=ml-100k"], "--log is for step, feed, packing, not for 'readers'"),
        (["step", "--rounds=0"], "--rounds must be at least 1, not 0"),
        (["loss", "--small", "--model.withd=3"], "did you mean 'width'"),
    ],
)
def test_wrong_input_is_told_in_one_line(arguments, words, capsys):
    assert main.main(["bench", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_the_command_prints_a_table_and_json(capsys):
    assert main.main(["bench", "loss", "--small", "--sizes=1,2", "--json"]) == 0
    out = capsys.readouterr().out
    assert "2x negatives, peak bytes: 1." in out
    answer = json.loads(out.splitlines()[-1])
    assert answer["ratios"]["2x negatives, peak bytes"]["median"] > 1


# --- synthetic logs -------------------------------------------------------------------------------------------


def test_synthetic_records_are_valid_and_repeat():
    log = SyntheticLog(50, 20, "sessions", queries=7, matrices=(("text", 4),), seed=1)
    for user in range(len(log)):
        record = log[user]
        records.validate(record, log.spec, "synthetic")
        assert len(record["item"]) == log.lengths[user]
        np.testing.assert_equal(record, SyntheticLog(50, 20, "sessions", 7, (("text", 4),), seed=1)[user])
    assert log.item_matrices["text"].shape == (51, 4) and not log.item_matrices["text"][0].any()
    assert log.query_matrices["text"].shape == (8, 4)


def test_items_follow_zipf():
    drawn = zipf(np.random.default_rng(0), 1000, 200_000)
    assert drawn.min() == 1 and drawn.max() == 1000
    for item in (1, 2, 10):
        expected = np.log(1 + 1 / item) / np.log(1001)
        assert np.mean(drawn == item) == pytest.approx(expected, rel=0.1)


def test_lengths_are_those_of_the_logs_that_they_stand_for():
    movielens, sessions = (SyntheticLog(10, 5000, name).lengths for name in ("movielens", "sessions"))
    assert np.median(movielens) == pytest.approx(96, rel=0.1) and movielens.mean() == pytest.approx(160, rel=0.1)
    assert np.median(sessions) == 3 and sessions.mean() == pytest.approx(5.5, rel=0.1)
    assert movielens.min() == 20 and sessions.min() == 1


def test_unknown_lengths_are_refused():
    with pytest.raises(UserError, match=r"no distribution of lengths 'session'; did you mean 'sessions'\?"):
        SyntheticLog(10, 10, "session")
    assert set(LENGTHS) == {"movielens", "sessions"}
