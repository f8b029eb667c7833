"""Logs of one's own: what becomes of each column, every broken file and its message, and what is dropped and counted."""

import json
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from data_pipelines.event_log import event_log
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.importing import delimited_text, event_files, item_table, own_log, packed_text, sorted_events
from data_pipelines.importing.own_log import Options, import_log
from data_pipelines.sources import interactions
from synergen_jax.cli import data as data
from synergen_jax.cli import main
from synergen_jax.errors import UserError

NOW = 1_700_000_000
HEAD = "user,item,time\n"
GOOD = f"ann,a,{NOW - 900}\n"


def load(tmp_path, content, *, options=None, items=None, file="events.csv", **changes):
    """The log of a file with this content."""
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if items is not None:
        (tmp_path / "items.csv").write_text(items, encoding="utf-8")
        items = tmp_path / "items.csv"
    options = options or Options(**changes)
    return import_log(path, name="shop", items=items, options=options, data_dir=tmp_path / "data", now=NOW)


def refused(tmp_path, content, reason, **settings):
    """The import is refused with this message, and leaves nothing."""
    with pytest.raises(UserError) as raised:
        load(tmp_path, content, **settings)
    message = str(raised.value).replace(str(tmp_path) + "/", "")
    assert message == reason and "\n" not in message
    logs = tmp_path / "data" / "logs"
    assert not logs.exists() or not list(logs.iterdir())


def rows(log, user="ann"):
    """A user's events as (item, query, action, time) in the file's own words."""
    record = log[log.find_user(user)]
    names = (log.item_ids, log.queries, log.actions)
    columns = [
        [name[i] for name, i in zip([names[k]] * len(record["item"]), record[role])]
        for k, role in enumerate(("item", "query", "action"))
    ]
    return list(zip(*columns, record["time"].tolist()))


def shown(log, user="ann"):
    """A user's shown lists as (request, item, action)."""
    record = log[log.find_user(user)]
    return [
        (int(request), log.item_ids[item], log.actions[action])
        for request, item, action in zip(record["shown_request"], record["shown_item"], record["shown_action"])
    ]


def random_table(seed=0, count=4000, users=50, distinct=True):
    """Events of every kind with distinct times, in the order of times."""
    rng = np.random.default_rng(seed)
    time = NOW - np.sort(rng.choice(10**6, count, replace=False) if distinct else rng.integers(0, 10**6, count))[::-1]
    item, query = rng.integers(0, 80, count), rng.integers(0, 30, count)
    bare = rng.random(count) < 0.1
    text = lambda prefix, values, there: pl.Series([f"{prefix}{v}" if t else None for v, t in zip(values, there)])
    return pl.DataFrame(
        {
            "user": text("u", rng.zipf(1.5, count) % users, np.ones(count, bool)),
            "item": text("item ", item, ~bare),
            "time": time,
            "action": text("", np.array(["view", "cart", "buy"])[rng.integers(0, 3, count)], np.ones(count, bool)),
            "query": text('a "big", ', query, bare | (rng.random(count) < 0.3)),
            "request": text("r", np.arange(count) // 3, rng.random(count) < 0.7),
            "shown": pl.Series(
                ["|".join(f"item {i}" for i in rng.integers(0, 99, 5)) if r < 0.2 else None for r in rng.random(count)]
            ),
        }
    )


# --- what becomes of the columns ------------------------------------------------------------------------------


def test_the_smallest_table(tmp_path):
    log = load(tmp_path, f"user,item,time\nann,b,{NOW}\nbob,a,{NOW - 5}\nann,a,{NOW - 10}\n")
    assert log.name == "shop" and log.user_ids == ["ann", "bob"] and log.item_ids == ["", "a", "b"]
    assert log.item_titles == log.item_ids and log.queries == [""]
    assert log.actions == ["", "interact"] and log.labels == {"engage": (1,)}
    assert rows(log) == [("a", "", "interact", NOW - 10), ("b", "", "interact", NOW)]
    assert log[0]["request"].tolist() == [1, 2] and log[0]["shown_item"].size == 0
    assert log.source["out_of_order"] == 1 and log.source["rows"] == 3 and log.source["time_unit"] == "seconds"
    assert EventLog.load(tmp_path / "data/logs/shop").fingerprint == log.fingerprint


def test_ties_keep_the_order_of_the_file(tmp_path):
    items = [f"i{n}" for n in np.random.default_rng(0).permutation(50)]
    log = load(tmp_path, HEAD + "".join(f"ann,{item},{NOW}\n" for item in items))
    assert [row[0] for row in rows(log)] == items


PARTS = {"late": 900, "early": 100, "next": 1000, "same": 950}  # milliseconds after NOW - 9


def within_a_second(path, form):
    """Four events of one user in the order late, early, next, early again (no repeat) in a file of this form."""
    names = ["late", "early", "next", "early"]
    moment = [(NOW - 9) * 1000 + PARTS[name] for name in ("late", "early", "next", "same")]
    table = pl.DataFrame({"user": "ann", "item": names, "time": moment})
    dates = pl.col("time").cast(pl.Datetime("ms"))
    kind, _, ending = form.partition(".")
    time = {
        "milliseconds": pl.col("time"),
        "microseconds": pl.col("time") * 10**3,
        "nanoseconds": pl.col("time") * 10**6,
        "seconds": pl.col("time") / 1000,
        "decimals": (pl.col("time") / 1000).cast(pl.String),
        "decimal": pl.col("time").cast(pl.Decimal(20, 3)) / pl.lit(1000).cast(pl.Decimal(20, 3)),
        "iso": dates.dt.strftime("%Y-%m-%d %H:%M:%S%.3f"),
        "zoned": (dates + pl.duration(hours=1)).dt.strftime("%Y-%m-%dT%H:%M:%S%.3f+01:00"),
        "ms": dates,
        "us": dates.cast(pl.Datetime("us")),
        "ns": dates.cast(pl.Datetime("ns", "UTC")),
    }[kind]
    file = path / f"{kind}.{ending}"
    table = table.with_columns(time)
    table.write_parquet(file) if ending == "parquet" else table.write_csv(
        file, separator="\t" if ending == "tsv" else ","
    )
    return file


FORMS = (
    *("milliseconds.csv", "microseconds.tsv", "nanoseconds.csv", "seconds.csv", "iso.csv", "zoned.tsv"),
    *("milliseconds.parquet", "nanoseconds.parquet", "seconds.parquet", "decimals.parquet", "decimal.parquet"),
    *("iso.parquet", "ms.parquet", "us.parquet", "ns.parquet"),
)


@pytest.mark.parametrize("form", FORMS)
def test_order_and_repeats_are_told_before_times_are_cut(tmp_path, form):
    file = within_a_second(tmp_path, form)
    log = import_log(file, name="x", data_dir=tmp_path, now=NOW)  # nothing is refused: no row repeats another
    expected = [("early", NOW - 9), ("late", NOW - 9), ("early", NOW - 9), ("next", NOW - 8)]
    assert [(item, time) for item, _, _, time in rows(log)] == expected
    assert log.source["out_of_order"] == 2 and log.source["dropped"] == {}
    plain = load(tmp_path / "plain", HEAD + "".join(f"ann,{item},{time}\n" for item, time in expected), drop=["all"])
    assert len(rows(plain)) == 3  # whole seconds alone: the second "early" repeats the first


def test_repeats_within_a_second_are_those_of_one_moment(tmp_path):
    content = HEAD + "".join(f"ann,a,{NOW - 9}.{part}\n" for part in (1, 9, "10", "100000001", 9))
    reason = "2 of 5 rows cannot be imported: 2 that repeat an earlier row (line 4, line 6)"
    refused(tmp_path, content, f"events.csv: {reason}{MEND}duplicates")
    assert len(rows(load(tmp_path, content, drop=["duplicates"]))) == 3


def test_any_order_gives_the_same_log_also_within_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(sorted_events, "BUCKET", 300)
    monkeypatch.setattr(delimited_text, "BLOCK", 5000)
    time = pl.int_range(pl.len()) * 7 + 1_600_000_000_000  # many events a second, no two at one moment
    table = random_table(count=1000).with_columns(time=time)
    prints = set()
    for seed in range(3):
        table.sample(fraction=1, shuffle=True, seed=seed).write_csv(tmp_path / "t.csv")
        table.sample(fraction=1, shuffle=True, seed=9 + seed).with_columns(
            pl.col("time").cast(pl.Datetime("ms"))
        ).write_parquet(tmp_path / "t.parquet")
        for file in ("t.csv", "t.parquet"):
            prints.add(import_log(tmp_path / file, name="t", data_dir=tmp_path, now=NOW).fingerprint)
    assert len(prints) == 1


def test_times_that_are_rounded_in_the_file_are_refused(tmp_path):
    table = pl.DataFrame({"user": ["ann"], "item": ["a"], "time": pl.Series([float(NOW)], dtype=pl.Float32)})
    table.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"column 'time' is of type Float32, in which .* store it as whole numbers"):
        import_log(tmp_path / "t.parquet", name="t", data_dir=tmp_path, now=NOW)


