"""A history from a table becomes a record; a wrong row is named by file and line."""

import datetime
import gzip
import json
import re

import numpy as np
import polars as pl
import pyarrow
import pytest
from small_log import SmallLog, user

from data_pipelines.feed import examples
from data_pipelines.files.records import DTYPES, validate
from data_pipelines.importing import history
from synergen_jax.config import Config
from synergen_jax.errors import UserError

LAST = 1_000_000_000  # when the log below ends


class Log(SmallLog):
    last_time = LAST


LOG = Log([user([1, 2, 3])], 12)
BAD = ": 1 of 1 rows cannot be read: "


def read(tmp_path, text):
    file = tmp_path / "history.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    record = history.read(file, LOG).record
    validate(record, LOG.spec, "history")
    assert {name: record[name].dtype for name in DTYPES} == DTYPES
    return record


def test_items_alone(tmp_path):
    record = read(tmp_path, "item\nitem-3\nitem-1\nitem-3\n")
    assert record["item"].tolist() == [3, 1, 3]
    assert record["action"].tolist() == [2, 2, 2], "the commonest action of events with an item"
    assert record["time"].tolist() == [LAST - 120, LAST - 60, LAST]
    assert record["request"].tolist() == [1, 2, 3] and record["query"].tolist() == [0, 0, 0]


def test_all_columns_in_any_order(tmp_path):
    record = read(tmp_path, "time,item,action\n999999300,item-1,view\n999999100,item-2,buy\n999999300,item-3,\n")
    assert record["item"].tolist() == [2, 1, 3], "by time; ties in the order of the file"
    assert record["time"].tolist() == [999999100, 999999300, 999999300]
    assert record["action"].tolist() == [3, 1, 2], "the last one is the commonest, a click"


@pytest.mark.parametrize(
    "text",
    [
        "item\r\nitem-1\r\nitem-2\r\n",
        b"\xef\xbb\xbfitem\nitem-1\nitem-2\n",  # a byte order mark
        '"item"\n"item-1"\n item-2 \n',
        "item\n\nitem-1\n\nitem-2",
        "item\taction\ttime\nitem-1\t\t\nitem-2\tNULL\tNULL\n",
    ],
)
def test_forms_of_csv(tmp_path, text):
    assert read(tmp_path, text)["item"].tolist() == [1, 2]


