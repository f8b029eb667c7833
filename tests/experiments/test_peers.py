"""The scripts that compare with other libraries: what they hand over, how they speak, and that metrics mean the same."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from small_log import SmallLog, user

from data_pipelines.feed import splits
from synergen_jax.config import DataConfig
from synergen_jax.evaluation import metrics

PEERS = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "peers"
SCRIPTS = ("speed.py", "quality.py", "peer.py")


@pytest.fixture
def events(monkeypatch):
    monkeypatch.syspath_prepend(str(PEERS))
    import events

    return events


def run(script, *arguments):
    return subprocess.run([sys.executable, PEERS / script, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_torch_and_no_jax(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "usage: " + script in done.stdout, done.stderr


@pytest.mark.parametrize(
    "script, arguments, words",
    [
        ("speed.py", ["--models", "sasrec,bert"], "--models bert: sasrec and hstu are known"),
        ("speed.py", ["--peer-python", "/no/python"], "--peer-python /no/python: No such file or directory"),
        (
            "quality.py",
            ["--model", "hstu", "--peer-python", "/bin/false"],
            "/bin/false has no RecTools (it says nothing)",
        ),
        ("peer.py", ["speed", "--events", "no.npz", "--model", "hstu"], "--events no.npz: no such file"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(script, arguments, words):
    done = run(script, *arguments)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_the_split_that_is_handed_over(events, tmp_path):
    log = SmallLog(
        [user([3, 4, 0, 5, 6], name="a", query=[0, 0, 1, 0, 0]), user([7, 8], name="b"), user([1, 2, 3], name="c")], 9
    )
    events.write(log, splits.split(log, DataConfig()), tmp_path / "events.npz")
    with np.load(tmp_path / "events.npz") as found:
        part = lambda name: [found[f"{name}_{field}"].tolist() for field in ("user", "item")]
        assert part("train") == [[0, 0, 1, 1, 2], [3, 4, 7, 8, 1]]  # a search without an item is no event for the peers
        assert part("validation") == [[0, 2], [5, 2]]
        assert part("test") == [[0, 2], [6, 3]]
        assert found["items"] == 9
        assert found["train_time"].tolist() == [1_000_000_000 + s for s in (0, 60, 0, 60, 0)]


def test_a_peer_answers_steps_and_ends(events, tmp_path, monkeypatch):
    (tmp_path / "peer.py").write_text(
        "import sys\n"
        "print('warnings come first'); print('{\"ready\": true}', flush=True)\n"
        "for line in sys.stdin:\n"
        "    if not line.strip(): break\n"
        '    print(\'{"seconds": 2.0, "targets": %d}\' % (10 * int(line)), flush=True)\n'
    )
    monkeypatch.setattr(events, "HERE", tmp_path)
    peer = events.Peer(sys.executable, "speed", tmp_path / "events.npz", model="hstu")
    assert peer.answer() == {"ready": True}
    assert peer.steps(3) == {"seconds": 2.0, "targets": 30}
    peer.close()
    assert peer._process.returncode == 0


def test_a_peer_that_fails_is_told(events, tmp_path, monkeypatch):
    (tmp_path / "peer.py").write_text("import sys; sys.exit(3)")
    monkeypatch.setattr(events, "HERE", tmp_path)
    with pytest.raises(RuntimeError, match="the peer ended with status 3"):
        events.Peer(sys.executable, "speed", tmp_path / "events.npz").answer()


def test_metrics_agree_with_rectools():
    """Of the same lists, ours and RecTools' hit rate, NDCG and reciprocal rank are the same."""
    rectools_metrics = pytest.importorskip("rectools.metrics")
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    users, items = 400, 60
    scores = rng.permuted(np.tile(np.arange(items + 1), (users, 1)), axis=1).astype(
        np.float32
    )  # no ties: theirs have no rule
    target = rng.integers(1, items + 1, users).astype(np.int32)
    ours = metrics.retrieval_metrics(metrics.ranks(scores, target, np.zeros((users, 1), np.int32)))
    order = np.argsort(-scores[:, 1:], axis=1) + 1
    lists = pandas.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), items),
            "item_id": order.ravel(),
            "rank": np.tile(np.arange(1, items + 1), users),
        }
    )
    truth = pandas.DataFrame({"user_id": np.arange(users), "item_id": target})
    theirs = {f"hr@{k}": rectools_metrics.HitRate(k) for k in (1, 5, 10, 50)}
    theirs |= {f"ndcg@{k}": rectools_metrics.NDCG(k, divide_by_achievable=True) for k in (1, 5, 10, 50)}
    theirs["mrr"] = rectools_metrics.MRR(items)
    for name, value in rectools_metrics.calc_metrics(theirs, lists, truth).items():
        assert ours[name].mean() == pytest.approx(value, abs=1e-12), name
        assert 0 < value < 1