def test_searches_actions_and_labels(tmp_path):
    content = (
        "user,item,time,action,query\n"
        f'ann,,{NOW - 9},search,"red,  ""big"" shoes "\n'
        f'ann,a,{NOW - 8},view,"red, ""big"" shoes"\n'
        f"ann,b,{NOW - 7},buy,\n"
    )
    log = load(tmp_path, content, labels={"bought": ["buy"], "liked": ["buy", "view"]})
    query = 'red, "big" shoes'
    assert log.queries == ["", query] and log.actions == ["", "buy", "search", "view"]
    assert rows(log) == [("", query, "search", NOW - 9), ("a", query, "view", NOW - 8), ("b", "", "buy", NOW - 7)]
    assert log.labels == {"engage": (1, 2, 3), "bought": (1,), "liked": (1, 3)} and next(iter(log.labels)) == "engage"


def test_requests_and_shown_lists(tmp_path):
    content = (
        "user,item,time,action,query,request,shown\n"
        f"ann,,{NOW - 90},search,hat,r1,a|b| c |b\n"
        f"ann,b,{NOW - 80},view,hat,r1,b|d\n"
        f"ann,b,{NOW - 70},buy,,r1,\n"
        f"ann,e,{NOW - 60},view,,,\n"
        f"ann,f,{NOW - 50},view,,,f|a\n"
        f"bob,a,{NOW - 85},view,,r1,\n"
        f"ann,d,{NOW - 40},view,hat,r1,\n"
    )
    log = load(tmp_path, content)
    assert log[0]["request"].tolist() == [1, 1, 1, 2, 3, 4] and log[1]["request"].tolist() == [1]
    first = [(1, "a", ""), (1, "b", "buy"), (1, "c", ""), (1, "d", "")]  # b was viewed, then bought
    assert shown(log) == [*first, (3, "f", "view"), (3, "a", "")] and not shown(log, "bob")
    assert [row[1] for row in rows(log)] == ["hat", "hat", "hat", "", "", "hat"] and log.source[
        "inherited_queries"
    ] == 1
    assert "c" in log.item_ids  # it was shown and never chosen
    assert log.source["split_requests"] == 1 and log.source["items_without_events"] == 1


def test_without_a_request_column_each_event_is_one(tmp_path):
    content = f"user,item,time,shown\nann,a,{NOW - 9},a|b\nann,b,{NOW - 8},\nann,b,{NOW - 7},b|c\n"
    log = load(tmp_path, content)
    assert log[0]["request"].tolist() == [1, 2, 3]
    assert shown(log) == [(1, "a", "interact"), (1, "b", ""), (3, "b", "interact"), (3, "c", "")]


