"""The event log: round trip, refusals, damage, pickling, and what is imported."""

import errno
import json
import multiprocessing
import pickle
import re
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest

from data_pipelines.event_log import event_log
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.features import text
from data_pipelines.files import disk
from data_pipelines.files.records import validate
from synergen_jax.batch import LogSpec
from synergen_jax.errors import UserError

SIZES = LogSpec(items=5, actions=3, queries=3, labels=("engage",))


def record(user="u", **changes):
    fields = {
        "item": [1, 2, 0],
        "action": [1, 2, 1],
        "query": [0, 1, 2],
        "request": [1, 2, 2],
        "time": [100, 200, 200],
        "shown_request": [2, 2],
        "shown_item": [2, 4],
        "shown_action": [2, 0],
    }
    return {"user_id": user, **{name: np.array(values) for name, values in (fields | changes).items()}}


def parts(**changes):
    matrix = np.zeros((5, 2))
    matrix[1:] = 0.5
    return {
        "name": "small",
        "users": [record("a"), record("b", time=[2**33, 2**33 + 1, 2**33 + 2])],
        "item_ids": ["", "x", "y", "z", "w"],
        "item_titles": ["", "X", "Y", "Z", "W"],
        "queries": ["", "red", "blue"],
        "actions": ["", "view", "buy"],
        "labels": {"engage": (1, 2), "buy": (2,)},
        "item_matrices": {"tags": matrix},
        "item_columns": {"tags": ["left", "right"]},
        "source": {"origin": "here"},
        **changes,
    }


