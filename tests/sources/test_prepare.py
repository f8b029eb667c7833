"""From files to a log: MovieLens in every form, atomic files, and each bad row by file and line."""

import dataclasses
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_movielens import EVENTS, FILMS, atomic_1m, atomic_100k, files_1m, files_100k, small, titled  # noqa: F401

from data_pipelines.event_log.event_log import EventLog
from data_pipelines.files import disk, rows
from data_pipelines.importing import own_log
from data_pipelines.sources import fetch, interactions, movielens, prepare, recbole
from synergen_jax.cli import main
from synergen_jax.errors import UserError


@pytest.mark.parametrize(
    "name, make", [("ml-100k", files_100k), ("ml-100k", atomic_100k), ("ml-1m", files_1m), ("ml-1m", atomic_1m)]
)
def test_every_form_gives_the_same_log(tmp_path, capfd, name, make):
    log = prepare.prepare(name, source=make(tmp_path / "files"), data_dir=tmp_path)
    assert capfd.readouterr().out == ""
    assert (log.name, log.path) == (name, tmp_path / "logs" / name)
    assert log.item_ids == ["", "1", "2", "3", "7"] and log.user_ids == ["2", "10"]
    titles = ["", "unknown", "Misérables, Les (1995)", "Land Before Time III (1995) (V)", "Seven (Se7en) (1995)"]
    assert log.item_titles == titles
    assert log.actions == ["", "rating-1", "rating-2", "rating-3", "rating-4", "rating-5"]
    assert log.labels == {"engage": (1, 2, 3, 4, 5), "like": (4, 5)} and list(log.labels) == ["engage", "like"]
    # user 10: three events at 100 stay in the order of the file: items 7, 1, 3 (ids 4, 1, 3); then 300
    user = log[log.find_user("10")]
    assert user["item"].tolist() == [4, 1, 3, 2] and user["action"].tolist() == [4, 3, 2, 5]
    assert user["time"].tolist() == [100, 100, 100, 300] and user["request"].tolist() == [1, 2, 3, 4]
    assert log[0]["item"].tolist() == [2, 4] and log[0]["shown_item"].size == 0
    columns = log.item_columns["genres"]
    assert columns == ["Animation", "Children's", "Crime", "Drama", "Musical", "Thriller", "unknown"]
    genres = log.item_matrices["genres"].astype(np.float32)
    assert genres[0].tolist() == [0] * 7 and genres[1].tolist() == [0] * 6 + [1]
    np.testing.assert_allclose(genres[2], np.array([0, 0, 0, 1, 1, 0, 0]) / np.sqrt(2), atol=5e-4)  # float16
    reference = prepare.prepare("ml-1m", source=files_1m(tmp_path / "reference"), data_dir=tmp_path / "other")
    assert log.fingerprint == reference.fingerprint