def test_items(tmp_path):
    items = 'item,title,text,genre,brand\nb,"The  B","Two\nlines",x|y,k\nnew,New one,,y,\na,,Only text,,k\n'
    content = f"user,item,time\nann,a,{NOW - 9}\nann,b,{NOW - 8}\nann,c,{NOW - 7}\n"
    np.save(tmp_path / "image.npy", np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    settings = {"tags": ["genre", "brand"], "vectors": {"image": tmp_path / "image.npy"}}
    log = load(tmp_path, content, items=items, **settings)
    assert log.item_ids == ["", "a", "b", "c", "new"] and log.item_titles == ["", "a", "The B", "c", "New one"]
    assert log.item_columns == {"genre": ["x", "y"], "brand": ["k"]}
    half = float(np.float16(np.sqrt(0.5)))
    assert log.item_matrices["genre"].tolist() == [[0, 0], [0, 0], [half, half], [0, 0], [0, 1]]
    assert log.item_matrices["brand"].tolist() == [[0], [1], [1], [0], [0]]
    assert log.item_matrices["image"].tolist() == [[0, 0], [5, 6], [1, 2], [0, 0], [3, 4]]
    assert log.source["items_without_row"] == 1 and log.source["items_without_events"] == 1
    pl.read_csv(tmp_path / "items.csv").write_parquet(tmp_path / "items.parquet")
    again = import_log(
        tmp_path / "events.csv",
        name="again",
        items=tmp_path / "items.parquet",
        options=Options(**settings),
        data_dir=tmp_path,
        now=NOW,
    )
    assert again.fingerprint == log.fingerprint and again.item_titles == log.item_titles


def test_item_texts(tmp_path):
    (tmp_path / "items.csv").write_text('item,title,text\na,Red,"long\ntext"\nb,Blue,\nc,,only\n')
    table = item_table.read(tmp_path / "items.csv", {}, (), {}, ())
    described = item_table.describe(["", "a", "b", "c", "d"], table)
    assert described.texts == ["", "Red long text", "Blue", "only", ""]
    assert described.titles == ["", "Red", "Blue", "c", "d"] and described.without_row == 1


def test_columns_by_name_and_numbers_as_ids(tmp_path):
    content = f"visitor;sku;ts;extra\n10;7;{NOW - 3};x\n9;30;{NOW - 2};x\n"
    log = load(tmp_path, content, columns={"user": "visitor", "item": "sku", "time": "ts"})
    assert log.user_ids == ["9", "10"] and log.item_ids == ["", "7", "30"]
    assert log.source["unused_columns"] == ["extra"] and log.source["columns"]["user"] == "visitor"


def test_numbers_that_a_float_went_through_are_told(tmp_path):
    """As pandas writes a column of whole numbers with gaps: they are other ids, and one must be told."""
    content = HEAD + f"1,7,{NOW - 3}\n1.0,8.0,{NOW - 2}\n2,7.0,{NOW - 1}\n3.0,9.0,{NOW}\n"
    notes = list(data._notes(load(tmp_path, content)))
    assert "1 users like '1.0' stand beside '1', and are taken for others" in notes
    assert "1 items like '7.0' stand beside '7', and are taken for others" in notes
    notes = list(data._notes(load(tmp_path, HEAD + f"u,7.0,{NOW}\n", items="item,title\n7,A\n")))
    assert f"no item of the events is in {tmp_path / 'items.csv'}: are the ids of both written alike?" in notes
    notes = "\n".join(data._notes(load(tmp_path, HEAD + f"u,7,{NOW}\n", items="item,title\n7,A\n8,B\n")))
    assert "beside" not in notes and "alike" not in notes


def test_whole_numbers_of_any_type_are_ids(tmp_path):
    number = 2**53 + 1  # which a float64 cannot hold
    for kind, text in ((pl.Int64, f"{number}"), (pl.UInt64, f"{number}"), (pl.Decimal(38, 0), f"{number}")):
        table = pl.DataFrame({"user": ["ann"], "item": pl.Series([number]).cast(kind), "time": [NOW]})
        table.write_parquet(tmp_path / "t.parquet")
        assert import_log(tmp_path / "t.parquet", name="t", data_dir=tmp_path, now=NOW).item_ids == ["", text]


def test_whole_floats_are_whole_numbers(tmp_path):
    """As pandas makes of a column with gaps, in which a missing one is NaN."""
    read = lambda: import_log(tmp_path / "t.parquet", name="t", data_dir=tmp_path, now=NOW)
    for kind in (pl.Float32, pl.Float64):
        item = pl.Series([101.0, float("nan"), None, 7.0]).cast(kind)
        pl.DataFrame({"user": [1.0] * 4, "item": item, "query": ["x"] * 4, "time": [NOW] * 4}).write_parquet(
            tmp_path / "t.parquet"
        )
        with pytest.raises(UserError, match=r"1 that repeat an earlier row"):
            read()
        pl.DataFrame({"user": [1.0] * 2, "item": item[[0, 3]], "time": [NOW] * 2}).write_parquet(tmp_path / "t.parquet")
        assert read().item_ids == ["", "7", "101"] and read().user_ids == ["1"]
        much = pl.Series([2.0 ** (24 if kind == pl.Float32 else 53)]).cast(
            kind
        )  # which two whole numbers may have become
        pl.DataFrame({"user": ["ann"], "item": much, "time": [NOW]}).write_parquet(tmp_path / "t.parquet")
        with pytest.raises(UserError, match=r"'item' is of type Float\d\d and holds"):
            read()


def test_missing_words_are_counted(tmp_path):
    content = f"user,item,time,query\nann,NULL,{NOW - 3},hat\nann,a,{NOW - 2},NaN\nann,b,{NOW - 1},\\N\n"
    log = load(tmp_path, content)
    assert [row[:2] for row in rows(log)] == [("", "hat"), ("a", ""), ("b", "")] and log.source["missing_words"] == 3


def test_rare_items_then_rare_users(tmp_path):
    pairs = ["ann a", "ann b", "ann a", "bob a", "bob rare", "cid rare2", "dan a"]
    content = "user,item,time,shown\n" + "".join(
        f"{pair.split()[0]},{pair.split()[1]},{NOW - 90 + n},a|rare\n" for n, pair in enumerate(pairs)
    )
    log = load(tmp_path, content, min_item_events=2, min_user_events=2)
    assert log.user_ids == ["ann"] and log.item_ids == ["", "a"] and [row[0] for row in rows(log)] == ["a", "a"]
    assert shown(log) == [(1, "a", "interact"), (2, "a", "interact")]
    assert log.source["left_out"] == {"items": 3, "users": 3, "events": 5}


def test_rare_items_that_the_table_describes_stay_without_their_events(tmp_path):
    """They are then as those that have no event yet, and the summary says so."""
    content = HEAD + "".join(f"ann,{item},{NOW - 9 + n}\n" for n, item in enumerate(("a", "a", "rare", "unknown")))
    log = load(tmp_path, content, items="item,title\na,A\nrare,R\nnew,N\n", min_item_events=2)
    assert log.item_ids == ["", "a", "new", "rare"] and [row[0] for row in rows(log)] == ["a", "a"]
    assert log.source["left_out"] == {"items": 2, "users": 0, "events": 2} and log.source["items_without_events"] == 2
    notes = "\n".join(data._notes(log))
    assert "2 items, 0 users, 2 events; items of the table stay in the catalogue, without these events" in notes


# --- the same log from every form -----------------------------------------------------------------------------


def test_csv_and_parquet_and_any_order_give_the_same_log(tmp_path, monkeypatch):
    table = random_table()
    read = lambda path, name, **settings: import_log(
        path, name=name, options=Options(**settings), data_dir=tmp_path, now=NOW
    )
    table.write_csv(tmp_path / "t.csv")
    log = read(tmp_path / "t.csv", "csv")
    assert int(log.lengths.sum()) == len(table) and log.source["out_of_order"] == 0
    table.write_csv(tmp_path / "t.tsv", separator="\t", line_terminator="\r\n", include_bom=True)
    lists = table.with_columns(pl.col("shown").str.split("|"), pl.col("user").cast(pl.Categorical))
    lists.write_parquet(tmp_path / "t.parquet", row_group_size=700)
    (tmp_path / "parts").mkdir()
    for part in range(3):
        table[part * 1500 : (part + 1) * 1500].write_parquet(tmp_path / f"parts/{part}.parquet")
    table.sample(fraction=1, shuffle=True, seed=1).write_csv(tmp_path / "shuffled.csv")
    times = pl.from_epoch("time", time_unit="s")
    table.with_columns(times.dt.strftime("%Y-%m-%dT%H:%M:%S+00:00")).write_csv(tmp_path / "iso.csv")
    table.with_columns(times).write_parquet(tmp_path / "typed.parquet")
    table.with_columns(pl.col("time") * 1000).write_csv(tmp_path / "milliseconds.csv")
    monkeypatch.setattr(delimited_text, "BLOCK", 5000)  # many pieces, many buckets
    monkeypatch.setattr(event_files, "ROWS", 600)
    monkeypatch.setattr(sorted_events, "BUCKET", 500)
    monkeypatch.setattr(sorted_events, "SLICE", 700)
    for file in (
        "t.csv",
        "t.tsv",
        "t.parquet",
        "parts",
        "parts/*.parquet",
        "shuffled.csv",
        "iso.csv",
        "typed.parquet",
        "milliseconds.csv",
    ):
        other = read(tmp_path / file, "other")
        assert other.fingerprint == log.fingerprint, file
        assert (other.source["out_of_order"] > 0) == (file == "shuffled.csv")
    assert not list((tmp_path / "logs").glob(".*"))


def test_a_record_is_what_the_rows_say(tmp_path):
    """Against a slow reading of the same table, row by row, with ties and interrupted requests."""
    table = random_table(seed=3, distinct=False)
    table = table.unique(["user", "item", "query", "action", "time"], maintain_order=True)
    table.write_csv(tmp_path / "t.csv")
    log = import_log(tmp_path / "t.csv", name="t", data_dir=tmp_path, now=NOW)
    for user in log.user_ids:
        events = [row for row in sorted(table.rows(named=True), key=lambda row: row["time"]) if row["user"] == user]
        request, lists, last, query, expected = 0, {}, None, "", []
        for row in events:
            if row["request"] is None or row["request"] != last:
                request, query = request + 1, ""
            query = row["query"] or query
            expected.append((row["item"] or "", query, row["action"], row["time"]))
            last = row["request"]
            chosen, seen = lists.setdefault(request, ({}, {}))
            seen.update(dict.fromkeys((row["shown"] or "").split("|") if row["shown"] else ()))
            if row["item"]:
                chosen[row["item"]] = row["action"]
        assert rows(log, user) == expected
        expected = [(n, item, chosen.get(item, "")) for n, (chosen, seen) in lists.items() for item in seen]
        assert shown(log, user) == expected


# --- what is refused ------------------------------------------------------------------------------------------

MEND = "; mend them, or leave them out with --drop "
BROKEN = [
    (HEAD + GOOD + f",b,{NOW}\n", "1 of 2 rows cannot be imported: 1 without a user (line 3)", "missing"),
    (HEAD + GOOD + f"ann,,{NOW}\n", "1 of 2 rows cannot be imported: 1 with neither an item nor a query (line 3)", "missing"),
    (HEAD + GOOD + "ann,b,\n", "1 of 2 rows cannot be imported: 1 without a time (line 3)", "missing"),
    (HEAD + GOOD + "ann,b,0\n", "1 of 2 rows cannot be imported: 1 with time 0 (line 3)", "bad-times"),
    (HEAD + GOOD + "ann,b,-7\n", "1 of 2 rows cannot be imported: 1 with a time before 1970 (line 3)", "bad-times"),
    (HEAD + GOOD + "ann,b,soon\n", "1 of 2 rows cannot be imported: 1 with an unreadable time like 'soon' (line 3)", "bad-times"),
    (HEAD + GOOD * 2, "1 of 2 rows cannot be imported: 1 that repeat an earlier row (line 3)", "duplicates"),
    (HEAD + GOOD + "ann,b\n", "1 of 2 rows cannot be imported: 1 with 2 columns where the header has 3 (line 3)", "bad-lines"),
    (HEAD + GOOD + f"ann,b,{NOW},x\n", "1 of 2 rows cannot be imported: 1 with 4 columns where the header has 3 (line 3)", "bad-lines"),
    ((HEAD + GOOD).encode() + f"ann,caf\xe9,{NOW}\n".encode("latin-1"), "1 of 2 rows cannot be imported: 1 with bytes that are not UTF-8 (line 3)", "bad-lines"),
    ((HEAD + GOOD + f"ann,b\0,{NOW}\n"), "1 of 2 rows cannot be imported: 1 with a NUL byte (line 3)", "bad-lines"),
    (HEAD + GOOD + f'ann,"b,{NOW}\n' + GOOD.replace("a,", "c,"), "1 of 3 rows cannot be imported: 1 with a quoted field that does not end on its line (line 3)", "bad-lines"),
    (HEAD + GOOD + f'ann,5" x 6",{NOW}\n', "1 of 2 rows cannot be imported: 1 with a quote inside a field (put the field in quotes and double it) (line 3)", "bad-lines"),
]  # fmt: skip


@pytest.mark.parametrize("content, reason, kind", BROKEN)
def test_bad_rows_are_refused_or_dropped(tmp_path, content, reason, kind):
    refused(tmp_path, content, f"events.csv: {reason}{MEND}{kind}")
    log = load(tmp_path, content, drop=[kind])
    assert rows(log)[0] == ("a", "", "interact", NOW - 900) and log.source["dropped"] == {kind: 1}
    assert len(rows(log)) == log.source["rows"] - 1 and "b" not in log.item_ids


def test_all_kinds_in_one_message_and_dropped_together(tmp_path):
    """Times that lie in the future by any unit are told as bad rows once the unit is given."""
    lines = [GOOD, f",b,{NOW}\n", "ann,b\n", f"bob,b,{NOW + 90_000}\n", GOOD, "ann,c,0\n", *[f"ann,,{NOW}\n"] * 7]
    content = HEAD + "".join(lines)
    reason = (
        "events.csv: 12 of 13 rows cannot be imported: 1 with 2 columns where the header has 3 (line 4); 1 without a user "
        "(line 3); 7 with neither an item nor a query (line 8, line 9, line 10, line 11, line 12, ...); 1 with time 0 "
        "(line 7); 1 with a time in the future (line 5); 1 that repeat an earlier row (line 6)" + MEND
    )
    refused(tmp_path, content, reason + "bad-lines,missing,bad-times,duplicates", time_unit="seconds")
    log = load(tmp_path, content, time_unit="seconds", drop=["all"])
    assert log.source["dropped"] == {"bad-lines": 1, "missing": 8, "bad-times": 2, "duplicates": 1}
    assert log.user_ids == ["ann"] and len(rows(log)) == 1
    with pytest.raises(UserError, match="with --drop bad-lines,missing,bad-times,duplicates"):
        load(tmp_path, content, time_unit="seconds", drop=["duplicates", "bad-times"])


UNITS = "say which is right with --time-unit seconds|milliseconds|microseconds|nanoseconds|iso"


@pytest.mark.parametrize(
    "content, reason",
    [
        ("", ": the file is empty, or its first line is, which must name the columns"),
        (HEAD, ": there are no rows after the header"),
        (HEAD.encode("utf-16"), ": UTF-16 text: save it as UTF-8"),
        (b"user,it\xe9m,time\n", ":1: byte 0xe9 is not UTF-8 text"),
        (f"user,item,time\rann,a,{NOW}\r", ": its lines end in carriage returns alone: save it with line feeds"),
        ("user,user,time\n", ": column 'user' comes twice"),
        (
            "visitor,item,timestamp\n",
            ": there is no column 'user'; it has visitor, item, timestamp; name the right one with --columns user=...",
        ),
        (
            "user,item,timestamp\n",
            ": there is no column 'time'; did you mean 'timestamp'?; it has user, item, timestamp; name the right one "
            "with --columns time=...",
        ),
        (
            "user,sku,time\n",
            ": there is no column 'item'; it has user, sku, time; name the right one with --columns item=...",
        ),
        (
            HEAD + GOOD + f"ann,b,{NOW}000\n",
            f": column 'time': times of several kinds: 1 like line 2 ({NOW - 900}, seconds); 1 like line 3 ({NOW}000, "
            f"milliseconds); {UNITS}",
        ),
        (
            HEAD + GOOD + f"ann,b,{NOW + 90_000}\n",
            f": column 'time': times of several kinds: 1 like line 2 ({NOW - 900}, seconds); 1 like line 3 ({NOW + 90_000}, "
            f"no time since 1990 in any unit); {UNITS}",
        ),
        (HEAD + "ann,a,100\n", f": column 'time': what its numbers count cannot be told: 1 like line 2 (100, no time since 1990 in any unit); {UNITS}"),
    ],
)  # fmt: skip
def test_files_that_are_refused_whole(tmp_path, content, reason):
    refused(tmp_path, content, "events.csv" + reason, drop=["all"])


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"columns": {"usr": "user"}}, "--columns: 'usr' is none of user, item, time, action, query, request, shown, part; did you mean 'user'?"),
        ({"columns": {"item": "itm"}}, "events.csv: there is no column 'itm' for item; did you mean 'item'?; it has user, item, time"),
        ({"time_unit": "minutes"}, "--time-unit 'minutes' is none of auto, seconds, milliseconds, microseconds, nanoseconds, iso"),
        ({"time_unit": "milliseconds"}, "events.csv: column 'time': read as milliseconds, no time lies within 1990 and now; as seconds all do: give --time-unit seconds"),
        ({"drop": ["duplicate"]}, "--drop 'duplicate' is none of bad-lines, missing, bad-times, bad-parts, duplicates, all; did you mean 'duplicates'?"),
        ({"labels": {"like": ["intract"]}}, "--label like: there is no action 'intract'; did you mean 'interact'?; there are interact"),
        ({"tags": ["genre"]}, "--tags needs --items, the table of items"),
        ({"min_item_events": 2}, "events.csv: no event is left of 1 rows"),
    ],
)  # fmt: skip
def test_wrong_options(tmp_path, options, reason):
    refused(tmp_path, HEAD + GOOD, reason, **options)