def test_one_event_and_more_than_a_window_holds(tmp_path):
    config = Config()
    assert examples.user_history(read(tmp_path, "item\nitem-5\n"), config)[0].item[0, :2].tolist() == [5, 0]
    record = read(tmp_path, "item\n" + "".join(f"item-{1 + n % 11}\n" for n in range(250)))
    events, start = examples.user_history(record, config)
    assert events.item.shape == (1, 200) and np.all(events.item > 0)
    assert start == LAST - 249 * 60 and events.time[0, -1] == 249 * 60


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ": the file is empty, or its first line is, which must name the columns"),
        ("item\n", ": there are no rows after the header"),
        (
            "item-1\nitem-2\n",
            ": there is no column 'item'; did you mean 'item-1'?; it has item-1; rename the right one",
        ),
        ("film\nitem-1\n", ": there is no column 'item'; did you mean 'film'?; it has film; rename the right one"),
        ("item,item\nitem-1,item-1\n", ": column 'item' comes twice"),
        ("item\nitem-1\nitem-99\n", ", line 3: item 'item-99' is not in small; did you mean 'item-9'?"),
        ("item\nitem-1\n\nxyz\nzyx\n", ", line 4: item 'xyz' is not in small; 1 more rows are like it"),
        ("item,action\n,buy\n", f"{BAD}1 with neither an item nor a query (line 2); mend them"),
        (
            "item,query\nitem-1,query 1\n,\n",
            ": 1 of 2 rows cannot be read: 1 with neither an item nor a query (line 3)",
        ),
        ("item\nitem-1,buy\n", f"{BAD}1 with 2 columns where the header has 1 (line 2)"),
        ("item,action\nitem-1,sell\n", ", line 2: action 'sell' is none of view, click, buy"),
        (
            "item,time\nitem-1,5\nitem-1,1e9\n",
            ": column 'time': times of several kinds: 1 like line 2 (5, no time since 1990 in any unit); 1 like line 3 "
            "(1000000000, seconds); give all of them as Unix seconds or ISO 8601",
        ),
        ("item,time\nitem-1,0\n", f"{BAD}1 with time 0 (line 2); mend them"),
        ("item,time\nitem-1,0.5\n", f"{BAD}1 with time 0 (line 2)"),
        ("item,time\nitem-1,soon\n", f"{BAD}1 with an unreadable time like 'soon' (line 2)"),
        ("item,time\nitem-1,-7\n", f"{BAD}1 with a time before 1970 (line 2)"),
        (f"item,time\nitem-1,{2**62}\n", ": column 'time': what its numbers count cannot be told: 1 like line 2"),
        (
            "item,time\nitem-1,100\n",
            ": column 'time': what its numbers count cannot be told: 1 like line 2 (100, no time since",
        ),
        (
            "item,time\nitem-1,\nitem-2,999999300\n",
            ": 1 of 2 rows cannot be read: 1 without a time (line 2); mend them",
        ),
        (
            "item,time\nitem-1,999999300\nitem-2,999999300\nitem-1,999999300\n",
            ": 1 of 3 rows cannot be read: 1 that repeat an earlier row (line 4)",
        ),
        ("query\nquery 11\n", ", line 2: query 'query 11' is not in small; did you mean 'query 1'?"),
        (b"item\nitem-\xe9\n", f"{BAD}1 with bytes that are not UTF-8 (line 2)"),
        ("item,user\nitem-1,ann\nitem-1,bob\n", ": events of 2 users, 'ann' and 'bob' among them: give one's"),
    ],
)
def test_wrong_files(tmp_path, text, reason):
    with pytest.raises(UserError, match="^" + re.escape(f"{tmp_path / 'history.csv'}{reason}")) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(tmp_path):
    for path, reason in ((tmp_path, "the folder holds no"), (tmp_path / "none.csv", "there is no such file")):
        with pytest.raises(UserError, match=reason):
            history.read(path, LOG)


ROWS = [  # user, item, time, action, query, request
    ("u", None, 1_692_000_000, "view", "query 2", "r1"),
    ("u", "item-4", 1_692_000_060, "click", None, "r1"),
    ("u", "item-5", 1_692_000_120, "buy", None, None),
]
FORMS = ("csv", "tsv", "csv.gz", "csv.zst", "jsonl", "jsonl.gz", "jsonl.zst", "parquet")


def table(rows=ROWS, columns=history.ROLES, time=pl.Int64):
    return pl.DataFrame(dict(zip(("user", "item", "time", "action", "query", "request"), zip(*rows)))).select(
        pl.col(name).cast(time) if name == "time" else pl.col(name).alias(new)
        for name, new in zip(history.ROLES, columns)
    )


def written(frame, path):
    """Writes a table in the form that the name of a file tells."""
    if path.suffix == ".parquet":
        frame.write_parquet(path)
        return path
    form = path.suffixes[0]
    text = frame.write_csv(separator="\t" if form == ".tsv" else ",") if form != ".jsonl" else frame.write_ndjson()
    packed = {".gz": gzip.compress, ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)}
    path.write_bytes(packed.get(path.suffix, bytes)(text.encode()))
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_tells_the_same(tmp_path, form):
    """With a request whose query its later event has, too, and a user."""
    record, assumed, notes = history.read(written(table(), tmp_path / f"h.{form}"), LOG)
    validate(record, LOG.spec, "history")
    assert {name: record[name].dtype for name in DTYPES} == DTYPES
    assert record["item"].tolist() == [0, 4, 5] and record["action"].tolist() == [1, 2, 3]
    assert record["query"].tolist() == [2, 2, 0] and record["request"].tolist() == [1, 1, 2]
    assert record["time"].tolist() == [1_692_000_000, 1_692_000_060, 1_692_000_120] and (assumed, notes) == ({}, [])


