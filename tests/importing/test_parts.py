"""A split that the data give: exact ranges from every form, training without what is held out, each error."""

import numpy as np
import polars as pl
import pytest
import small_feed

from data_pipelines.event_log.event_log import EventLog
from data_pipelines.feed import examples, splits
from data_pipelines.files import parts
from data_pipelines.importing import delimited_text, own_log, sorted_events
from data_pipelines.importing.own_log import Options
from synergen_jax.cli import data, main
from synergen_jax.config import DataConfig
from synergen_jax.errors import UserError

NOW = 1_700_000_000
HEAD = "user,item,time,split\n"
GIVEN = DataConfig(split="given", max_history=8)
PART = {"part": "split"}
WORDS = [("train", "Training"), ("valid", "DEV", "val", "Validation"), ("test", "TEST")]


def table(seed=0, users=30):
    """Events of users with some of each part, or none, in the order of times; and codes of the parts by user."""
    rng, rows, of = np.random.default_rng(seed), [], {}
    for user in range(users):
        sizes = rng.integers(0, 6, 3)
        sizes[0] += not sizes.sum()
        codes = of[f"u{user}"] = np.repeat([1, 2, 3], sizes)
        times = NOW - 10**6 + np.sort(rng.choice(10**6, len(codes), replace=False))
        words = [WORDS[code - 1][rng.integers(len(WORDS[code - 1]))] for code in codes]
        rows += [(f"u{user}", f"i{rng.integers(20)}", int(time), word) for time, word in zip(times, words)]
    return pl.DataFrame(rows, ["user", "item", "time", "split"], orient="row"), of


def load(tmp_path, content, name="shop", file="events.csv", columns=PART, **options):
    (tmp_path / file).write_text(content)
    options = Options(text="none", columns=columns, **options)
    return own_log.import_log(tmp_path / file, name=name, options=options, data_dir=tmp_path / "data", now=NOW)


def test_ranges_are_exact_and_the_same_from_every_form(tmp_path, monkeypatch):
    events, of = table()
    log = load(tmp_path, events.write_csv())
    assert log.given_split is not None and log.given_split.dtype == np.int32
    made = splits.split(log, GIVEN)
    for user, name in enumerate(log.user_ids):
        codes = of[name]
        assert len(codes) == log.lengths[user] and made.train_stop[user] == (codes == 1).sum()
        for part, code in (("validation", 2), ("test", 3)):
            assert np.arange(*made.targets(part)[user]).tolist() == np.flatnonzero(codes == code).tolist()
    counts = ", ".join(f"{sum((c == n).sum() for c in of.values())} {parts.NAMES[n - 1]}" for n in (1, 2, 3))
    assert f"parts: {counts}, for data.split given" in list(data._notes(log))
    monkeypatch.setattr(delimited_text, "BLOCK", 700)
    monkeypatch.setattr(sorted_events, "BUCKET", 40)
    monkeypatch.setattr(sorted_events, "SLICE", 50)
    mixed = load(tmp_path, events.sample(fraction=1, shuffle=True, seed=1).write_csv(), "mixed")
    events.with_columns(pl.col("split").cast(pl.Categorical)).write_parquet(tmp_path / "t.parquet")
    typed = own_log.import_log(
        tmp_path / "t.parquet", name="t", options=Options(columns=PART, text="none"), data_dir=tmp_path, now=NOW
    )
    (folder := tmp_path / "folder").mkdir()
    code = pl.col("split").str.to_lowercase().replace_strict(parts.WORDS, return_dtype=pl.Int8)
    for number, file in enumerate(("a.train.csv", "valid.csv", "test-0-of-1.csv"), 1):
        events.filter(code == number).drop("split").sample(fraction=1, shuffle=True).write_csv(folder / file)
    options = Options(part_files=True, text="none")
    files = own_log.import_log(folder, name="files", options=options, data_dir=tmp_path, now=NOW)
    for other in (mixed, typed, files):
        assert other.fingerprint == log.fingerprint and np.array_equal(other.given_split, log.given_split)


def test_training_never_meets_what_is_held_out_and_each_target_is_asked_once(tmp_path):
    """Items of the held-out parts occur nowhere else: one of them in a batch of training would be seen."""
    events, of = table(1)
    codes = np.concatenate([of[user] for user in events["user"].unique(maintain_order=True)])
    events = events.with_columns(item=pl.Series([f"{c}-{item}" for c, item in zip(codes, events["item"])]))
    log = load(tmp_path, events.write_csv())
    made, config = splits.split(log, GIVEN), small_feed.configure(split="given", filter_seen=False, stride=3, batch=8)
    held = {n for n, item in enumerate(log.item_ids) if item[:1] in ("2", "3")}
    trained = {0}
    for batch in small_feed.take(log, config, 20):  # some epochs
        for items in (batch.events.item, batch.target, batch.ranking.item, batch.negatives):
            trained |= set(np.unique(items).tolist())
    assert trained == set(range(len(log.item_ids))) - held
    for part, code in (("validation", 2), ("test", 3)):
        targets = examples.Targets.of(log, made, part, config)
        found = []
        for batch in targets:
            found += batch.target[batch.user >= 0].tolist()
        assert {log.item_ids[item][0] for item in found} == {str(code)} and len(found) == int((codes == code).sum())