def test_round_trip(tmp_path, capfd):
    written = event_log.write(tmp_path / "log", **parts())
    log = EventLog.load(tmp_path / "log")
    assert capfd.readouterr().out == ""  # stdout belongs to the caller
    assert written.fingerprint == log.fingerprint and len(log) == 2 == len(log.user_ids)
    assert log.spec == LogSpec(5, 3, 3, ("engage", "buy"), (("tags", 2),), ())
    assert log.labels == {"engage": (1, 2), "buy": (2,)} and log.item_titles[3] == "Z" and log.queries[2] == "blue"
    assert log.item_texts == log.item_titles and log.text_encoder() is None and log.query_note == ""
    assert log.item_matrices["tags"].dtype == np.float16 and log.item_columns == {"tags": ["left", "right"]}
    assert log.lengths.tolist() == [3, 3] and log.lengths.dtype == np.int32
    for index, expected in enumerate(parts()["users"]):
        for name, values in log[index].items():
            assert np.array_equal(values, expected[name]), name
            assert name == "user_id" or values.dtype == (np.int64 if name == "time" else np.int32)
    assert log[-1]["user_id"] == "b"
    with pytest.raises(IndexError):
        log[2]
    assert log.summary() == {
        **{"events": 6, "users": 2, "items": 4, "queries": 2},
        **{"from": "1970-01-01", "to": "2242-03-16", "fingerprint": log.fingerprint},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert "tensorflow" not in sys.modules


def test_order_of_many_users_is_kept(tmp_path):
    names = [str(number) for number in np.random.default_rng(0).permutation(300)]
    log = event_log.write(tmp_path / "log", **parts(users=[record(name) for name in names]))
    assert log.user_ids == names == [log[i]["user_id"] for i in range(len(log))]


def test_records_of_many_shards_keep_their_order(tmp_path, monkeypatch):
    from data_pipelines.event_log.event_log_tfds import event_log_tfds_dataset_builder

    expected = event_log.write(tmp_path / "one", **parts(users=[record(str(n)) for n in range(50)]))
    monkeypatch.setattr(event_log_tfds_dataset_builder, "SHARD", 2000)
    log = event_log.write(tmp_path / "many", **parts(users=[record(str(n)) for n in range(50)]))
    assert len(list(log.path.rglob("*.array_record*"))) > 5 and log.fingerprint == expected.fingerprint
    assert [log[i]["user_id"] for i in range(50)] == log.user_ids == [str(n) for n in range(50)]


@pytest.mark.parametrize("names", [(), ("price", "age")])
def test_tensorflow_datasets_reads_what_is_written_to_its_features(tmp_path, names):
    import tensorflow_datasets as tfds

    more = {"shown_feature": np.array([[1.5, 2], [3, 4]])} if names else {}
    users = [record("a") | more, record("é", **{key: [] for key in ("shown_request", "shown_item", "shown_action")})]
    users[1] |= {"shown_feature": np.zeros((0, 2))} if names else {}
    log = event_log.write(tmp_path / "log", **parts(users=users, candidate_features=names))
    theirs = tfds.builder_from_directory(log.path / event_log.RECORDS).as_data_source("users")
    for mine, other in zip(log, theirs, strict=True):
        assert mine.keys() == other.keys() and mine["user_id"] == other["user_id"].decode()
        for name in mine.keys() - {"user_id"}:
            np.testing.assert_array_equal(mine[name].ravel(), other[name])
            assert mine[name].dtype == other[name].dtype


def test_find_user_names_near_ids(tmp_path):
    log = event_log.write(tmp_path / "log", **parts(users=[record("user-1"), record("user-2"), record("x")]))
    assert log.find_user("user-2") == 1
    with pytest.raises(UserError, match="no user 'user-3'; near it: 'user-"):
        log.find_user("user-3")


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"item": [1, 5, 0]}, r"row 1: item 5 is not below 5"),
        ({"item": [1, -1, 0]}, r"row 1: item -1 does not lie within"),
        ({"action": [1, 2, 3]}, r"row 2: action 3 is not below 3"),
        ({"action": [0, 2, 1]}, r"row 0: action is 0"),
        ({"action": [1, -2, 1]}, r"row 1: action -2"),
        ({"query": [0, 1, 0]}, r"row 2: an event with neither an item nor a query"),
        ({"query": [0, 1, 9]}, r"row 2: query 9"),
        ({"time": [100, 300, 200]}, r"row 2: time goes down"),
        ({"time": [0, 1, 2]}, r"row 0: time 0 is not above 0"),
        ({"time": [1, 2, 2**31 + 1]}, r"events span 2147483648 seconds"),
        ({"request": [1, 3, 2]}, r"row 2: request goes down"),
        ({"request": [0, 1, 2]}, r"row 0: request is 0"),
        ({"request": [1, 2]}, r"lengths differ: item 3, action 3, query 3, request 2, time 3"),
        ({"shown_item": [2]}, r"lengths differ: shown_request 2, shown_item 1"),
        ({"shown_item": [2, 5]}, r"row 1: shown_item 5"),
        ({"shown_request": [2, 7]}, r"row 1: shown_request 7 has no event"),
        ({"item": [1.0, 2.0, 0.0]}, r"item must be a row of whole numbers, not float64"),
        ({"item": [[1], [2], [0]]}, r"item must be a row of whole numbers"),
        ({"item": [], "action": [], "query": [], "request": [], "time": []}, r"a user without events"),
    ],
)
def test_validate_names_user_row_and_reason(changes, reason):
    validate(record(), SIZES, "log")
    with pytest.raises(UserError, match=rf"log \(user 'u'\).*{reason}"):
        validate(record(**changes), SIZES, "log")


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"users": []}, "a log without users"),
        ({"users": [record("a"), record("a")]}, "user 'a' comes a second time"),
        ({"item_ids": ["", "x", "x", "z", "w"]}, "item_ids must be distinct"),
        ({"item_ids": ["x", "y", "z", "w", "v"]}, r"item_ids\[0\] must be ''"),
        ({"item_titles": [""]}, "1 item titles for 5 item ids"),
        ({"labels": {"engage": (3,)}}, "label 'engage' needs actions within 1 .. 2"),
        ({"item_matrices": {"tags": np.ones((5, 2))}}, "its row 0 zero"),
        ({"item_texts": ["", "an x"]}, "2 item texts for 5 item ids"),
        ({"item_matrices": {"tags": np.zeros((4, 2))}}, r"shape \(4, 2\), not \(5, width\)"),
        ({"item_matrices": {"tags": np.full((5, 2), 1e9)}}, "finite in float16"),
        ({"item_matrices": {"../x": np.zeros((5, 2))}, "item_columns": {}}, "matrix name"),
    ],
)
def test_write_refuses_and_leaves_nothing(tmp_path, changes, reason):
    with np.errstate(over="ignore"), pytest.raises(UserError, match=reason):
        event_log.write(tmp_path / "log", **parts(**changes))
    assert not list(tmp_path.iterdir())


def test_a_failed_rewrite_keeps_the_log_that_was_there(tmp_path):
    before = event_log.write(tmp_path / "log", **parts()).fingerprint
    with pytest.raises(UserError, match="item 9"):
        event_log.write(tmp_path / "log", **parts(users=[record("a"), record("b", item=[1, 9, 0])]))
    assert EventLog.load(tmp_path / "log").fingerprint == before
    after = event_log.write(tmp_path / "log", **parts(name="new"))
    assert EventLog.load(tmp_path / "log").name == "new" and after.fingerprint == before
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize("file", ["lengths.npy", "item_matrices/tags.npy"])
def test_a_full_disk_is_told_and_keeps_the_log_that_was_there(tmp_path, monkeypatch, file):
    """The file is the device of a disk that is always full."""
    before = event_log.write(tmp_path / "log", **parts())
    save = disk.save

    def on_a_full_disk(path, array):
        if path.as_posix().endswith(file):
            path.symlink_to("/dev/full")
        save(path, array)

    monkeypatch.setattr(disk, "save", on_a_full_disk)
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))}: the disk is full; nothing was written$"):
        event_log.write(tmp_path / "log", **parts(name="new"))
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert EventLog.load(tmp_path / "log").name == before.name


