"""A log that grows: ids keep their meaning, nothing is counted twice, and what is cut off leaves the version before whole."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.event_log import growing, versions
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.importing.append import append
from data_pipelines.importing.options import Options
from data_pipelines.importing.own_log import import_log
from data_pipelines.sources.prepare import locate
from synergen_jax.errors import UserError

NOW = 1_800_000_000
OLD = """user,item,time,action,query
u1,i1,2024-01-01,view,
u1,i2,2024-01-03,buy,red shoes
u2,i1,2024-01-01,view,
u2,i3,2024-01-05,view,blue
"""
NEW = """user,item,time,action,query
u0,i1,2024-01-07,view,
u1,i9,2024-01-02,refund,green hat
u2,i3,2024-01-06,view,blue
"""
ITEMS = "item,title,kind\ni1,red shoe,shoe\ni2,blue hat,hat|summer\ni3,green scarf,scarf\n"


TAGGED = Options(tags=("kind",))


def old(folder, options=TAGGED, text=OLD, items=ITEMS):
    (folder / "old.csv").write_text(text)
    if items:
        (folder / "items.csv").write_text(items)
    table = folder / "items.csv" if items else None
    return import_log(folder / "old.csv", name="shop", items=table, options=options, data_dir=folder, now=NOW)


def more(folder, text=NEW, items=None, **settings):
    (folder / "new.csv").write_text(text)
    if items:
        (folder / "more-items.csv").write_text(items)
        settings["items"] = folder / "more-items.csv"
    return append("shop", folder / "new.csv", data_dir=folder, now=NOW, **settings)


def events(log, user):
    """What a user did, by original ids."""
    record = log[log.find_user(user)]
    columns = (log.item_ids, log.actions, log.queries)
    rows = zip(record["item"], record["action"], record["query"], strict=True)
    return [tuple(names[i] for names, i in zip(columns, row, strict=True)) for row in rows]


def test_ids_of_the_first_version_mean_the_same_and_new_ones_come_behind(tmp_path):
    first = old(tmp_path)
    log = more(tmp_path).log
    assert log.item_ids == [*first.item_ids, "i9"] and log.actions == [*first.actions, "refund"]
    assert log.queries == [*first.queries, "green hat"] and log.user_ids == ["u1", "u2", "u0"]
    assert events(log, "u1") == [("i1", "view", ""), ("i9", "refund", "green hat"), ("i2", "buy", "red shoes")]
    assert events(log, "u2")[-1] == ("i3", "view", "blue") and events(log, "u0") == [("i1", "view", "")]
    assert (log.version, locate("shop", tmp_path)) == (2, tmp_path / "logs/shop@2")
    assert log.ancestor(first.fingerprint) == first.as_ancestor and log.ancestor("else") is None
    assert log.labels["engage"] == (1, 2, 3)


def test_a_log_that_grew_is_the_log_of_all_events_at_once_but_for_the_order_of_its_ids(tmp_path):
    old(tmp_path)
    grown = more(tmp_path).log
    (tmp_path / "whole").mkdir()
    whole = old(tmp_path / "whole", text=OLD + NEW.partition("\n")[2])
    assert sorted(grown.user_ids) == sorted(whole.user_ids)
    for user in whole.user_ids:
        assert events(grown, user) == events(whole, user)
        one, other = (log[log.find_user(user)] for log in (grown, whole))
        for name in ("time", "request"):
            np.testing.assert_array_equal(one[name], other[name])


def test_shown_lists_stay_with_their_requests(tmp_path):
    head = "user,item,time,action,request,shown\n"
    first = head + "u1,a,100000000,view,r1,a|b|c\nu1,d,100000900,view,r2,d|e\n"
    second = head + "u1,b,100000500,view,r9,b|x\nu1,a,100001500,view,r8,y|a\n"
    options = Options(time_unit="seconds")
    old(tmp_path, options, first, None)
    grown = more(tmp_path, second).log
    record = grown[0]
    named = [(int(r), grown.item_ids[i]) for r, i in zip(record["shown_request"], record["shown_item"], strict=True)]
    assert [grown.item_ids[i] for i in record["item"]] == ["a", "b", "d", "a"]
    assert named == [(1, "a"), (1, "b"), (1, "c"), (2, "b"), (2, "x"), (3, "d"), (3, "e"), (4, "y"), (4, "a")]
    assert [bool(action) for action in record["shown_action"]] == [i in (0, 3, 5, 8) for i in range(9)]


def test_events_that_are_there_are_refused_or_left_out_and_a_file_twice_changes_nothing(tmp_path):
    old(tmp_path)
    more(tmp_path)
    with pytest.raises(UserError, match="3 of 3 rows cannot be imported: 3 that the log has already"):
        more(tmp_path)
    again = more(tmp_path, options=Options(drop=("duplicates",)))
    assert (again.log.version, again.change["events"], again.change["dropped"]) == (2, 0, {"duplicates": 3})
    assert not (tmp_path / "logs/shop@3").exists()
    half = more(tmp_path, NEW + "u9,i1,2024-02-01,view,\n", options=Options(drop=("duplicates",)))
    assert (half.log.version, half.change["events"], half.change["new_user"]) == (3, 1, 1)


def test_new_items_are_described_in_the_space_of_the_old_ones(tmp_path):
    first = old(tmp_path)
    encoder = first.text_encoder()
    items = "item,title,kind\ni9,green hat,hat\ni2,blue cap,hat|winter\ni8,red scarf,shoe\n"
    made = more(tmp_path, items=items)
    log = made.log
    number = {item: i for i, item in enumerate(log.item_ids)}
    assert [log.item_titles[number[item]] for item in ("i1", "i2", "i8", "i9")] == [
        "red shoe",
        "blue cap",
        "red scarf",
        "green hat",
    ]
    np.testing.assert_array_equal(
        log.item_matrices["text"][number["i9"]], encoder.encode(["green hat"])[0].astype(np.float16)
    )
    np.testing.assert_array_equal(log.item_matrices["text"][:2], first.item_matrices["text"][:2])
    hat = log.item_columns["kind"].index("hat")
    assert log.item_matrices["kind"][number["i9"], hat] == 1 and log.item_matrices["kind"][number["i2"]].sum() == 1
    assert made.change["unknown_tags"] == ["winter"] and made.change["described"] == 3
    assert log.text_encoder().fingerprint == encoder.fingerprint


def test_the_order_of_a_file_goes_on_behind_what_is_there(tmp_path):
    options = Options(order="file")
    first = old(tmp_path, options, "user,item\nu1,a\nu1,b\n", None)
    grown = more(tmp_path, "user,item\nu1,a\nu1,c\n").log
    assert [grown.item_ids[i] for i in grown[0]["item"]] == ["a", "b", "a", "c"]
    assert grown[0]["time"][2] > first.last_time


def test_columns_are_those_of_the_import(tmp_path):
    old(tmp_path, Options(columns={"user": "visitor", "item": "sku"}), "visitor,sku,time\nu1,a,2024-01-01\n", None)
    assert more(tmp_path, "visitor,sku,time\nu1,b,2024-01-02\n").log.version == 2
    assert more(tmp_path, "user,item,time\nu1,b,2024-01-03\n").log.version == 3


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("user,item,time\n", {}, "no rows after the header"),
        ("user,thing,time\nu,a,2024-01-01\n", {}, "there is no column 'item'"),
        ("user,item,time\nu,a,yesterday\n", {}, "1 of 1 rows cannot be imported"),
        ("user,item,time,part\nu,a,2024-01-01,train\n", {"options": Options(columns={"part": "part"})}, "import all of it anew"),
        ("user,item,time\nu,a,2024-01-01\n", {"options": Options(vectors={"image": "x.npy"}), "items": "item\na\n"}, "no such matrix"),
    ],
)  # fmt: skip
def test_what_cannot_join_is_refused_and_nothing_is_written(tmp_path, text, settings, message):
    old(tmp_path)
    before = sorted(path.name for path in (tmp_path / "logs").iterdir())
    with pytest.raises(UserError, match=message):
        more(tmp_path, text, **settings)
    assert sorted({*before, ".shop.lock"}) == sorted(path.name for path in (tmp_path / "logs").iterdir())


def test_two_appends_at_once_do_not_overwrite_each_other(tmp_path):
    first = old(tmp_path)
    with growing.newest(first.path), pytest.raises(UserError, match="another process is changing it"):
        more(tmp_path)
    assert more(tmp_path).log.version == 2


def test_a_change_goes_on_from_the_newest_version(tmp_path):
    first = old(tmp_path)
    run_of(first, tmp_path / "runs/a")
    more(tmp_path)
    with pytest.raises(UserError, match="shop is not the newest version, which is shop@2"):
        growing.keep_days(first.path, 1)


# --- versions, and who needs them -----------------------------------------------------------------------------------


def run_of(log, workdir):
    """A folder that counts as a run of a log."""
    workdir.mkdir(parents=True)
    (workdir / "log.json").write_text(json.dumps({"path": str(log.path), "fingerprint": log.fingerprint}))
    assert versions.register(log.path, log.fingerprint, workdir)


def test_a_version_stays_while_a_run_needs_it(tmp_path):
    first = old(tmp_path)
    run_of(first, tmp_path / "runs/a")
    second = more(tmp_path)
    assert second.removed == [] and list(versions.existing(first.path)) == [1, 2]
    third = more(tmp_path, "user,item,time,action,query\nu5,i1,2024-03-01,view,\n")
    assert third.removed == [2] and list(versions.existing(first.path)) == [1, 3]
    assert locate("shop@1", tmp_path) == first.path and locate("shop", tmp_path) == third.log.path
    for file in (tmp_path / "runs/a").iterdir():
        file.unlink()
    fourth = more(tmp_path, "user,item,time,action,query\nu6,i1,2024-03-01,view,\n")
    assert fourth.removed == [1, 3] and list(versions.existing(first.path)) == [4]
    with pytest.raises(UserError, match="no prepared log 'shop@1'"):
        locate("shop@1", tmp_path)


def test_a_run_that_cannot_be_looked_at_counts_as_there(tmp_path):
    first = old(tmp_path)
    run_of(first, tmp_path / "elsewhere/runs/a")
    (tmp_path / "elsewhere").rename(tmp_path / "unmounted")
    assert versions.needing(first.path) == [tmp_path / "elsewhere/runs/a"]


def test_importing_again_is_refused_while_a_run_needs_any_version(tmp_path):
    first = old(tmp_path)
    run_of(first, tmp_path / "runs/a")
    more(tmp_path)
    again = lambda **settings: import_log(tmp_path / "new.csv", name="shop", data_dir=tmp_path, now=NOW, **settings)
    with pytest.raises(UserError, match=r"importing shop again takes away .*runs/a can then no longer .* --force"):
        again()
    assert list(versions.existing(first.path)) == [1, 2] and EventLog.load(first.path).fingerprint == first.fingerprint
    log = again(force=True)
    assert list(versions.existing(first.path)) == [1] and locate("shop", tmp_path) == log.path


def test_deleted_users_are_in_no_version(tmp_path):
    first = old(tmp_path)
    run_of(first, tmp_path / "runs/a")
    second = more(tmp_path).log
    with pytest.raises(UserError, match="no user 'u7'"):
        growing.delete_users(second.path, ["u7"], force=True)
    with pytest.raises(UserError, match=r"runs/a: they can be evaluated and asked on the next version"):
        growing.delete_users(second.path, ["u1"])
    made, gone = growing.delete_users(second.path, ["u1"], force=True)
    assert (made.user_ids, gone, list(versions.existing(first.path))) == (["u2", "u0"], [1, 2], [3])
    assert made.item_ids == second.item_ids and made.ancestor(first.fingerprint) is not None
    assert b"u1" not in b"".join(path.read_bytes() for path in made.path.rglob("users.json"))
    with pytest.raises(UserError, match="no user would be left"):
        growing.delete_users(made.path, made.user_ids)


def test_keep_leaves_out_what_is_older(tmp_path):
    old(tmp_path)
    second = more(tmp_path).log
    same, _ = growing.keep_days(second.path, 1000)
    assert same.version == 2
    made, removed = growing.keep_days(second.path, 4.5)
    assert removed == [2] and made.user_ids == ["u1", "u2", "u0"]
    assert [events(made, user) for user in ("u1", "u2")] == [[("i2", "buy", "red shoes")], [("i3", "view", "blue")] * 2]
    assert made.item_ids == second.item_ids
    with pytest.raises(UserError, match="must be above 0"):
        growing.keep_days(made.path, 0)


# --- killed --------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
left = int(sys.argv[1])
def hook(event, arguments):
    global left
    writes = event == "open" and (arguments[1] or "").strip("rbt") or event == "open" and arguments[1] is None and arguments[2] & 3
    if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
        if str(arguments[0]).startswith(sys.argv[2]):
            print(event, flush=True)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
from data_pipelines.importing.append import append
import tensorflow_datasets
sys.addaudithook(hook)
append("shop", sys.argv[2] + "/new.csv", data_dir=sys.argv[2], now=1_800_000_000)
"""