def test_ties_are_sorted_by_part_and_else_in_the_order_of_the_file(tmp_path):
    rows = [("t1", "test"), ("a2", "train"), ("v1", "val"), ("a1", "train")]
    log = load(tmp_path, HEAD + "".join(f"ann,{item},{NOW - 9},{part}\n" for item, part in rows))
    assert [log.item_ids[item] for item in log[0]["item"]] == ["a2", "a1", "v1", "t1"]
    assert log.given_split.tolist() == [[2, 3]]


def test_a_log_without_parts_is_as_before_and_one_with_parts_may_be_split_otherwise(tmp_path):
    events, _ = table(2)
    given, plain = load(tmp_path, events.write_csv()), load(tmp_path, events.write_csv(), "plain", columns={})
    assert plain.given_split is None and not (plain.path / "given_split.npy").exists()
    assert plain.fingerprint != given.fingerprint and plain.source["unused_columns"] == ["split"]
    with pytest.raises(
        UserError, match=r"data\.split given: the data of plain give none: import them with --columns part"
    ):
        splits.split(plain, GIVEN)
    last = DataConfig(split="leave-one-out")
    assert np.array_equal(splits.split(given, last).train_stop, splits.split(plain, last).train_stop)
    moved = load(tmp_path, events.with_columns(split=pl.lit("train")).write_csv(), "moved")
    assert moved.fingerprint not in (given.fingerprint, plain.fingerprint)
    with pytest.raises(UserError, match="the given split leaves no validation events"):
        splits.split(moved, GIVEN)
    unnamed = load(tmp_path, events.rename({"split": "part"}).write_csv(), "unnamed", columns={})
    assert unnamed.fingerprint == plain.fingerprint  # a column `part` may be a part of a machine
    (given.path / "given_split.npy").unlink()
    with pytest.raises(UserError, match=r"given_split.npy: missing"):
        EventLog.load(given.path)


def test_parts_after_rare_ones_went_and_in_the_order_of_files(tmp_path):
    rows = [("ann", "a", 1, "train"), ("ann", "rare", 2, "train"), ("ann", "a", 3, "test"), ("bob", "b", 1, "train")]
    rows += [("bob", "b", 2, "test")]
    log = load(tmp_path, HEAD + "".join(f"{u},{i},{NOW - 9 + t},{part}\n" for u, i, t, part in rows), k_core=2)
    assert log.given_split.tolist() == [[1, 1], [1, 1]] and log.lengths.tolist() == [2, 2]
    (folder := tmp_path / "files").mkdir()
    for part, item in (("test", "c"), ("train", "a"), ("valid", "b")):
        (folder / f"{part}.csv").write_text(f"user,item\nann,{item}\n")
    options = Options(part_files=True, order="file", text="none")
    log = own_log.import_log(folder, name="order", options=options, data_dir=tmp_path, now=NOW)
    assert [log.item_ids[item] for item in log[0]["item"]] == ["a", "b", "c"] and log.given_split.tolist() == [[1, 2]]


BAD = "events.csv: 1 of 2 rows cannot be imported: 1 "


@pytest.mark.parametrize(
    "content, options, reason",
    [
        (f"ann,a,{NOW},train\nann,b,{NOW},trian\n", {}, BAD + "with a part that is none of training, validation, test like 'trian' (line 3); mend them, or leave them out with --drop bad-parts"),
        (f"ann,a,{NOW},train\nann,b,{NOW},\n", {}, BAD + "without a part (line 3); mend them, or leave them out with --drop missing"),
        (f"bob,a,{NOW},test\nann,a,{NOW},train\nann,b,{NOW - 5},VAL\n", {}, "events.csv: user 'ann': a validation event of 2023-11-14 22:13:15 UTC (line 4) comes before a training event of 2023-11-14 22:13:20 UTC (line 3); in each user, training must come before validation and that before test, in time: mend the parts, or import without them and set data.split"),
        (f"ann,a,{NOW},train\n", {"part_files": True}, "--part-files and --columns part=... both tell the part of a row: leave one out"),
        (f"ann,a,{NOW},train\n", {"part_files": True, "columns": {}}, "events.csv: a name with none of train, training, valid, validation, val, dev, test, one of which must tell its part: rename it"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, content, options, reason):
    with pytest.raises(UserError) as raised:
        load(tmp_path, HEAD + content, **options)
    assert str(raised.value).replace(f"{tmp_path}/", "") == reason
    assert not list((tmp_path / "data").glob("logs/*"))


def test_names_of_files():
    names = ("ml.train.inter", "valid.csv", "Test.parquet", "val-0.csv", "my_dev_set.jsonl", "train-training.csv")
    assert [parts.of_file(name) for name in names] == [1, 2, 3, 2, 2, 1]
    for name, word in (("trained.csv", "none of"), ("train.test.csv", "several of")):
        with pytest.raises(UserError, match=word):
            parts.of_file(name)


def test_command_line(tmp_path, capsys):
    rows = "".join(f"ann,i{n},{NOW - 9 + n},{part}\n" for n, part in enumerate(["train", "train", "val", "test"]))
    (tmp_path / "e.csv").write_text(HEAD + rows)
    command = ["data", "import", str(tmp_path / "e.csv"), "--columns", "part=split", "--data-dir", str(tmp_path)]
    assert main.main(command) == 0
    assert "parts: 2 training, 1 validation, 1 test, for data.split given" in capsys.readouterr().out