@pytest.mark.parametrize(
    "items, options, reason",
    [
        ("sku,title\na,x\n", {}, "items.csv: there is no column 'item'; it has sku, title; name the right one with --item-columns item=..."),
        ("item\na\nb\na\n", {}, "items.csv: 1 of 3 rows cannot be imported: 1 with an item that came before (line 4)" + MEND + "duplicates"),
        ("item,title\na,x\n,y\n", {}, "items.csv: 1 of 2 rows cannot be imported: 1 without an item (line 3)" + MEND + "missing"),
        ("item,title\na,x\nb\n", {}, "items.csv: 1 of 2 rows cannot be imported: 1 with 1 columns where the header has 2 (line 3)" + MEND + "bad-lines"),
        ("item,title\na,x\n", {"tags": ["genre"]}, "items.csv: there is no column 'genre' for --tags; it has item, title"),
        ("item,genre\na,\n", {"tags": ["genre"]}, "items.csv: column 'genre', given to --tags, is empty"),
        ("item,genre\n" + "".join(f"{n},{n}\n" for n in range(513)), {"tags": ["genre"]}, "items.csv: column 'genre' has more than 512 different values: too many for --tags"),
        ("item,title\na,x\n", {"tags": ["a b"]}, "matrix 'a b': names hold letters, digits, - and _ alone, come once, and are not 'id'"),
        ("item,title\na,x\n", {"tags": ["id"]}, "matrix 'id': names hold letters, digits, - and _ alone, come once, and are not 'id'"),
        ("item,text\na,x\n", {"tags": ["text"]}, "matrix 'text' is what --text makes: give --tags or --vectors another name"),
        ('item,title\na,"x\n', {}, "items.csv:2: unexpected end of data"),
    ],
)  # fmt: skip
def test_bad_items(tmp_path, items, options, reason):
    refused(tmp_path, HEAD + GOOD, reason, items=items, **options)