@pytest.mark.parametrize(
    "expected, reason",
    [
        ({"events": 7}, "6 events, but ml-100k has 7; delete the file if it was downloaded, or give another --source"),
        ({"users": 3}, "2 users, but ml-100k has 3"),
        ({"items": 5}, "4 items, but ml-100k has 5"),
        ({"md5": "0"}, "u.data: not the events of ml-100k: their md5 is [0-9a-f]{32}, not 0; delete"),
    ],
)
def test_other_events_are_refused(tmp_path, monkeypatch, expected, reason):
    changed = dataclasses.replace(movielens.EXPECTED["ml-100k"], **expected)
    monkeypatch.setitem(movielens.EXPECTED, "ml-100k", changed)
    with pytest.raises(UserError, match=reason):
        prepare.prepare("ml-100k", source=files_100k(tmp_path / "files"), data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


HEAD = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
GOOD = "u\ti\t3\t100\n"


@pytest.mark.parametrize(
    "content, reason",
    [
        ("", ": the file is empty"),
        ("\n\n", ": the file is empty"),
        (HEAD, ": there are no rows"),
        (GOOD, ":1: the header must hold name:type"),
        (HEAD.replace("rating:float", "rating:int"), ":1: the header must hold name:type"),
        (HEAD.replace("rating", "user_id"), ":1: column user_id comes twice"),
        (HEAD.replace("timestamp", "when") + GOOD, ":1: there is no column timestamp"),
        (HEAD + GOOD + "u\ti\t3\n", ":3: 3 columns, not 4"),
        (HEAD + GOOD + "\n" + GOOD, ":3: 1 columns, not 4"),
        (HEAD + GOOD + "u\ti\t3\t1\t\n", ":3: 5 columns, not 4"),
        (HEAD + GOOD * 2 + "\ti\t3\t100\n", ":4: user_id is empty"),
        (HEAD + GOOD + "u\t \t3\t100\n", ":3: item_id is empty"),
        (HEAD + GOOD + "u\ti\tthree\t100\n", ":3: rating 'three' is not a number"),
        (HEAD + GOOD + "u\ti\tnan\t100\n", ":3: rating 'nan' is not a finite number"),
        (HEAD + GOOD + "u\ti\t-1\t100\n", ":3: rating '-1' is not between 0 and 100"),
        (HEAD + GOOD + "u\ti\t3\t\n", ":3: timestamp '' is not a number"),
        (HEAD + GOOD + "u\ti\t3\tinf\n", ":3: timestamp 'inf' is not a finite number"),
        (HEAD + GOOD + "u\ti\t3\t0\n", ":3: timestamp '0' must be above 0"),
        (HEAD + GOOD + "u\ti\t3\t-5\n", ":3: timestamp '-5' must be above 0"),
        (HEAD + GOOD + "u\ti\t3\t0.5\n", ":3: timestamp '0.5' must be above 0"),
        (HEAD + GOOD + "u\ti\t3\t978300760000\n", ":3: timestamp '978300760000' lies after 2100"),
        ((HEAD + GOOD).encode() + b"u\t\xe9\t3\t100\n", ":3: byte 0xe9 is not UTF-8 text"),
        ((HEAD + GOOD + GOOD).encode()[:-4], ":3: timestamp '' is not a number"),
        ((HEAD + GOOD + GOOD).encode()[:-7], ":3: 2 columns, not 4"),
    ],
)
def test_bad_interactions(tmp_path, content, reason):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.inter").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="^" + re.escape(f"{folder / 'mine.inter'}{reason}")):
        prepare.prepare(str(folder), data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "file, content, reason",
    [
        ("u.data", b"1\t1\t5\n", ":1: 3 columns, not 4"),
        ("u.data", b"1\t1\t5\t100\n1\t2\t6\t100\n", ":2: rating '6' is not between 1 and 5"),
        ("u.data", b"1\t1\t5\t100\n1\t2\t4.5\t100\n", ":2: rating '4.5' is not a whole number"),
        ("u.item", b"1|x|y\n", ":1: 3 columns, not 24"),
        ("u.item", b"1|x|||" + b"|0" * 18 + b"|2\n", ":1: Western '2' is not between 0 and 1"),
        ("u.item", (b"1|x|||" + b"|0" * 18 + b"|1\n") * 2, ":2: item_id '1' comes a second time; line 1 has it"),
        ("u.item", b"1|x|||" + b"|0" * 18 + b"|1\n", ": item 2 was rated and is not described here"),
    ],
)
def test_bad_movielens_rows(tmp_path, file, content, reason):
    folder = files_100k(tmp_path / "files")
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match="^" + re.escape(f"{folder / file}{reason}")):
        prepare.prepare("ml-100k", source=folder, data_dir=tmp_path / "data")


def test_film_without_a_row_in_1m(tmp_path):
    folder = atomic_1m(tmp_path / "files")
    text = (folder / "ml-1m.inter").read_bytes().replace(b"Seven (Se7en)", b"Eight")
    (folder / "ml-1m.inter").write_bytes(text)
    with pytest.raises(UserError, match=r"ml-1m.inter:3: item_id 'Eight \(1995\)' is not in "):
        prepare.prepare("ml-1m", source=folder, data_dir=tmp_path / "data")


