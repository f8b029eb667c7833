"""A history from a CSV file becomes a record; a wrong row is named by file and line."""

import re

import numpy as np
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


def read(tmp_path, text):
    file = tmp_path / "history.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    record, _ = history.read(file, LOG)
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
        "item,action,time\nitem-1\nitem-2,,\n",
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
        ("", ": needs a header line with a column `item`"),
        ("item\n", ": needs a header line with a column `item` (and if you like `action`, `time`, `query`), and rows"),
        ("item-1\nitem-2\n", ": needs a header line"),
        ("film,item\nx,item-1\n", ": unknown or repeated column 'film': columns are item, action, time, query"),
        ("item,item\nitem-1,item-1\n", ": unknown or repeated column 'item'"),
        ("item\nitem-1\nitem-99\n", ", line 3: item 'item-99' is not in small; did you mean 'item-9'?"),
        ("item\nitem-1\n\nxyz\n", ", line 4: item 'xyz' is not in small"),
        ("item,action\n,buy\n", ", line 2: item '' is not in small"),
        ("item\nitem-1,buy\n", ", line 2: 2 columns, not 1 (item)"),
        ("item,action\nitem-1,sell\n", ", line 2: action 'sell' is none of view, click, buy"),
        (
            "item,time\nitem-1,5\nitem-1,1e9\n",
            ", column time: times of several kinds: 1 like line 2 (5, no time since 1990 in any unit); 1 like line 3 "
            "(1000000000, seconds); give all of them as Unix seconds or ISO 8601",
        ),
        ("item,time\nitem-1,0\n", ", line 2: time '0' is no Unix time: time 0"),
        ("item,time\nitem-1,0.5\n", ", line 2: time '0.5' is no Unix time: time 0"),
        ("item,time\nitem-1,nan\n", ", line 2: time 'nan' is no Unix time: an unreadable time"),
        ("item,time\nitem-1,-7\n", ", line 2: time '-7' is no Unix time: a time before 1970"),
        (f"item,time\nitem-1,{2**62}\n", ", column time: what its numbers count cannot be told: 1 like line 2"),
        (
            "item,time\nitem-1,100\n",
            ", column time: what its numbers count cannot be told: 1 like line 2 (100, no time since",
        ),
        (
            "item,time\nitem-1,\nitem-2,999999300\n",
            ", line 2: no time, and other rows have one: give each row its time, or none",
        ),
        ("item,query\nitem-1,query 1\n,\n", ", line 3: item '' is not in small"),
        ("query\nquery 11\n", ", line 2: query 'query 11' is not in small; did you mean 'query 1'?"),
        (b"item\nitem-\xe9\n", ": cannot be read as CSV"),
    ],
)
def test_wrong_files(tmp_path, text, reason):
    with pytest.raises(UserError, match="^" + re.escape(f"{tmp_path / 'history.csv'}{reason}")) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(UserError, match="cannot be read as CSV"):
            history.read(path, LOG)


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
    """Items are clicked three times and viewed twice, searches are views: the commonest of each kind, whatever the alphabet."""
    log = Log([user([1, 2, 3, 4, 5, 0, 0], action=[2, 1, 2, 1, 2, 1, 1], query=[0, 0, 0, 0, 0, 1, 2])], 12)
    assert history.usual_actions(log) == {"item": "click", "query": "view"}
    file = tmp_path / "history.csv"
    file.write_text("item,query,action\n,query 2,\nitem-4, query  2 ,\nitem-5,,buy\n")
    record, assumed = history.read(file, log)
    assert record["item"].tolist() == [0, 4, 5] and record["query"].tolist() == [2, 2, 0]
    assert record["action"].tolist() == [1, 2, 3]
    assert assumed == {"item": "click", "query": "view"}
    file.write_text("item,action\nitem-5,buy\n")
    assert history.read(file, log)[1] == {}
    alone = Log([user([1], action=[3])], 12)
    assert history.usual_actions(alone) == {"item": "buy", "query": "buy"}, "no search tells: the commonest of all"


def test_small_times_are_seconds_where_the_logs_own_are(tmp_path):
    log = Log([user([1, 2, 3])], 12)
    log.last_time = 5_000
    file = tmp_path / "history.csv"
    file.write_text("item,time\nitem-1,300\nitem-2,100\n")
    assert history.read(file, log)[0]["time"].tolist() == [100, 300]