def killed(folder: pathlib.Path, at: int) -> tuple[int, list[str]]:
    """An append in a process of its own that is killed at its write, rename or removal number `at`; how it ended."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(at), str(folder)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=False,
    )
    return done.returncode, [line for line in done.stdout.splitlines() if line.startswith(("open", "os.", "shutil."))]


@pytest.mark.parametrize("at", (1, 4, 9, 16))
def test_an_append_that_is_killed_leaves_the_version_before_whole(tmp_path, at):
    first = old(tmp_path)
    (tmp_path / "new.csv").write_text(NEW)
    assert killed(tmp_path, at)[0] == -signal.SIGKILL
    check_whole(tmp_path, first)


def check_whole(folder, first):
    """The newest version is the first or the second, and whole; and the second is reached from there."""
    log = EventLog.load(locate("shop", folder))
    assert log.fingerprint == first.fingerprint or log.version == 2
    assert [log[i]["user_id"] for i in range(len(log))] == log.user_ids
    again = more(folder, options=Options(drop=("duplicates",))).log
    assert (again.version, events(again, "u1")[1][0]) == (2, "i9")
    assert [path for path in (folder / "logs").iterdir() if path.name.startswith(".shop.append")] == []


@pytest.mark.slow
def test_an_append_that_is_killed_anywhere_leaves_the_version_before_whole(tmp_path):
    (tmp_path / "all").mkdir()
    old(tmp_path / "all")
    (tmp_path / "all/new.csv").write_text(NEW)
    status, points = killed(tmp_path / "all", 10**9)
    assert status == 0
    for at in range(1, len(points) + 1):
        folder = tmp_path / str(at)
        folder.mkdir()
        first = old(folder)
        (folder / "new.csv").write_text(NEW)
        assert killed(folder, at)[0] == -signal.SIGKILL
        check_whole(folder, first)