@pytest.mark.parametrize("write", [disk.save, disk.append])
def test_an_array_that_does_not_fit_is_an_error(tmp_path, write):
    """The header fits and the rest does not: numpy's own writer takes that for a success."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # bytes a file
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "array", np.zeros(100, np.int32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    write(tmp_path / "whole", np.zeros(100, np.int32))
    assert (tmp_path / "whole").stat().st_size >= 400


def test_an_encoder_on_a_full_disk_is_not_saved_in_silence(tmp_path):
    encoder = text.make("tfidf:2", ["red dress", "blue shoe"])
    for file in ("idf.npy", "components.npy"):
        (folder := tmp_path / file).mkdir()
        (folder / file).symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            encoder.save(folder)


def test_another_folder_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not an event log"):
        event_log.write(tmp_path, **parts())
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("write() failed: No space left on device; writing x"),
    ],
)
def test_full_disk(tmp_path, monkeypatch, error):
    def fail(folder, records, features, shards):
        (folder / "half").write_text("x")
        raise error

    monkeypatch.setattr(event_log, "_write_records", fail)
    with pytest.raises(UserError, match="disk is full; nothing was written"):
        event_log.write(tmp_path / "log", **parts())
    assert not list(tmp_path.iterdir())


def test_fingerprint_follows_meaning_alone(tmp_path):
    def fingerprint(**changes):
        return event_log.write(tmp_path / "log", **parts(**changes)).fingerprint

    same = fingerprint()
    assert fingerprint(name="other", source={}, item_titles=["", "1", "2", "3", "4"]) == same
    assert fingerprint(item_texts=["", "1", "2", "3", "4"]) == same
    matrix = parts()["item_matrices"]["tags"]
    changed = [
        fingerprint(item_ids=["", "x", "y", "z", "v"]),
        fingerprint(queries=["", "red", "green"]),
        fingerprint(actions=["", "view", "sell"]),
        fingerprint(labels={"engage": (1, 2)}),
        fingerprint(labels={"engage": (1, 2), "buy": (1,)}),
        fingerprint(item_matrices={"tags": matrix * 2}),
        fingerprint(item_matrices={"other": matrix}, item_columns={}),
        fingerprint(users=[record("a")]),
        fingerprint(users=[record("a"), record("c")]),
    ]
    assert len({same, *changed}) == 1 + len(changed)


def test_damage_is_told(tmp_path):
    def fresh():
        event_log.write(tmp_path / "log", **parts())
        return next((tmp_path / "log").rglob("*.array_record*"))

    shard = fresh()
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"array_record.*damaged: \d+ bytes, not \d+; prepare the log again"):
        EventLog.load(tmp_path / "log")
    shard.unlink()
    with pytest.raises(UserError, match=r"array_record.*missing from the event log"):
        EventLog.load(tmp_path / "log")

    shard = fresh()  # bytes turned over, the size is the same
    shard.write_bytes(bytes(255 - byte for byte in shard.read_bytes()))
    with pytest.raises(UserError, match=r"record 0 cannot be read .*prepare the log again"):
        EventLog.load(tmp_path / "log")[0]

    fresh()
    about = tmp_path / "log" / "log.json"
    text = about.read_text()
    about.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"damaged .*prepare the log again"):
        EventLog.load(tmp_path / "log")
    about.write_text(json.dumps(json.loads(text) | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        EventLog.load(tmp_path / "log")
    about.unlink()
    with pytest.raises(UserError, match=r"half written: log\.json is missing"):
        EventLog.load(tmp_path / "log")
    with pytest.raises(UserError, match="there is no such event log"):
        EventLog.load(tmp_path / "nowhere")


def test_threads_share_one_log(tmp_path):
    log = event_log.write(tmp_path / "log", **parts(users=[record(str(i)) for i in range(50)]))
    log = EventLog.load(log.path)
    read: list[str] = []
    threads = [threading.Thread(target=lambda: read.extend(log[i]["user_id"] for i in range(50))) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(read) == sorted(log.user_ids * 4)


def test_a_log_that_was_replaced_is_not_taken_for_the_one_that_was_pickled(tmp_path):
    """As by an import while a run is going on, whose workers open the log anew."""
    kept = pickle.dumps(event_log.write(tmp_path / "log", **parts()))
    assert pickle.loads(kept).fingerprint
    event_log.write(tmp_path / "log", **parts(queries=["", "red", "green"]))
    with pytest.raises(UserError, match="the log was replaced by another one while it was in use"):
        pickle.loads(kept)


def test_pickle_is_small_and_reads_in_another_process(tmp_path):
    log = event_log.write(tmp_path / "log", **parts())
    assert log[1]["user_id"] == "b"  # opened: the reader must not travel
    assert len(pickle.dumps(log)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(log.__class__.__getitem__, (log, 1))
    assert found["user_id"] == "b" and found["time"].tolist() == log[1]["time"].tolist()


def test_importing_is_light():
    code = (
        "import sys, data_pipelines.event_log.event_log, data_pipelines.sources.prepare; "
        "print({'tensorflow_datasets', 'polars'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
