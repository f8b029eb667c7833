"""Last.fm: from two made-up tables to a log whose made-up times cut its parts, and none of whose targets tells another."""

import gzip
import re

import numpy as np
import pytest

from data_pipelines.feed import examples, feed, splits
from data_pipelines.sources import lastfm, prepare
from synergen_jax import config as configs
from synergen_jax.errors import UserError

HEAD = "user_id,item_id,query,date,plays,part\n"
ITEMS = 'item_id,name\n1,MALICE MIZER\n2,"Earth, Wind & Fire"\n3,\n9,Nobody\n'


def events(users=12, artists=20, seed=0):
    """Rows of random users: listens most played first, then tags, as the files have them; each artist in one part."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        chosen = rng.permutation(artists)[:10] + 1
        parts = dict(zip(chosen.tolist(), ["train"] * 6 + ["valid"] * 2 + ["test"] * 2))
        rows += [(user, artist, "", "", 90, part) for artist, part in parts.items() if rng.random() < 0.8]
        rows += [
            (user, artist, tag, "2009-01-01", "", part)
            for artist, part in parts.items()
            for tag in rng.permutation(["rock", "new wave", "jazz"])[: rng.integers(0, 4)]
        ]
    return HEAD + "".join(",".join(map(str, row)) + "\n" for row in rows)


def folder_of(folder, rows, items=ITEMS, packed=True):
    folder.mkdir(exist_ok=True)
    for name, text in (("events.csv", rows), ("items.csv", items)):
        data = text.encode()
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return folder


def log_of(tmp_path, rows, seed=None, **files):
    source = folder_of(tmp_path / "files", rows, **files)
    return prepare.prepare("lastfm", source=source, data_dir=tmp_path / "data", seed=seed)


def test_a_log_worked_by_hand(tmp_path):
    rows = (
        "7,2,,,50,test\n7,1,,,40,train\n7,3,,,30,train\n7,10,,,20,valid\n"
        "7,1,j-rock,2009-01-01,,train\n7,2,soul,2009-01-01,,test\n7,1,visual kei,2009-01-01,,train\n"
        "7,11,soul,2009-01-01,,test\n10,1,,,3,train\n"
    )
    log = log_of(tmp_path, HEAD + rows)
    assert log.name == "lastfm" and log.user_ids == ["7", "10"] and log.actions == ["", "listen", "tag"]
    assert log.item_ids == ["", "1", "2", "3", "9", "10", "11"] and log.labels == {"engage": (1, 2)}
    assert log.item_titles == ["", "MALICE MIZER", "Earth, Wind & Fire", "3", "Nobody", "10", "11"]
    assert log.queries == ["", "j-rock", "soul", "visual kei"]
    assert not log.item_matrices and log.query_matrices["text"].any(axis=1).tolist() == [False, True, True, True]
    one = log[0]
    times = dict(zip(lastfm.TIMES.values(), lastfm.TIMES))
    seen = [
        (request, times[time], log.item_ids[item], log.actions[action], log.queries[query])
        for request, time, item, action, query in zip(
            *(one[name].tolist() for name in ("request", "time", "item", "action", "query"))
        )
    ]
    first = [("train", "1", "listen", ""), ("train", "1", "tag", "j-rock"), ("train", "1", "tag", "visual kei")]
    other = [("train", "3", "listen", "")]
    train = [(1, *event) for event in first] + [(2, *event) for event in other]
    turned = [(1, *event) for event in other] + [(2, *event) for event in first]
    assert seen[:4] in (train, turned), "one request an artist, the listen first, artists in an order that is drawn"
    assert seen[4] == (3, "valid", "10", "listen", "")
    assert [row[0] for row in seen[5:]] == [4, 4, 4], "the test part is one request"
    assert sorted(row[1:] for row in seen[5:]) == sorted(
        [("test", "2", "listen", ""), ("test", "2", "tag", "soul"), ("test", "11", "tag", "soul")]
    )
    assert "tags, typed by the users" in log.query_note and "times are made up" in log.query_note
    assert log.source["counts"] == {"listens": 5, "tags": 4, "artists without a name": 3}


def test_each_event_of_a_part_is_a_target_and_none_sees_another(tmp_path):
    log = log_of(tmp_path, events())
    config = configs.load("lastfm")
    split = splits.split(log, config.data)
    counts = {"validation": 0, "test": 0}
    for part, moment in (("validation", lastfm.TIMES["valid"]), ("test", lastfm.TIMES["test"])):
        there = sum(int((log[user]["time"] == moment).sum()) for user in range(len(log)))
        targets = examples.Targets.of(log, split, part, config)
        assert targets.targets == there > 30 and not targets.repeated
        for batch in targets:
            for row in range(len(batch.user)):
                if batch.user[row] < 0:
                    continue
                record = log[int(batch.user[row])]
                visible = int(batch.reader.visible[row, 0])
                context = set(batch.events.item[row, :visible].tolist())
                assert visible == int((record["time"] < moment).sum()), "all that came before the part, and no more"
                assert batch.target[row] not in context | set(batch.seen[row].tolist())
                assert context <= set(batch.seen[row].tolist())
                counts[part] += 1
    assert min(counts.values()) > 30


def test_in_training_no_reader_sees_its_artist(tmp_path):
    log = log_of(tmp_path, events())
    config = configs.load("lastfm", ["--data.batch", "2"])
    split = splits.split(log, config.data)
    batches = feed.train_feed(log, split, config)(0)
    met = 0
    for _ in range(5):
        batch = next(batches)
        first = batch.retrieval.first if batch.retrieval.first is not None else np.zeros_like(batch.target)
        for row, place in zip(*(batch.target > 0).nonzero()):
            context = batch.events.item[row, first[row, place] : batch.retrieval.visible[row, place]]
            assert batch.target[row, place] not in context
            met += len(context) > 0
    batches.close()
    assert met > 100


def test_the_order_is_drawn_by_seed_and_user(tmp_path):
    log = log_of(tmp_path, events())
    made = (log.path / "log.json").stat().st_mtime_ns
    assert log_of(tmp_path, events(), seed=0).fingerprint == log.fingerprint
    assert (log.path / "log.json").stat().st_mtime_ns == made
    again = log_of(tmp_path, events(), seed=1)
    assert again.fingerprint != log.fingerprint and again.source["settings"]["seed"] == 1
    for user in range(len(log)):
        assert sorted(log[user]["item"].tolist()) == sorted(again[user]["item"].tolist())
    with pytest.raises(UserError, match="--seed must not be below 0, not -1"):
        log_of(tmp_path, events(), seed=-1)
    with pytest.raises(UserError, match="lastfm has no generated queries, so no share"):
        prepare.prepare("lastfm", source=tmp_path / "files", data_dir=tmp_path / "data", query_share=0.5)


@pytest.mark.parametrize(
    "rows, items, reason",
    [
        (
            HEAD.replace("part", "fold") + "1,1,,,1,train\n",
            ITEMS,
            "events.csv.gz:1: there is no column part; it has user",
        ),
        (HEAD, ITEMS, "events.csv.gz: there are no rows after the header"),
        (HEAD + "1,1,,,1,dev\n", ITEMS, "events.csv.gz:2: part 'dev' is none of train, valid, test"),
        (HEAD + "1,1,,,1,train\n,1,,,1,train\n", ITEMS, "events.csv.gz:3: user_id is empty"),
        (HEAD + "1,1,,,1,train\n1, ,,,1,train\n", ITEMS, "events.csv.gz:3: item_id is empty"),
        (
            HEAD + "1,1,,,1,train\n1,1,rock,,,test\n",
            ITEMS,
            "events.csv.gz:3: user '1' has artist '1' in part test and ",
        ),
        (HEAD + "1,1,,,1,train\n", "item_id\n1\n", "items.csv.gz:1: there is no column name"),
        (HEAD + "1,1,,,1,train\n", "", "items.csv.gz: the file is empty"),
    ],
)
def test_bad_tables_are_refused(tmp_path, rows, items, reason):
    with pytest.raises(UserError, match="^" + re.escape(f"{tmp_path / 'files'}/{reason}")):
        log_of(tmp_path, rows, items=items)
    assert not (tmp_path / "data" / "logs").exists()


def test_missing_files_and_plain_ones(tmp_path):
    with pytest.raises(UserError, match=r"lastfm is not fetched: give --source FOLDER, which holds events.csv.gz and"):
        prepare.prepare("lastfm", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"holds neither events.csv.gz with items.csv.gz nor events.csv with items.csv"):
        prepare.prepare("lastfm", source=tmp_path, data_dir=tmp_path)
    log = log_of(tmp_path, events())
    plain = folder_of(tmp_path / "plain", events(), packed=False)
    assert prepare.prepare("lastfm", source=plain, data_dir=tmp_path / "other").fingerprint == log.fingerprint