def test_atomic_files_in_general(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    head = "item_id:token\ttimestamp:float\tuser_id:token\tprice:float\n"
    (folder / "shop.inter").write_text(head + "b\t20\tv\t1\na\t10.0\tu\t2\nb\t20\tu\t3\n")
    (folder / "shop.item").write_text(
        "item_id:token\tname:token_seq\tcategories:token_seq\tvector:float_seq\n"
        "a\tA  thing\tx y\t1 2\nb\t\t\t3 4\nc\tNever sold\tz\t5 6\n"
    )
    log = prepare.prepare(str(folder), data_dir=tmp_path)
    assert log.name == "shop" and log.actions == ["", "interact"] and log.labels == {"engage": (1,)}
    assert log.item_ids == ["", "a", "b"] and log.item_titles == ["", "A thing", "b"]
    assert log.user_ids == ["u", "v"] and log[0]["item"].tolist() == [1, 2] and log[0]["time"].tolist() == [10, 20]
    assert log.item_columns == {"categories": ["x", "y"]} and not log.item_matrices["categories"][2].any()
    assert prepare.prepare("named", source=folder, data_dir=tmp_path).name == "named"


def test_what_is_not_read_of_atomic_files_is_named(tmp_path, capsys):
    folder = atomic_100k(tmp_path / "files")
    (folder / "ml-100k.inter").rename(folder / "mine.inter")
    (folder / "ml-100k.item").rename(folder / "mine.item")
    for name in ("mine.user", "mine.kg", ".hidden"):
        (folder / name).write_text("user_id:token\n")
    command = ["data", "prepare", str(folder), "--data-dir", str(tmp_path / "data"), "--text", "none"]
    for _ in range(2):  # converted, then found again
        assert main.main(command) == 0
        said = capsys.readouterr().out
        assert "not read: mine.kg, mine.user\n" in said and "not read: mine.item: release_year\n" in said


def test_fractions_of_a_second_order_atomic_files_too(tmp_path):
    (folder := tmp_path / "mine").mkdir()
    rows = ("u\tb\t3\t1600000000.9\n", "u\ta\t3\t1600000000.1\n", "u\tc\t3\t1600000001\n")
    for order in ((0, 1, 2), (2, 0, 1)):
        (folder / "mine.inter").write_text(HEAD + "".join(rows[i] for i in order))
        log = prepare.prepare(str(folder), data_dir=tmp_path)
        assert [log.item_ids[item] for item in log[0]["item"]] == ["a", "b", "c"]
        assert log[0]["time"].tolist() == [1_600_000_000, 1_600_000_000, 1_600_000_001]


@pytest.mark.parametrize(
    "items, words",
    [
        (None, []),
        ("item_id:token\ni\n", []),
        ("item_id:token\tprice:float\ni\t3\n", []),
        ("item_id:token\ttitle:token_seq\ni\tRed dress\n", ["red", "dress"]),
        ("item_id:token\tclass:token_seq\ni\tnew sale\n", ["new", "sale"]),
    ],
)
def test_words_of_atomic_files_are_encoded_and_ids_are_no_words(tmp_path, items, words):
    (folder := tmp_path / "mine").mkdir()
    (folder / "mine.inter").write_text(HEAD + GOOD + GOOD.replace("i", "zork"))
    if items:
        (folder / "mine.item").write_text(items)
    log = prepare.prepare(str(folder), data_dir=tmp_path)
    assert ("text" in log.item_matrices) == bool(words)
    if words:
        assert log.item_matrices["text"].any(axis=1).tolist() == [False, True, False]
        assert set(words) <= set(log.text_encoder().vocabulary) and "zork" not in log.text_encoder().vocabulary
    else:
        with pytest.raises(UserError, match="--text tfidf: no item has a title or text, and no query a word"):
            prepare.prepare(str(folder), data_dir=tmp_path / "other", encoder="tfidf")
    before = (log.path / "log.json").stat().st_mtime_ns
    prepare.prepare(str(folder), data_dir=tmp_path)  # the same settings again: it is taken as it is
    assert (log.path / "log.json").stat().st_mtime_ns == before
    assert "text" not in prepare.prepare(str(folder), data_dir=tmp_path, encoder="none").item_matrices


def test_a_log_of_before_is_not_made_anew_for_texts_that_nobody_asked_for(tmp_path):
    """Runs were trained on it; `--text tfidf` adds them."""
    (folder := tmp_path / "mine").mkdir()
    (folder / "mine.inter").write_text(HEAD + GOOD)
    (folder / "mine.item").write_text("item_id:token\titem_name:token_seq\ni\tred hat\n")
    plain = prepare.prepare(str(folder), data_dir=tmp_path, encoder="none")
    assert prepare.prepare(str(folder), data_dir=tmp_path).fingerprint == plain.fingerprint
    asked = prepare.prepare(str(folder), data_dir=tmp_path, encoder="tfidf")
    assert "text" in asked.item_matrices and asked.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    "ratings, actions, like",
    [
        (("1", "3.0", "5", "4"), ["", "rating-1", "rating-3", "rating-4", "rating-5"], (3, 4)),
        (("0", "10", "8", "7"), ["", "rating-0", "rating-7", "rating-8", "rating-10"], (3, 4)),
        (("0.5", "3", "5", "4"), ["", "interact"], None),
    ],
)
def test_ratings_become_actions(ratings, actions, like):
    text = HEAD + "".join(f"u\ti\t{rating}\t{100 + i}\n" for i, rating in enumerate(ratings))
    parts = interactions.log_parts(recbole.interactions(fetch.Raw(("x.inter", text.encode(), "x.inter"), None, "x")))
    assert parts["actions"] == actions and parts["labels"].get("like") == like


