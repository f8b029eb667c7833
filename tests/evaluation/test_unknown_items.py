"""Items of which nothing is known: an evaluation, a recommendation, and baselines that cannot be made, by the command line."""

import dataclasses
import json

import numpy as np
import pytest
import small_model
from small_log import SmallLog, user

from data_pipelines.feed import feed, splits
from synergen_jax.cli.main import main
from synergen_jax.config import Config, DataConfig, EvaluateConfig, ModelConfig
from synergen_jax.errors import UserError
from synergen_jax.evaluation import baselines, protocol
from synergen_jax.retrieval import index
from synergen_jax.runs import evaluate
from synergen_jax.runs.run import Run

LIVE, UNKNOWN = 12, 30
CONFIG = """
[data]
log = "shop"
split = "leave-one-out"
max_history = 8
batch = 8
rank_events = 2
rank_candidates = 4
[model]
width = 8
depth = 1
heads = 2
[mesh]
data = 1
[run]
steps = 4
eval_every = 4
checkpoint_every = 4
[evaluate]
batch = 32
rank_candidates = 30
rerank = 20
bootstrap = 0
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A trained run: 30 items have neither an event nor a text; queries have words, items none; all is bought."""
    root = tmp_path_factory.mktemp("unknown")
    rng, rows = np.random.default_rng(0), ["user,item,time,action,query"]
    for one in range(20):
        for n, item in enumerate(rng.permutation(LIVE)[: rng.integers(5, 8)]):
            rows.append(f"u{one},live{item},{1_600_000_000 + 1000 * one + 60 * n},buy,{'red hat' if n % 2 else ''}")
    rows.append("u0,late,1700000000,buy,")  # the test target of u0, and of nobody else
    (root / "events.csv").write_text("\n".join(rows) + "\n")
    items = [*(f"live{n}" for n in range(LIVE)), "late", *(f"dead{n}" for n in range(UNKNOWN))]
    (root / "items.csv").write_text("\n".join(["item", *items]) + "\n")
    (root / "shop.toml").write_text(CONFIG)
    call = lambda *arguments: main([*map(str, arguments), "--data-dir", str(root / "data")])
    table = "--items", root / "items.csv", "--label", "bought=buy"
    assert call("data", "import", root / "events.csv", "--name", "shop", *table) == 0
    assert call("train", root / "shop.toml", "--workdir", root / "run") == 0
    return lambda command, *arguments: call(command, root / "run", *arguments)


def test_an_evaluation_puts_them_behind_all_others_and_counts_the_targets_among_them(shop, capsys):
    assert shop("evaluate", "--json") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    # 19 of 20 targets are among at most 12 known items; that of u0, which nothing is known of, is behind them.
    for system in ("model", "model_reranked"):
        assert found[system]["hr@50"] == pytest.approx(1) and found[system]["hr@10"] > 0.7
        # Seven known items are left for u0; the target shares the places after them, 8 to 38, with 30 others like it.
        assert found["slices"]["new items, never in training"][system]["hr@10"] == pytest.approx(3 / 31)
    assert found["unknown_targets"] == 1 and any("nothing is known of 1 targets" in line for line in lines)
    assert found["targets"] == 20
    # Of 29 sampled candidates some two thirds are unknown: a model that knows nothing at all is right about these.
    assert found["model"]["auc/engage"] > 0.6
    assert found["left_out"]["bm25"] == "the items have no texts" and "bm25" not in found["slices"]["search"]
    assert "bm25, query_lookup, lookup_user_knn are left out: the items have no texts" in lines
    assert found["left_out"]["user_item_mean"] == "each label is the same in all events of training"
    assert "user_item_mean" not in found


def test_they_are_never_recommended(shop, capsys):
    for order in ([], ["--order", "bought"]):
        assert shop("recommend", "--user", "u3", "-k", "5", *order, "--json") == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])["recommendations"]
        assert len(found) == 5 and all(row["item"].startswith("live") for row in found)


@pytest.mark.parametrize(
    ("texts", "queries", "why"),
    [
        (["", "", " "], ["", "red hat"], "the items have no texts"),
        (["", "red hat", ""], ["", " "], "no query has a word"),
        (["", "red hat", ""], ["", "blue"], "no word of a query stands in the text of an item"),
    ],
)
def test_bm25_without_words_is_refused_with_the_reason(texts, queries, why):
    with pytest.raises(UserError, match=why):
        baselines.bm25(texts, queries)


def small(**changes):
    """A log of six users, without texts; the item of each one's last event is new."""
    log = SmallLog([user([1, 2, 3, 4, 5 + u], name=f"u{u}", query=[0, 1, 0, 1, 1]) for u in range(6)], 12)
    log.item_texts = [""] * 12
    return dataclasses.replace(
        Config(
            data=DataConfig(max_history=8),
            model=ModelConfig(width=16, heads=2, depth=1, dropout=0.0),
            evaluate=EvaluateConfig(batch=4, rank_candidates=5, bootstrap=0, rerank=3),
        ),
        **changes,
    ), log


def test_what_the_newest_events_do_not_tell_is_left_out():
    """The newest tenth of training are searches without an item: all items would have the same score, 0."""
    config, log = small()
    log.records = [user([1, 2, 0, 3, 4], name=f"u{u}", time=[0, 1, 9, 10, 11]) for u in range(6)]
    found = evaluate._baselines(Run(config, log))
    assert "most_recent" not in found.scorers
    assert found.left_out["most_recent"] == "none of the newest events of training has an item"


def test_the_report_has_the_reasons_of_the_caller_and_its_own(monkeypatch):
    """Nothing is known of any item: all tie, ScaNN has nothing to index, and a baseline says nothing."""
    config, log = small()
    model, params, _ = small_model.make(config.model, log.spec)
    zeros = lambda matrices: {name: np.zeros_like(matrix) for name, matrix in matrices.items()}
    counts = np.zeros(12, np.int32), np.zeros(5, np.int32)
    catalogue = small_model.batches.Catalogue(zeros(log.item_matrices), zeros(log.query_matrices), *counts)
    targets = feed.evaluation_feed(log, splits.split(log, config.data), "test", config)
    monkeypatch.setattr(index, "load_scann", lambda: None)
    said, silent = [], {"silent": lambda batch: None}
    rest = {"others": silent, "left_out": {"bm25": "no words"}}
    found = protocol.evaluate(model, params, catalogue, targets, config.evaluate, said.append, **rest)
    assert found.left_out == {
        "bm25": "no words",
        "model_scann": "nothing is known of any item",
        "silent": "it says nothing of any target of this split",
    }
    assert said == [f"{name} is left out: {why}" for name, why in found.left_out.items()]
    assert found.unknown_targets == found.targets == 6
    assert found.values["model"]["hr@1"] < 0.5 and found.values["model_reranked"]["hr@1"] < 0.5