def test_bad_items_are_dropped_with_the_same_flag(tmp_path):
    log = load(tmp_path, HEAD + GOOD, items="item,title\na,first\na,second\n,x\nb\nc,C\n", drop=["all"])
    assert log.item_ids == ["", "a", "c"] and log.item_titles == ["", "first", "C"]


def test_bad_parquet(tmp_path):
    table = pl.DataFrame({"user": ["ann", None], "item": [1.5, 2.0], "time": [NOW, NOW]})
    table.write_parquet(tmp_path / "t.parquet")
    read = lambda path, **settings: import_log(
        path, name="t", options=Options(**settings), data_dir=tmp_path / "d", now=NOW
    )
    with pytest.raises(
        UserError, match=r"'item' is of type Float64 and holds 1\.5, where text or whole numbers are wanted"
    ):
        read(tmp_path / "t.parquet")
    table = table.with_columns(item=pl.Series(["a", "b"]))
    table.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t.parquet: 1 of 2 rows cannot be imported: 1 without a user \(row 2\);"):
        read(tmp_path / "t.parquet")
    (tmp_path / "parts").mkdir()
    for part in range(3):
        table.write_parquet(tmp_path / f"parts/{part}.parquet")
    message = r"3 without a user \(0.parquet row 2, 1.parquet row 2, 2.parquet row 2\); 2 that repeat an earlier row \(1.parquet row 1, 2.parquet row 1\)"
    with pytest.raises(UserError, match=message):
        read(tmp_path / "parts")
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data[:-10])
    with pytest.raises(UserError, match=r"t\.parquet: not a whole parquet file: "):
        read(tmp_path / "t.parquet")
    table.drop("item").write_parquet(tmp_path / "parts/2.parquet")
    with pytest.raises(UserError, match=r"2.parquet: there is no column 'item', which 0.parquet has"):
        read(tmp_path / "parts")