def test_fast_columns_equal_slow_ones():
    numbers = np.random.default_rng(0).integers(1, rows.LATEST, 200).astype(str)
    table = rows.Rows([f"{n}\t{n}.0\t{n[0]}e2" for n in numbers], ("a", "b", "c"), "\t", "x")
    expected = [int(n) for n in numbers]
    assert table.times("a").tolist() == table.times("b").tolist() == expected
    assert table.integers("c", 0, 1000).tolist() == [100 * int(n[0]) for n in numbers]


def test_a_whole_log_is_reused_and_a_damaged_one_made_again(tmp_path, monkeypatch):
    folder = files_100k(tmp_path / "files")
    log = prepare.prepare("ml-100k", source=folder, data_dir=tmp_path)
    made = (log.path / "log.json").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "fetch", None)  # without a source a prepared log asks for none
        assert prepare.prepare("ml-100k", data_dir=tmp_path).fingerprint == log.fingerprint
    prepare.prepare("ml-100k", source=folder, data_dir=tmp_path)
    assert (log.path / "log.json").stat().st_mtime_ns == made
    prepare.prepare("ml-100k", source=folder, data_dir=tmp_path, force=True)
    assert (log.path / "log.json").stat().st_mtime_ns > made

    shard = next(log.path.rglob("*.array_record*"))
    shard.write_bytes(shard.read_bytes()[:1000])
    assert prepare.prepare("ml-100k", source=folder, data_dir=tmp_path).fingerprint == log.fingerprint
    (log.path / "log.json").unlink()
    with pytest.raises(UserError, match="run `synergen data prepare ml-100k`"):
        prepare.locate("ml-100k", tmp_path)
    assert prepare.prepare("ml-100k", source=folder, data_dir=tmp_path).fingerprint == log.fingerprint
    assert EventLog.load(prepare.locate("ml-100k", tmp_path)).fingerprint == log.fingerprint


