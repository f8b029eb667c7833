"""trivago: from a made-up parquet file to a log, its features through feed and model, and baselines of its lists."""

import collections
import dataclasses
import re

import jax
import numpy as np
import polars as pl
import pytest
import small_model

from data_pipelines.event_log import event_log
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.feed import examples, feed, splits
from data_pipelines.sources import prepare, trivago
from data_pipelines.sources.trivago_lists import History
from synergen_jax.batch import Candidates, EvalBatch, Events, Readers
from synergen_jax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimiserConfig,
)
from synergen_jax.errors import UserError
from synergen_jax.evaluation import baselines, protocol
from synergen_jax.serving.recommender import Recommender
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import place_catalogue
from synergen_jax.training import train_step

CLICK, IMAGE, INFO = "clickout item", "interaction item image", "interaction item info"
COLUMNS = ("user_id", "session_id", "timestamp", "step", "action_type", "reference", "city")
OPTIONAL = ("current_filters", "impressions", "prices")
# Two users; rows out of order; the numbers of rows start from 1.
ROWS = [
    ("v", "s3", 900, 1, CLICK, "30", "Rome, Italy", None, "20|30", "50|50"),
    ("u", "s1", 100, 1, "search for destination", "Paris, France", "Paris, France"),
    ("u", "s1", 130, 4, IMAGE, "20", "Paris, France"),
    ("u", "s1", 120, 2, IMAGE, "20", "Paris, France"),
    ("u", "s1", 120, 3, IMAGE, "20", "Paris, France"),
    ("u", "s1", 140, 5, INFO, "unknown", "Paris, France"),
    ("u", "s1", 150, 6, "search for poi", "Louvre", "Paris, France"),
    ("u", "s1", 160, 7, "filter selection", "Hotel", "Paris, France", "Motel|Hotel"),
    ("u", "s1", 170, 8, CLICK, "100", "Paris, France", "Motel|Hotel", "20|100|9", "10|100|1000"),
    ("u", "s1", 180, 9, IMAGE, "9", "Paris, France"),
    ("u", "s1", 190, 10, CLICK, "9", "Paris, France", None, "20|100|9", "10|100"),
    ("u", "s1", 200, 11, CLICK, "9", "Paris, France", None, "20|100", "10|100"),
    ("u", "s1", 210, 12, CLICK, "9", "Paris, France"),
    ("u", "s2", 300, 1, "change of sort order", "price only", "Nice, France"),
    ("u", "s2", 310, 2, IMAGE, "9", "Nice, France"),
    ("u", "s2", 320, 3, "search for poi", None, "Nice, France"),
    ("u", "s2", 330, 4, CLICK, "9", "Nice, France", None, "9", "70"),
    ("w", "s4", 400, 1, INFO, "unknown", "Rome, Italy"),
]


def table(rows=tuple(ROWS)):
    """The rows as polars has them."""
    filled = [(*row, *[None] * (len(COLUMNS) + len(OPTIONAL) - len(row))) for row in rows]
    return pl.DataFrame(filled, schema=[*COLUMNS, *OPTIONAL], orient="row", infer_schema_length=None)


def log_of(tmp_path, rows=tuple(ROWS), folder="trips"):
    (tmp_path / folder).mkdir(exist_ok=True)
    table(rows).write_parquet(tmp_path / folder / "val.parquet.snappy")
    return prepare.prepare("trivago", source=tmp_path / folder, data_dir=tmp_path)