def test_places_and_names(tmp_path):
    with pytest.raises(UserError, match="there is no such file or folder"):
        import_log(tmp_path / "none.csv", name="x", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"holds no \.parquet, \.csv, \.tsv or \.jsonl file"):
        import_log(tmp_path, name="x", data_dir=tmp_path)
    with pytest.raises(UserError, match="'ml-1m' stands for the published data set"):
        import_log(tmp_path, name="ml-1m", data_dir=tmp_path)
    with pytest.raises(UserError, match="'ml-1m-search' stands for the published data set"):
        import_log(tmp_path, name="ml-1m-search", data_dir=tmp_path)
    with pytest.raises(UserError, match="may hold letters"):
        import_log(tmp_path, name="../x", data_dir=tmp_path)


@pytest.mark.parametrize("odd", ["b.csv.xz", "b.CSV", "b.parquet"])
def test_no_table_of_a_folder_is_passed_over(tmp_path, odd):
    (folder := tmp_path / "events").mkdir()
    for name in ("a.csv", "_SUCCESS", ".a.csv.crc", "readme.txt", "_c.csv", "d.gz"):
        (folder / name).write_text(HEAD + GOOD)
    (folder / "year=2022").mkdir()
    read = lambda name: import_log(folder, name=name, data_dir=tmp_path, now=NOW)
    log = read("one")
    assert len(log) == 1 and log.source["ignored_files"] == ["_c.csv", "d.gz", "readme.txt", "year=2022/"]
    assert f"in {folder}, not read: _c.csv, d.gz, readme.txt, year=2022/" in data._notes(log)
    (folder / odd).write_text(HEAD + GOOD)
    message = (
        "delimited text and parquet together"
        if odd == "b.parquet"
        else rf"{odd}: a table by its name, but none that ends"
    )
    with pytest.raises(UserError, match=message):
        read("two")


def test_ids_and_missing_values_are_no_texts(tmp_path):
    """They are not searched, and not in the vocabulary of the encoder; an id stands for a title that is not there."""
    items = "item,title,text,kind\nzork-1,Red dress,NULL,a|nan\nzork-2,\\N,nan,None\n"
    content = HEAD + "".join(f"ann,zork-{n},{NOW - n}\n" for n in (1, 2, 3))
    log = load(tmp_path, content, items=items, tags=["kind"], text="tfidf")
    assert log.item_ids[1:] == ["zork-1", "zork-2", "zork-3"]
    assert log.item_titles[1:] == ["Red dress", "zork-2", "zork-3"] and log.item_texts[1:] == ["Red dress", "", ""]
    words = log.text_encoder().vocabulary
    assert {"red", "dress"} <= set(words) and not any("zork" in word or "nan" in word for word in words)
    assert log.item_columns["kind"] == ["a"]
    assert log.item_matrices["text"][1].any() and not log.item_matrices["text"][2:].any()


def test_ids_are_no_texts_where_the_table_has_none(tmp_path):
    content = f"user,item,time,query\nann,zork-1,{NOW - 2},red dress\n"
    log = load(tmp_path, content, items="item,kind\nzork-1,a\n", tags=["kind"], text="tfidf")
    assert "text" not in log.item_matrices and log.query_matrices["text"][1].any()
    assert not any("zork" in word for word in log.text_encoder().vocabulary)


TITLES, QUERIES = "item,title\na,Red dress\nb,\n", f"user,item,time,query\nann,a,{NOW - 2},blue hat\nann,b,{NOW - 1},\n"


@pytest.mark.parametrize("items, item_words", [(None, False), ("item\na\nb\n", False), (TITLES, True)])
@pytest.mark.parametrize("content, query_words", [(QUERIES, True), (QUERIES.replace("blue hat", "?!"), False)])
def test_words_are_encoded_wherever_there_are_any(tmp_path, capsys, items, item_words, content, query_words):
    log = load(tmp_path, content, items=items)
    assert ("text" in log.item_matrices, "text" in log.query_matrices) == (item_words, query_words)
    assert (log.text_encoder() is not None) == (item_words or query_words)
    if item_words:
        assert log.item_matrices["text"].any(axis=1).tolist() == [False, True, False]  # an id is no text
    if query_words:
        assert log.query_matrices["text"].any(axis=1).tolist() == [False, True]  # though no item has these words
    assert main.main(["data", "show", "shop", "--data-dir", str(tmp_path / "data")]) == 0
    of = " and ".join(["items"] * item_words + ["queries"] * query_words)
    assert (f"matrix text: of {of}, 256 wide" in capsys.readouterr().out) == bool(of)
    log = load(tmp_path, content, items=items, text="none")
    assert not log.item_matrices and not log.query_matrices and log.text_encoder() is None


def test_an_encoder_without_a_word_to_encode_is_refused(tmp_path):
    reason = "--text tfidf: no item has a title or text, and no query a word: leave --text out"
    refused(tmp_path, HEAD + GOOD, reason, text="tfidf", items="item\na\n")


