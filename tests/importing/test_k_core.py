"""`--k-core`: the same as a slow one in plain Python, in bounded memory, counted and told."""

import collections

import numpy as np
import polars as pl
import pytest

from data_pipelines.importing import own_log, sorted_events
from data_pipelines.importing.own_log import Options
from synergen_jax.cli import data, main
from synergen_jax.errors import UserError

NOW = 1_700_000_000


def table(seed, count=1500):
    """Events of which most users and items have few, some of them without an item."""
    rng = np.random.default_rng(seed)
    item = [f"i{n}" if there else None for n, there in zip(rng.zipf(1.4, count) % 300, rng.random(count) > 0.1)]
    return pl.DataFrame(
        {
            "user": [f"u{n}" for n in rng.zipf(1.3, count) % 200],
            "item": pl.Series(item, dtype=pl.String),
            "query": ["hat"] * count,
            "time": NOW - rng.permutation(10 * count)[:count],
        }
    )


def slow(events, least):
    """What a k-core leaves of (user, item, time), and its rounds."""
    rounds = 0
    while True:
        size = len(events)
        items = collections.Counter(item for _, item, _ in events)
        events = [event for event in events if event[1] is None or items[event[1]] >= least]
        users = collections.Counter(user for user, _, _ in events)
        events = [event for event in events if users[event[0]] >= least]
        if len(events) == size:
            return events, rounds
        rounds += 1


def load(tmp_path, events, name="shop", **options):
    events.write_csv(tmp_path / "events.csv")
    options = Options(text="none", **options)
    return own_log.import_log(tmp_path / "events.csv", name=name, options=options, data_dir=tmp_path / "data", now=NOW)


@pytest.mark.parametrize("seed, least", [(0, 1), (0, 2), (1, 3), (2, 5)])
def test_the_fixed_point_is_that_of_a_slow_one(tmp_path, monkeypatch, seed, least):
    events = table(seed)
    rows = list(events.select("user", "item", "time").iter_rows())
    wanted, rounds = slow(rows, least)
    monkeypatch.setattr(sorted_events, "BUCKET", 100)
    monkeypatch.setattr(sorted_events, "SLICE", 70)
    log = load(tmp_path, events, k_core=least)
    found = [
        (log.user_ids[user], log.item_ids[item] or None, time)
        for user in range(len(log))
        for item, time in zip(log[user]["item"].tolist(), log[user]["time"].tolist())
    ]
    assert sorted(found, key=str) == sorted(wanted, key=str) and len(wanted) > 0
    users, items = ({row[place] for row in rows} for place in (0, 1))
    assert log.source["left_out"] == {
        "k_core": least,
        "items": len(items - {None}) - len({item for _, item, _ in wanted} - {None}),
        "users": len(users) - len({user for user, _, _ in wanted}),
        "events": len(rows) - len(wanted),
        "rounds": rounds,
    }
    assert rounds > 1 or least == 1
    told = "\n".join(data._notes(log))
    assert f"left out by a {least}-core: " in told and f" events, in {rounds} rounds" in told
    assert load(tmp_path, events.sample(fraction=1, shuffle=True), "mixed", k_core=least).fingerprint == log.fingerprint


def test_each_round_may_take_what_the_last_one_left(tmp_path):
    """A chain: each user shares one item with the next, and only what goes round in a ring stays."""
    pairs = [("a", 1), ("a", 2), ("b", 2), ("b", 3), ("c", 3), ("c", 4)]
    pairs += [("x", 8), ("x", 9), ("y", 8), ("y", 9)]
    events = pl.DataFrame(
        {"user": [u for u, _ in pairs], "item": [i for _, i in pairs], "time": NOW - 50 + np.arange(len(pairs))}
    )
    log = load(tmp_path, events, k_core=2)
    assert log.user_ids == ["x", "y"] and log.item_ids == ["", "8", "9"]
    assert log.source["left_out"] == {"k_core": 2, "items": 4, "users": 3, "events": 6, "rounds": 2}


def test_searches_count_for_users_alone_and_items_that_went_are_shown_no_more(tmp_path):
    events = pl.DataFrame(
        {
            "user": ["ann", "ann", "bob", "bob", "cid", "dan", "dan"],
            "item": ["a", None, "a", "gone", "a", "a", None],
            "query": [None, "hat", None, None, None, None, "hat"],
            "shown": ["a|gone|shown", None, None, None, None, None, None],
            "time": NOW - 9 + np.arange(7),
        }
    )
    log = load(tmp_path, events, k_core=2)
    assert log.user_ids == ["ann", "dan"] and log.item_ids == ["", "a", "shown"]
    assert log[0]["shown_item"].tolist() == [1, 2] and log[0]["item"].tolist() == [1, 0]
    assert log.source["left_out"] == {"k_core": 2, "items": 1, "users": 2, "events": 3, "rounds": 1}


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"k_core": 0}, "--k-core must be 1 or more, not 0"),
        ({"k_core": 2, "min_item_events": 2}, "--k-core leaves out items and users alike: leave out --min-item-events, or --k-core"),
        ({"k_core": 2, "min_user_events": 2}, "--k-core leaves out items and users alike: leave out --min-user-events, or --k-core"),
        ({"min_item_events": 0}, "--min-item-events must be 1 or more, not 0"),
        ({"min_user_events": -1}, "--min-user-events must be 1 or more, not -1"),
        ({"k_core": 9}, "events.csv: of 1 events none with an item is left by a 9-core: give a lower --k-core"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, options, reason):
    with pytest.raises(UserError) as raised:
        load(tmp_path, pl.DataFrame({"user": ["ann"], "item": ["a"], "time": [NOW]}), **options)
    assert str(raised.value).replace(f"{tmp_path}/", "") == reason


def test_not_on_many_machines(tmp_path, capsys):
    pytest.importorskip("apache_beam")
    (tmp_path / "e.csv").write_text(f"user,item,time\nann,a,{NOW}\n")
    command = ["data", "import", str(tmp_path / "e.csv"), "--data-dir", str(tmp_path), "--beam", "DirectRunner"]
    assert main.main([*command, "--k-core", "2"]) == 2
    assert "leave out --beam or --k-core" in capsys.readouterr().err