def test_a_log_worked_by_hand(tmp_path):
    log = log_of(tmp_path)
    assert log.name == "trips" and log.user_ids == ["u", "v"] and log.item_ids == ["", "9", "20", "30", "100"]
    assert log.candidate_features == log.spec.candidate_features == trivago.FEATURES
    assert log.labels == {"engage": (1, 2, 3, 4, 5, 6)}
    code = log.item_matrices["code"].astype(np.float32)
    assert not code[0].any() and np.allclose(code[1:] @ code[1:].T, np.eye(4), atol=0.5), "each item stands alone"
    near = dict(zip(log.queries, log.query_matrices["query_code"] @ log.query_matrices["query_code"][1]))
    assert log.queries[1] == "Nice, France" and near["Paris, France"] > near["Rome, Italy"] + 0.2, "France is shared"
    u = log[0]
    steps = [
        (log.actions[a], log.item_ids[i], log.queries[q], t)
        for a, i, q, t in zip(u["action"], u["item"], u["query"], u["time"])
    ]
    louvre = "Paris, France | Louvre"
    assert steps == [
        ("search for destination", "", "Paris, France", 100),
        (IMAGE, "20", "Paris, France", 120),  # two more of the same item follow
        ("search for poi", "", louvre, 150),
        ("filter selection", "", f"{louvre} | Hotel, Motel", 160),
        (CLICK, "100", f"{louvre} | Hotel, Motel", 170),
        (IMAGE, "9", f"{louvre} | Hotel, Motel", 180),
        (CLICK, "9", louvre, 190),  # a clickout without filters says that there are none
        (CLICK, "9", louvre, 200),
        (CLICK, "9", louvre, 210),
        ("change of sort order", "", "Nice, France", 300),
        (IMAGE, "9", "Nice, France", 310),
        (CLICK, "9", "Nice, France", 330),
    ]
    assert u["request"].tolist() == list(range(1, 13))
    assert u["shown_request"].tolist() == [5, 5, 5, 12]
    assert [log.item_ids[i] for i in u["shown_item"]] == ["20", "100", "9", "9"]
    assert [log.actions[a] for a in u["shown_action"]] == ["", CLICK, "", CLICK]
    z = np.sqrt(1.5)  # of log 10, log 100, log 1000
    # Item 20, whose repeats count, was the last that u had met before the first list, item 9 before the second.
    first = [[0, -z, 1, np.log(31), np.log(4)], [np.log(2), 0, 0, 0, 0], [np.log(3), z, 0, 0, 0]]
    columns = [trivago.FEATURES.index(name) for name in ("position", "price", "seen", "ago", "times")]
    found = u["shown_feature"][:, columns]
    np.testing.assert_allclose(found, [*first, [0, 0, 1, 0, np.log(6)]], rtol=1e-6, atol=1e-6)
    kept, steps = (u["shown_feature"][:, trivago.FEATURES.index(name)] for name in ("kept", "steps"))
    assert kept.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(np.exp(steps) - 1, [6, 6, 6, 13], rtol=1e-5)  # rows that are kept, and repeats
    position = np.zeros((2, 16))
    position[1, 0] = np.log(2)  # equal prices
    np.testing.assert_allclose(log[1]["shown_feature"], position, rtol=1e-6)
    assert log.source["counts"] == {
        "rows": 18,
        "repeats": 2,
        "references without an item": 2,
        "searches without a text": 1,
        "lists missing": 1,
        "lists malformed": 1,
        "lists without the clicked item": 1,
    }


@pytest.mark.parametrize("prices", ["10|x|1000", "10|0|1000", "10|nan|1000", "", "10|100|1000|1", "10|-1|5"])
def test_a_list_with_wrong_prices_is_left_out(prices):
    counts = collections.Counter()
    assert trivago._shown("9", "20|100|9", prices, History(), counts) is None and counts == {"lists malformed": 1}
    assert trivago._shown("9", "20|20|9", "1|2|3", History(), counts) is None  # an item twice
    assert trivago._shown("9", "20|?|9", "1|2|3", History(), counts) is None and counts == {"lists malformed": 3}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((None, "s1", 100, 1, IMAGE, "9", "Rome"), "row 19: user_id None names nobody"),
        (("u", " ", 100, 1, IMAGE, "9", "Rome"), "row 19: session_id ' ' names nobody"),
        (("u", "s1", None, 1, IMAGE, "9", "Rome"), "row 19: timestamp None must be Unix seconds"),
        (("u", "s1", 0, 1, IMAGE, "9", "Rome"), "row 19: timestamp 0 must be"),
        (("u", "s1", 1_541_548_939_000, 1, IMAGE, "9", "Rome"), "row 19: timestamp 1541548939000 must be"),
        (("u", "s1", 100, -1, IMAGE, "9", "Rome"), "row 19: step -1 must be"),
        (("u", "s1", 100, 1, "wave", "9", "Rome"), "row 19: action_type 'wave' is none of interaction item deals, "),
        (("u", "s1", 100, 1, None, "9", "Rome"), "row 19: action_type None is none of "),
    ],
)
def test_bad_rows_are_refused_by_number(tmp_path, row, reason):
    with pytest.raises(UserError, match="^" + re.escape(f"{tmp_path / 'trips' / 'val.parquet.snappy'}, {reason}")):
        log_of(tmp_path, (*ROWS, row))
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda t: t.drop("prices"), "there is no column prices; it has user_id, "),
        (
            lambda t: t.with_columns(timestamp=pl.col("timestamp").cast(pl.String)),
            "must hold whole numbers, not String",
        ),
        (lambda t: t.with_columns(city=pl.lit(1)), "column city must hold text, not Int32"),
        (lambda t: t.head(0), "there are no rows"),
    ],
)
def test_bad_files_are_refused(tmp_path, make, reason):
    make(table()).write_parquet(tmp_path / "val.parquet")
    with pytest.raises(UserError, match=re.escape(reason)):
        prepare.prepare("trivago", source=tmp_path / "val.parquet", data_dir=tmp_path / "data")