# --- items of which nothing is known --------------------------------------------------------------------------


def test_items_of_which_nothing_is_known_are_counted_and_named(tmp_path, capsys):
    """Neither an event nor a text, tag or vector; to have been shown tells nothing."""
    content = f"user,item,time,shown\nann,a,{NOW - 2},a|shown\nann,rare,{NOW - 1},\nann,a,{NOW},\n"
    items = "item,title,kind\na,,\nb,A title,\nc,,k\nd,,\ne,!?,\nrare,,\n"
    vectors = {"image": np.zeros((6, 2))}
    vectors["image"][3] = 1  # of d
    for name, unknown in (("none", ["d", "e", "shown"]), ("image", ["e", "shown"])):
        options = {"tags": ["kind"]}
        if name == "image":
            np.save(tmp_path / "image.npy", vectors["image"])
            options["vectors"] = {"image": tmp_path / "image.npy"}
        assert load(tmp_path, content, items=items, **options).unknown_items == (len(unknown), unknown)
    log = load(tmp_path, content, items=items, min_item_events=2)
    assert log.unknown_items == (5, ["c", "d", "e", "rare", "shown"])
    log = load(tmp_path, content, items=items, min_item_events=2, text="none")
    assert log.unknown_items == (6, ["b", "c", "d", "e", "rare"])
    assert main.main(["data", "show", "shop", "--data-dir", str(tmp_path / "data"), "--json"]) == 0
    out = capsys.readouterr().out
    line = "6 items have no event, and no text, tag or vector to go by: b, c, d, e, rare and 1 more: they are never recommended"
    assert line in out.splitlines() and json.loads(out.splitlines()[-1])["unknown_items"] == 6
    log = load(tmp_path, HEAD + GOOD)
    assert log.unknown_items == (0, [])
    about = json.loads((log.path / "log.json").read_text())
    del about["unknown_items"]  # as of an earlier version
    (log.path / "log.json").write_text(json.dumps(about))
    assert EventLog.load(log.path).unknown_items == (0, [])


def test_an_action_of_which_nothing_is_left_is_told_before_texts_are_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(own_log.text, "matrices", None)
    content = f"user,item,time,action\nann,a,{NOW - 2},view\nann,b,0,buy\n"
    reason = "--label bought: no event is left of action 'buy'; there are view"
    refused(
        tmp_path,
        content,
        reason,
        items="item,title\na,x\n",
        labels={"bought": ["buy"]},
        drop=["all"],
        time_unit="seconds",
    )


def test_vectors_that_are_not_finite_are_refused_at_once(tmp_path):
    np.save(tmp_path / "image.npy", np.array([[1.0, 2.0], [np.nan, 0.0], [1e6, 0.0]], np.float32))
    (tmp_path / "t.csv").write_text("item\na\nb\nc\n")
    with pytest.raises(UserError, match=r"image.npy: row 1 \(from 0\) is not finite in float16: 2 rows are so"):
        item_table.read(tmp_path / "t.csv", {}, (), {"image": tmp_path / "image.npy"}, ())


def test_what_a_killed_import_leaves_is_removed_by_the_next_one(tmp_path):
    code = (
        "import os, signal, sys; from data_pipelines.event_log import event_log; from data_pipelines.importing import own_log; "
        "event_log._write_records = lambda *_: os.kill(os.getpid(), signal.SIGKILL); "
        "own_log.import_log(sys.argv[1], name='shop', data_dir=sys.argv[2])"
    )
    (tmp_path / "events.csv").write_text(HEAD + GOOD)
    command = [sys.executable, "-c", code, tmp_path / "events.csv", tmp_path / "data"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    logs = tmp_path / "data" / "logs"
    assert sorted(path.name.split(".")[2] for path in logs.iterdir()) == ["half-written", "import"]
    load(tmp_path, HEAD + GOOD)
    assert [path.name for path in logs.iterdir()] == ["shop"]


def test_a_folder_in_the_place_of_the_log_is_told_before_anything_is_read(tmp_path, monkeypatch):
    (place := tmp_path / "data" / "logs" / "shop").mkdir(parents=True)
    (place / "thesis.txt").write_text("years of work")
    monkeypatch.setattr(event_files.EventFiles, "pieces", None)
    with pytest.raises(UserError, match="shop: exists and is not an event log: move it away"):
        load(tmp_path, HEAD + GOOD)
    (place / "thesis.txt").rename(place / "lengths.npy")  # what is left of a log is replaced
    monkeypatch.undo()
    assert len(load(tmp_path, HEAD + GOOD)) == 1


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    """The files of events are the device of a disk that is always full. A small file fails at its last flush alone."""
    made = sorted_events.Store.__init__

    def on_a_full_disk(store, folder, name):
        (folder / f"{name}.events").symlink_to("/dev/full")
        made(store, folder, name)

    monkeypatch.setattr(sorted_events.Store, "__init__", on_a_full_disk)
    with pytest.raises(UserError) as raised:
        load(tmp_path, HEAD + GOOD)
    logs = tmp_path / "data" / "logs"
    assert str(raised.value) == f"{logs}: the disk is full; nothing was written" and not list(logs.iterdir())


def test_events_that_the_disk_lost_are_missed(tmp_path):
    store = sorted_events.Store(tmp_path, "all")
    store.append(np.zeros(3, sorted_events.EVENT), np.zeros(0, np.int32))
    assert len(store.load()[0]) == len(next(store.slices())[0]) == 3
    (tmp_path / "all.events").write_bytes(bytes(2 * sorted_events.EVENT.itemsize))
    for read in (store.load, lambda: list(store.slices())):
        with pytest.raises(UserError, match=r"all\.events: 100 bytes of events came back, not 150"):
            read()


def test_too_many_actions(tmp_path):
    content = "user,item,time,action\n" + "".join(f"ann,a,{NOW - n},action {n}\n" for n in range(1001))
    refused(tmp_path, content, "events.csv: column 'action' holds more than 1,000 different actions: name the right one with --columns action=...")  # fmt: skip


def test_every_broken_line_of_a_big_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited_text, "BLOCK", 997)
    rng = np.random.default_rng(0)
    kinds = {4: b"short,row", 5: b'ann,"open,1', 6: b"ann,\xff,1", 7: b'ann,in"side,1', 8: b"", 9: b"a,b,c,d"}
    choice = rng.integers(0, 60, 3000)
    lines = [kinds.get(kind, f'"ann, ""x""",i{n},{NOW - n}'.encode()) for n, kind in enumerate(choice.tolist())]
    path = tmp_path / "events.csv"
    path.write_bytes(b"user,item,time\r\n" + b"\r\n".join(lines))
    found = list(event_files.EventFiles(path).pieces(["item", "user"]))
    assert np.concatenate([piece.rows for piece in found]).tolist() == [
        n + 2 for n, kind in enumerate(choice) if kind not in kinds
    ]
    good = pl.concat([piece.columns for piece in found])
    assert good["item"].to_list() == [f"i{n}" for n, kind in enumerate(choice) if kind not in kinds]
    assert set(good["user"]) == {'ann, "x"'}
    broken = {
        why: np.concatenate([piece.broken.get(why, []) for piece in found]).tolist()
        for piece in found
        for why in piece.broken
    }
    expected = {
        "2 columns where the header has 3": 4,
        delimited_text.UNCLOSED: 5,
        packed_text.NOT_UTF8: 6,
        delimited_text.STRAY: 7,
        "4 columns where the header has 3": 9,
    }
    assert broken == {why: (np.flatnonzero(choice == kind) + 2).tolist() for why, kind in expected.items()}