@pytest.mark.parametrize("form", ["csv", "jsonl.gz", "parquet"])
def test_columns_of_the_import(tmp_path, form):
    """Those that the log was imported from are known; where the file has none of them, the roles' own names are."""
    log = Log([user([1, 2, 3])], 12)
    names = ["visitor", "sku", "at", "kind", "words", "page"]
    log.source = {"columns": dict(zip(history.ROLES, names)) | {"shown": "list"}}
    expected = history.read(written(table(), tmp_path / f"own.{form}"), log).record
    record = history.read(written(table(columns=names), tmp_path / f"h.{form}"), log).record
    for name in DTYPES:
        np.testing.assert_array_equal(record[name], expected[name])
    _, _, notes = history.read(written(table().with_columns(colour=pl.lit("red")), tmp_path / f"c.{form}"), log)
    assert notes == ["columns of the history that were not read: colour"]


@pytest.mark.parametrize(
    "kind",
    [pl.Int64, pl.Float64, pl.Datetime("ms"), pl.Datetime("us", "UTC"), pl.Datetime("ns")],
)
def test_times_of_parquet(tmp_path, kind):
    """Whole and broken numbers, and timestamps, with a zone or without."""
    size = {"ms": 10**3, "us": 10**6, "ns": 10**9}.get(getattr(kind, "time_unit", None), 1)
    rows = [(*row[:2], row[2] * size, *row[3:]) for row in ROWS]
    record, _, notes = history.read(written(table(rows, time=kind), tmp_path / "h.parquet"), LOG)
    assert record["time"].tolist() == [1_692_000_000, 1_692_000_060, 1_692_000_120]
    zoneless = isinstance(kind, pl.Datetime) and not kind.time_zone
    assert notes == ["3 times of the history without a zone are read as UTC"] * zoneless


def test_dates(tmp_path):
    days = pl.DataFrame(
        {"item": ["item-1", "item-2"], "time": [datetime.date(2023, 8, 14), datetime.date(2023, 8, 15)]}
    )
    for form in ("csv", "jsonl", "parquet"):
        record = history.read(written(days, tmp_path / f"h.{form}"), LOG).record
        assert record["time"].tolist() == [1_691_971_200, 1_692_057_600]


def test_numbers_of_json_and_gaps_of_pandas(tmp_path):
    """Ids of a log may be numbers: 7.0 is 7, NaN and null are missing; times may be null altogether."""
    log = Log([user([1, 2, 3])], 12)
    log.item_ids = ["", *(str(i) for i in range(1, 12))]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps({"item": i, "time": None}) + "\n" for i in (7, 3.0, "5")))
    pl.DataFrame({"item": [7.0, 3.0, 5.0], "time": [float("nan")] * 3}).write_parquet(tmp_path / "h.parquet")
    for form in ("jsonl", "parquet"):
        record = history.read(tmp_path / f"h.{form}", log).record
        assert record["item"].tolist() == [7, 3, 5] and record["time"].tolist() == [LAST - 120, LAST - 60, LAST]


def test_a_folder_of_parts_is_one_history(tmp_path):
    for i in range(3):
        written(table(ROWS[i : i + 1]), tmp_path / f"part-{i}.parquet")
    assert history.read(tmp_path, LOG).record["item"].tolist() == [0, 4, 5]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("h.csv.gz", b"item\nitem-1\n", "damaged, or no gzip file"),
        ("h.parquet", b"PAR1", "not a whole parquet file"),
        (
            "h.jsonl",
            b'{"item": "item-1"}\n{"item": \n',
            "1 of 2 rows cannot be read: 1 with what is no JSON object (line 2)",
        ),
        ("h.jsonl", b"[]\n", "none of its first lines is a JSON object"),
        ("h.xlsx", b"x", "a .csv, .tsv, .jsonl or .parquet file is wanted"),
        ("h.jsonl", b'{"item": ["item-1", "item-2"]}\n', "column 'item' is of type List(String), where text"),
    ],
)
def test_wrong_files_of_other_forms(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(reason)) as error:
        history.read(tmp_path / name, LOG)
    assert str(error.value).startswith(str(tmp_path / name))