def test_what_is_no_source(tmp_path):
    with pytest.raises(UserError, match="trivago is not fetched: give --source PATH"):
        prepare.prepare("trivago", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"0 \.parquet files, where one is wanted"):
        prepare.prepare("trivago", source=tmp_path, data_dir=tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        prepare.prepare("trivago", source=tmp_path / "none.parquet", data_dir=tmp_path)
    (tmp_path / "val.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(UserError, match="not a whole parquet file"):
        prepare.prepare("trivago", source=tmp_path, data_dir=tmp_path)


def test_a_whole_log_is_reused_and_a_file_names_its_log(tmp_path):
    log = log_of(tmp_path)
    made = (log.path / "log.json").stat().st_mtime_ns
    assert log_of(tmp_path).fingerprint == log.fingerprint
    assert (log.path / "log.json").stat().st_mtime_ns == made
    alone = prepare.prepare("trivago", source=tmp_path / "trips" / "val.parquet.snappy", data_dir=tmp_path)
    assert alone.name == "val" and alone.fingerprint == log.fingerprint


# --- candidate features of any log ------------------------------------------------------------------------------


def test_features_belong_to_the_fingerprint_and_are_checked(tmp_path):
    log = log_of(tmp_path)
    records = [log[i] for i in range(len(log))]
    parts = {
        "name": "copy",
        "item_ids": log.item_ids,
        "item_titles": log.item_ids,
        "queries": log.queries,
        "actions": log.actions,
        "labels": log.labels,
        "item_matrices": log.item_matrices,
        "query_matrices": log.query_matrices,
        "source": {},
    }
    write = lambda users, **more: event_log.write(tmp_path / "copy", users=users, **parts, **more)
    names = {"candidate_features": log.candidate_features}
    assert write(records, **names).fingerprint == log.fingerprint
    plain = write(records)  # without names there are no features
    assert "shown_feature" not in plain[0] and plain.spec.candidate_features == ()
    moved = [records[0] | {"shown_feature": records[0]["shown_feature"] + 1}, records[1]]
    others = [plain, write(moved, **names), write(records, candidate_features=("cost", *trivago.FEATURES[1:]))]
    assert len({log.fingerprint, *(other.fingerprint for other in others)}) == 4
    for wrong, reason in (
        (records[0]["shown_feature"][:, :1], r"shown_feature must be numbers of shape \(4, 16\), not float32 of shape"),
        (records[0]["shown_feature"] * np.float32(np.nan), "row 0: shown_feature holds a value that is not finite"),
    ):
        with pytest.raises(UserError, match=reason):
            write([records[0] | {"shown_feature": wrong}], **names)
    with pytest.raises(UserError, match="candidate_features must be distinct"):
        write(records, candidate_features=("price", "price"))
    assert EventLog.load(tmp_path / "copy").fingerprint == others[-1].fingerprint, "what was refused left it alone"


def sessions(tmp_path, users=30, seed=0, first=False):
    """A log of random sessions: lists of up to 12 of 40 items, pictures and clickouts, all within a day.

    With `first`, what is clicked is always the first of the list.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        time = int(rng.integers(1_000_000, 1_080_000))
        for step in range(1, int(rng.integers(3, 12))):
            time += int(rng.integers(1, 60))
            listed = rng.permutation(40)[: rng.integers(2, 13)] + 1
            item = str(listed[0] if first else rng.choice(listed))
            if rng.random() < 0.5:
                lists = ("|".join(map(str, listed)), "|".join(map(str, rng.integers(20, 300, len(listed)))))
                rows.append((f"u{user}", f"s{user}", time, step, CLICK, item, "Oslo", None, *lists))
            else:
                rows.append((f"u{user}", f"s{user}", time, step, IMAGE, item, "Oslo"))
    return log_of(tmp_path, rows)


CONFIG = Config(
    data=DataConfig(
        split="time",
        validation_from=0.6,
        test_from=0.8,
        max_history=8,
        batch=4,
        rank_events=2,
        rank_candidates=5,
        target_actions=CLICK,
        filter_seen=False,
    ),
    evaluate=EvaluateConfig(batch=8, rank_candidates=25),
)


def test_features_and_targets_in_training(tmp_path):
    log = sessions(tmp_path)
    split = splits.split(log, CONFIG.data)
    batches = feed.train_feed(log, split, CONFIG)(0)
    ranked = pictures = 0
    for _ in range(20):
        batch = next(batches)
        ranking = batch.ranking
        assert ranking.feature.shape == (4, 2, 5, 17) and ranking.feature.dtype == np.float32
        known = ranking.feature[..., -1]
        assert np.array_equal(known == 1, ranking.item > 0), "only clickouts are ranked, within their lists"
        assert not ranking.feature[known == 0].any()
        first = (ranking.item > 0) & (ranking.feature[..., 0] == 0)
        assert first.sum(-1).max() <= 1, "one first place a list"
        # The features are those of the item in the list: look each up.
        by_item = {}
        for record in (log[u] for u in range(len(log))):
            for i, values in zip(record["shown_item"].tolist(), record["shown_feature"]):
                by_item.setdefault(i, set()).add(tuple(values.tolist()))
        for i, values in zip(ranking.item[known == 1].tolist(), ranking.feature[known == 1]):
            assert tuple(values[:-1].tolist()) in by_item[i]
        ranked += int((ranking.item[..., 0] > 0).sum())
        image = log.actions.index(IMAGE)
        pictures += int(((batch.target > 0) & (batch.events.action == image)).sum())
        # No reader sees its own request: each event is one of its own, so event i is asked for with i events in view.
        n = batch.events.mask.sum(1)
        for row in range(4):
            assert batch.retrieval.visible[row, : n[row]].tolist() == list(range(n[row]))
        assert (ranking.visible <= n[:, None]).all()
    batches.close()
    assert ranked > 50 and pictures > 50, "every item event is a target of retrieval"


def test_an_evaluation_ranks_the_whole_list_and_knows_its_order(tmp_path):
    log = sessions(tmp_path)
    split = splits.split(log, CONFIG.data)
    found = feed.evaluation_feed(log, split, "test", CONFIG)
    rows = [(batch, i) for batch in found for i in range(len(batch.user)) if batch.user[i] >= 0]
    assert len(rows) == found.targets > 10
    for (batch, i), (user, event) in zip(rows, found.places.tolist()):
        record = log[user]
        assert log.actions[record["action"][event]] == CLICK and batch.shown[i]
        mine = record["shown_request"] == record["request"][event]
        order = batch.position[i]
        assert sorted(order[order > 0].tolist()) == list(range(1, mine.sum() + 1)), "the whole list"
        assert np.array_equal(order > 0, batch.ranking.item[i, 0] > 0)
        by_place = batch.ranking.item[i, 0][np.argsort(order, kind="stable")][-mine.sum() :]
        assert by_place.tolist() == record["shown_item"][mine].tolist()
        assert batch.ranking.item[i, 0, 0] == batch.target[i] == record["item"][event]
        np.testing.assert_allclose(batch.ranking.feature[i, 0, : mine.sum(), 0], np.log(order[: mine.sum()]), rtol=1e-6)
        assert batch.reader.visible[i, 0] == min(event, 8) == batch.events.mask[i].sum()
        assert batch.ranking.label[i, 0, : mine.sum(), 0].tolist() == [1] + [0] * (mine.sum() - 1)
    # With less room than the list needs, places are still those of the whole list.
    config = dataclasses.replace(CONFIG, evaluate=EvaluateConfig(batch=8, rank_candidates=3))
    batch = next(iter(feed.evaluation_feed(log, split, "test", config)))
    assert batch.position.shape == (8, 3) and batch.position.max() > 3
    everything = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, target_actions=""))
    more = feed.evaluation_feed(log, split, "test", everything)
    shown = np.concatenate([batch.shown[batch.user >= 0] for batch in more])
    assert more.targets == len(shown) > shown.sum() == found.targets, "pictures have no list"
    unknown = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, target_actions="buy"))
    with pytest.raises(UserError, match="trips has no action 'buy'; its actions: interaction item deals"):
        feed.train_feed(log, split, unknown)


def test_a_model_learns_that_the_first_is_clicked_on_a_mesh(tmp_path):
    log = sessions(tmp_path, users=60, first=True)
    config = dataclasses.replace(
        CONFIG,
        data=dataclasses.replace(CONFIG.data, batch=8, negatives=8),
        model=ModelConfig(width=16, depth=1, heads=2, dropout=0.0),
        loss=LossConfig(retrieval_weight=0.0, pointwise_weight=1.0, in_batch=8, log_q=False),
        optimiser=OptimiserConfig(learning_rate=2e-2, warmup=1),
        mesh=MeshConfig(2, 2),
    )
    split = splits.split(log, config.data)
    mesh = device_mesh.make_mesh(config.mesh)
    model = train_step.make_model(config, log.spec)
    state, shardings = train_step.init_state(config, model, mesh)
    step = train_step.make_step(config, model, mesh, shardings)
    catalogue = place_catalogue(examples.catalogue(log, split), mesh)
    batches = feed.train_feed(log, split, config)(0)
    for _ in range(100):
        state, _ = step(state, device_mesh.place(next(batches), device_mesh.batch_shardings(mesh)), catalogue)
    batches.close()
    params, catalogue = jax.device_get((state.params, examples.catalogue(log, split)))
    targets = feed.evaluation_feed(log, split, "test", config)
    found = protocol.evaluate(model, params, catalogue, targets, EvaluateConfig(bootstrap=10, scann=False))
    assert list(found.shown) == ["model", "shown_order", "last_seen_first", "most_popular"]
    assert found.lists == found.targets > 20
    mrr = {name: values["list_mrr"]["mean"] for name, values in found.shown.items()}
    assert mrr["shown_order"] == 1 and mrr["model"] > 0.99 and mrr["most_popular"] < 0.7
    assert found.shown["shown_order"]["list_hr@1"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    lead = found.shown["model"]["list_mrr"]["mean"] - found.shown["shown_order"]["list_mrr"]["mean"]
    assert abs(found.leads["list_mrr"]["shown_order"]["mean"] - lead) < 1e-6
    validate = protocol.validator(model, small_model.stored(catalogue), targets)
    assert validate(params)["shown_mrr"] == pytest.approx(mrr["model"])
    # In serving nothing is known of a candidate's place: its features are unknown, not 0.
    recommender = Recommender(model, params, catalogue)
    history, _ = examples.user_history(log[0], config)
    unknown = recommender.rank(recommender.encode(history), [1, 2, 3], 10**5)
    assert unknown.shape == (3, 1) and np.isfinite(unknown).all()


# --- baselines ----------------------------------------------------------------------------------------------------


def test_baselines_by_hand():
    # One list: item 5 was chosen; shown were 4, 5, 6, 7 in this order. The context: 6, a search, 7, 6, 9.
    one = lambda x: np.array([x], np.int32)
    item = one([[5, 4, 6, 7, 0, 8]])
    batch = EvalBatch(
        user=one(0),
        events=Events(one([6, 0, 7, 6, 9, 0]), one([1, 2, 1, 1, 1, 0]), one([0] * 6), one([0] * 6)),
        reader=Readers(one([0]), one([0]), one([0]), one([5])),
        target=one(5),
        seen=np.zeros((1, 0), np.int32),
        ranking=Candidates(item, np.zeros((1, 1, 6, 1), np.int8), one([0]), one([0]), one([5])),
        position=one([2, 1, 3, 4, 0, 0]),
    )
    counts = np.array([0, 0, 0, 0, 3, 2, 9, 3, 1, 1])
    order = lambda name: item[0, 0][np.argsort(-baselines.LISTS[name](batch, counts)[0], kind="stable")].tolist()
    assert order("shown_order") == [4, 5, 6, 7, 0, 8]
    assert order("last_seen_first") == [6, 7, 4, 5, 0, 8]
    assert baselines.most_popular(batch, counts).tolist() == [[2, 3, 9, 3, 0, 1]]
    assert batch.shown.tolist() == [True]
    unseen = dataclasses.replace(batch, events=dataclasses.replace(batch.events, item=np.zeros((1, 6), np.int32)))
    shown = baselines.last_seen_first(unseen, counts)[0]
    assert np.argsort(-shown, kind="stable").tolist() == [1, 0, 2, 3, 4, 5]