def test_pieces_without_a_good_row(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited_text, "BLOCK", 40)
    log = load(tmp_path, HEAD + "ann,b\n" * 30 + "\n" * 100 + ",c,5\n" * 30 + GOOD + "ann\n" * 30, drop=["all"])
    assert len(rows(log)) == 1 and log.source["dropped"] == {"bad-lines": 60, "missing": 30}
    refused(tmp_path / "none", HEAD + "ann,b\n" * 3, "events.csv: no event is left of 3 rows", drop=["all"])


PAGE = pathlib.Path(__file__).parents[2] / "docs" / "your-data.md"


def test_the_page_holds_every_message_and_its_example_imports(tmp_path):
    page = PAGE.read_text(encoding="utf-8")
    for _, reason, kind in BROKEN:
        assert f"{reason.partition(': ')[2]} | `{kind}` |" in page
    example = page.partition("```csv\n")[2].partition("```")[0]
    log = load(tmp_path, example)
    assert len(example.splitlines()) == 10 and log.queries == ["", '"slim" belt', "red dress"]
    assert shown(log) == [(1, "dress-1", ""), (1, "dress-7", "purchase"), (1, "skirt-2", "")]


# --- the command ----------------------------------------------------------------------------------------------


def test_command_line(tmp_path, capsys):
    content = "who,item,time,action\n" + f"ann,a,{NOW - 9},view\nann,b,{NOW - 8},buy\nann,b,{NOW - 8},buy\n"
    (tmp_path / "shop.v2.csv").write_text(content)
    data = ["--data-dir", str(tmp_path / "data")]
    command = ["data", "import", str(tmp_path / "shop.v2.csv"), "--columns", "user=who", *data]
    assert main.main(command) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"synergen: error: \S+: 1 of 3 rows .* repeat an earlier row \(line 4\); .*--drop duplicates\n", error
    )
    assert main.main([*command, "--drop", "duplicates", "--label", "bought=buy", "--json"]) == 0
    out = capsys.readouterr().out
    assert "shop: 2 events, 1 users, 2 items, 0 queries" in out and "dropped: 1 with duplicates" in out
    assert "labels: engage = buy+view, bought = buy" in out
    assert "in place of" not in out
    assert json.loads(out.splitlines()[-1])["source"]["dropped"] == {"duplicates": 1}
    assert main.main(["data", "list", *data]) == 0 and "shop" in capsys.readouterr().out
    assert main.main(["data", "show", "shop", *data]) == 0
    out = capsys.readouterr().out
    assert "user ann: 2 events" in out and "buy 1, view 1" in out.replace("view 1, buy 1", "buy 1, view 1")
    assert (
        main.main([*command, "--drop", "all"]) == 0 and "in place of the one that was there" in capsys.readouterr().out
    )
    assert main.main([*command, "--label", "bought"]) == 2 and "NAME=VALUE" in capsys.readouterr().err


def test_a_matrix_text_of_another_make_can_be_shown(tmp_path, capsys):
    """As of a log that an earlier version imported with --vectors text=..."""
    log = load(tmp_path, HEAD + GOOD)
    parts = {"item_ids": log.item_ids, "item_titles": log.item_titles, "queries": [""], "actions": log.actions}
    matrices = {"text": np.array([[0.0], [1.0]])}
    path = tmp_path / "data" / "logs" / "old"
    event_log.write(path, name="old", users=[log[0]], labels=log.labels, item_matrices=matrices, source={}, **parts)
    assert main.main(["data", "show", "old", "--data-dir", str(tmp_path / "data")]) == 0
    assert "old: 1 events" in capsys.readouterr().out


def test_multi_hot_is_exact():
    """Half floats are rounded once, from the exact root."""
    for count in range(1, 60):
        matrix, _ = interactions.multi_hot([tuple(map(str, range(count)))])
        assert matrix[0, 0] == np.float16(1 / np.sqrt(np.float64(count))) and matrix.dtype == np.float16


def test_polars_is_imported_when_it_is_needed():
    code = "import sys, synergen_jax.cli.data; print({'polars', 'pyarrow', 'tensorflow_datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_beam_asks_for_its_extra(tmp_path, capsys, monkeypatch):
    (tmp_path / "shop.csv").write_text(HEAD + GOOD)
    command = ["data", "import", str(tmp_path / "shop.csv"), "--data-dir", str(tmp_path / "data")]
    assert main.main([*command, "--beam-folder", "x"]) == 2
    assert "--beam-options and --beam-folder need --beam RUNNER" in capsys.readouterr().err
    for module in ("apache_beam", "apache_beam.io.filesystems"):
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    assert main.main([*command, "--beam", "DirectRunner"]) == 2
    assert "pip install 'synergen-jax[beam]'" in capsys.readouterr().err and not (tmp_path / "data").exists()


def test_commands_of_the_beam_page_parse():
    page = (pathlib.Path(__file__).parents[2] / "docs/beam.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    commands = re.findall(
        r"^synergen (.*?)(?=^synergen|^pip|\Z)", "\n".join(blocks).replace("\\\n", " "), re.DOTALL | re.MULTILINE
    )
    runners = [main.parser().parse_args(shlex.split(command)).beam for command in commands]
    assert {"DirectRunner", "DataflowRunner", "FlinkRunner", "SparkRunner"} <= set(runners)