def test_a_changed_source_is_converted_again(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.inter").write_text(HEAD + GOOD)
    first = prepare.prepare(str(folder), data_dir=tmp_path)
    (folder / "mine.inter").write_text(HEAD + GOOD + "v\ti\t3\t100\n")
    second = prepare.prepare(str(folder), data_dir=tmp_path)
    assert (len(first), len(second)) == (1, 2) and first.fingerprint != second.fingerprint
    moved = folder.rename(tmp_path / "moved")
    assert prepare.prepare(str(moved), data_dir=tmp_path).fingerprint == second.fingerprint
    (moved / "mine.inter").write_text(HEAD + GOOD)  # of the same name, and neither the place nor the bytes
    with pytest.raises(UserError, match=f"logs/mine is the log that was prepared from {folder}: --force prepares"):
        prepare.prepare(str(moved), data_dir=tmp_path)
    assert len(prepare.prepare(str(moved), data_dir=tmp_path, force=True)) == 1


def test_what_is_not_a_log_of_its_own_is_not_replaced(tmp_path):
    """A folder of somebody's, in the place of the log; and a log that was imported, whose table may be gone."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.inter").write_text(HEAD + GOOD)
    (tmp_path / "logs" / "mine").mkdir(parents=True)
    (tmp_path / "logs" / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not an event log"):
        prepare.prepare(str(folder), data_dir=tmp_path)
    assert (tmp_path / "logs" / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "logs" / "mine" / "text_encoder").mkdir()  # as deep in a folder that a log has, too
    (tmp_path / "logs" / "mine" / "thesis.txt").rename(tmp_path / "logs" / "mine" / "text_encoder" / "thesis.txt")
    with pytest.raises(UserError, match="exists and is not an event log"):
        prepare.prepare(str(folder), data_dir=tmp_path)
    assert (tmp_path / "logs" / "mine" / "text_encoder" / "thesis.txt").exists()
    (tmp_path / "events.csv").write_text("user,item,time\nann,a,1690000000\n")
    log = own_log.import_log(tmp_path / "events.csv", name="mine", data_dir=tmp_path / "other")
    with pytest.raises(UserError, match=r"mine is the log that was imported from .*events.csv: --force prepares"):
        prepare.prepare(str(folder), data_dir=tmp_path / "other")
    assert EventLog.load(log.path).fingerprint == log.fingerprint
    (log.path / "users.json").write_text("damaged")
    with pytest.raises(UserError, match=r"mine is the log that was imported from .*events.csv: --force prepares"):
        prepare.prepare(str(folder), data_dir=tmp_path / "other")
    assert prepare.prepare(str(folder), data_dir=tmp_path / "other", force=True).fingerprint != log.fingerprint


def test_what_a_killed_run_leaves_is_not_a_log(tmp_path):
    log = prepare.prepare("ml-100k", source=files_100k(tmp_path / "files"), data_dir=tmp_path)
    half = log.path.parent / ".ml-100k.half-written.x" / "new"
    half.parent.mkdir()
    log.path.rename(half)
    with pytest.raises(UserError, match=r"no prepared log 'ml-100k' \(prepared: none\)"):
        prepare.locate("ml-100k", tmp_path)


def test_what_a_killed_run_left_is_removed_by_the_next_one(tmp_path):
    """Unless its process runs, or may run on another host; a log that it had moved away is put back."""
    log = prepare.prepare("ml-100k", source=files_100k(tmp_path / "files"), data_dir=tmp_path)
    logs = log.path.parent
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with disk.scratch(logs, "shop.v2", "import") as own:
        parts = own.name.split(".")  # "", name, what, host and process, something random
        host = parts[-2].partition("-")[0]
        left = [
            logs / f".{name}.{host}-{gone.pid}.x" for name in ("shop.v2.import", "ml-1m.half-written", "a.half-written")
        ]
        other = logs / f".shop.v2.import.{'0' * 8}-{gone.pid}.x"
        for path in (*left, other):
            (path / "new").mkdir(parents=True)
        shutil.copytree(log.path, left[1] / "old")  # was to be replaced
        (left[2] / "old").mkdir()
        (logs / "a").mkdir()  # was replaced
        prepare.prepare("ml-100k", data_dir=tmp_path)
        assert sorted(path.name for path in logs.iterdir()) == sorted([own.name, other.name, "a", "ml-100k", "ml-1m"])
    assert not own.exists() and EventLog.load(logs / "ml-1m").fingerprint == log.fingerprint


def test_locate(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNERGEN_DATA", str(tmp_path))
    log = prepare.prepare("ml-1m", source=files_1m(tmp_path / "files"))
    assert prepare.locate("ml-1m") == prepare.locate(log.path) == log.path
    with pytest.raises(
        UserError, match=r"no prepared log 'ml-2m' \(prepared: ml-1m\); run `synergen data prepare ml-2m`"
    ):
        prepare.locate("ml-2m")
    monkeypatch.delenv("SYNERGEN_DATA")
    assert prepare.default_data_dir().parts[-2:] == (".cache", "synergen")


def test_wrong_names(tmp_path):
    with pytest.raises(UserError, match=r"'ml-2m' is neither one of ml-100k, ml-1m, .* nor a folder"):
        prepare.prepare("ml-2m", data_dir=tmp_path)
    with pytest.raises(UserError, match="may hold letters"):
        prepare.prepare("../x", source=tmp_path, data_dir=tmp_path)
    with pytest.raises(UserError, match="no such folder of atomic files"):
        prepare.prepare("x", source=tmp_path / "none", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"0 \.inter files, where one is wanted"):
        prepare.prepare("x", source=tmp_path, data_dir=tmp_path)