def test_going_on_from_a_user(tmp_path):
    """Times join those of the log; events that the log has already, and another user's, are refused."""
    before = user([1, 2, 3], name="u")
    text = "user,item,time,action\nu,item-9,1000000090,view\nu,item-8,1000000030,view\n"
    (tmp_path / "h.csv").write_text(text)
    record = history.read(tmp_path / "h.csv", LOG, before).record
    assert record["item"].tolist() == [1, 8, 2, 9, 3] and record["request"].tolist() == [1, 4, 2, 5, 3]
    (tmp_path / "h.csv").write_text(text + "u,item-2,1000000060,click\n")
    with pytest.raises(UserError, match=r"1 of 3 rows cannot be read: 1 that the log has of user u \(line 4\)"):
        history.read(tmp_path / "h.csv", LOG, before)
    (tmp_path / "h.csv").write_text(text.replace("\nu,", "\nv,"))
    with pytest.raises(UserError, match="events of user 'v', beside --user u: give one user"):
        history.read(tmp_path / "h.csv", LOG, before)


@pytest.mark.parametrize(
    "times",
    [
        ("1692000000", "1692000060"),
        ("1692000000000", "1692000060999"),  # milliseconds
        ("1692000000.25", "1692000060.75"),
        ("2023-08-14T08:00:00Z", "2023-08-14T10:01:00+02:00"),
        ("2023-08-14 08:00:00", "2023-08-14 08:01:00"),
    ],
)
def test_times_in_every_form_are_the_same_times(tmp_path, times):
    record = read(tmp_path, "".join(f"{row}\n" for row in ("item,time", f"item-2,{times[1]}", f"item-1,{times[0]}")))
    assert record["time"].tolist() == [1_692_000_000, 1_692_000_060] and record["item"].tolist() == [1, 2]


def test_order_within_a_second(tmp_path):
    record = read(tmp_path, "item,time\nitem-3,1692000000.9\nitem-1,1692000000.1\nitem-2,1692000000.5\n")
    assert record["item"].tolist() == [1, 2, 3] and record["time"].tolist() == [1_692_000_000] * 3


def test_searches_and_actions_that_are_not_given(tmp_path):
    """Items are clicked three times and viewed twice, searches are views: the commonest of each kind."""
    log = Log([user([1, 2, 3, 4, 5, 0, 0], action=[2, 1, 2, 1, 2, 1, 1], query=[0, 0, 0, 0, 0, 1, 2])], 12)
    assert history.usual_actions(log) == {"item": "click", "query": "view"}
    file = tmp_path / "history.csv"
    file.write_text("item,query,action\n,query 2,\nitem-4, query  2 ,\nitem-5,,buy\n")
    record, assumed, _ = history.read(file, log)
    assert record["item"].tolist() == [0, 4, 5] and record["query"].tolist() == [2, 2, 0]
    assert record["action"].tolist() == [1, 2, 3]
    assert assumed == {"item": "click", "query": "view"}
    file.write_text("item,action\nitem-5,buy\n")
    assert history.read(file, log).assumed == {}
    alone = Log([user([1], action=[3])], 12)
    assert history.usual_actions(alone) == {"item": "buy", "query": "buy"}, "no search tells: the commonest of all"


def test_small_times_are_of_the_logs_unit_where_its_own_are_small(tmp_path):
    log = Log([user([1, 2, 3])], 12)
    log.last_time = 5_000
    file = tmp_path / "history.csv"
    file.write_text("item,time\nitem-1,300\nitem-2,100\n")
    assert history.read(file, log).record["time"].tolist() == [100, 300]
    log.source = {"time_unit": "milliseconds"}
    file.write_text("item,time\nitem-1,300000\nitem-2,100000\n")
    assert history.read(file, log).record["time"].tolist() == [100, 300]
