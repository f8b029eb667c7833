"""What an evaluation shows on demand: cut-offs, results of each target, slices by one's own columns."""

import json
import typing

import numpy as np
import polars as pl
import pytest

from synergen_jax.cli.main import main
from synergen_jax.errors import UserError
from synergen_jax.evaluation import protocol
from synergen_jax.runs import evaluate, own_slices, per_user
from synergen_jax.runs.run import open_run

CONFIG = """
[data]
log = "small"
split = "time"
max_history = 8
batch = 8
rank_events = 2
rank_candidates = 4
[model]
width = 16
depth = 1
heads = 2
[optimiser]
warmup = 2
[mesh]
data = 1
[run]
steps = 2
eval_every = 2
checkpoint_every = 2
[evaluate]
batch = 16
rank_candidates = 5
rerank = 6
bootstrap = 10
scann = false
"""
USERS, ITEMS, START = 30, 24, 1_600_000_000


class Place:
    def __init__(self, root):
        self.root, self.data, self.workdir = root, root / "data", root / "run"
        self.capsys: typing.Any = None  # of the test that runs

    def call(self, *arguments):
        return main([*map(str, arguments), "--data-dir", str(self.data)])

    def evaluate(self, *arguments):
        """Status, the lines printed, the JSON, and the lines of errors."""
        self.capsys.readouterr()
        status = self.call("evaluate", self.workdir, "--json", *arguments)
        said = self.capsys.readouterr()
        lines = said.out.splitlines()
        return status, lines, json.loads(lines[-1]) if not status else {}, said.err.splitlines()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A log in which users go on at the same time, so that the newest tenth holds several targets of one user."""
    place, rng = Place(tmp_path_factory.mktemp("results")), np.random.default_rng(0)
    rows = ["user,item,time,query"]
    for user in range(USERS):
        for n, item in enumerate(rng.permutation(ITEMS)[:12]):
            query = f"thing {item}" if rng.random() < 0.5 else ""
            rows.append(f"u{user},i{item},{START + 1000 * n + user},{query}")
    (place.root / "events.csv").write_text("\n".join(rows) + "\n")
    (place.root / "small.toml").write_text(CONFIG)
    assert place.call("data", "import", place.root / "events.csv", "--name", "small") == 0
    assert place.call("train", place.root / "small.toml", "--workdir", place.workdir) == 0
    return place


@pytest.fixture
def place(made, capsys):
    made.capsys = capsys
    return made


def row(lines, title, system):
    """A system's row of the table under a title, by column."""
    start = lines.index(title) + 1
    head = lines[start].split()
    found = next(line.split() for line in lines[start + 2 :] if line.startswith(system + " "))
    return dict(zip(head, (word.rstrip("*") for word in found)))


# --- cut-offs -------------------------------------------------------------------------------------------------


def test_cut_offs_that_were_asked_for_are_shown_and_those_of_selections_kept(place, tmp_path):
    _, before, plain, _ = place.evaluate("--out", tmp_path / "plain")
    status, lines, found, errors = place.evaluate("--evaluate.k", "1,3,7,30", "--out", tmp_path)
    assert (status, errors) == (0, [])
    assert plain["model"] == {name: found["model"][name] for name in plain["model"]}
    assert plain["leads"] == found["leads"] and plain["slice_leads"] == found["slice_leads"]
    assert "k" not in plain["settings"] and found["settings"]["k"] == [1, 3, 7, 30]
    cut = [f"{metric}@{k}" for metric in ("hr", "ndcg") for k in (1, 3, 7, 30)]
    assert list(row(lines, "retrieval", "model"))[1:11] == [*cut, "mrr", "knows"]
    assert list(row(before, "retrieval", "model"))[1:6] == ["hr@1", "hr@5", "hr@10", "hr@50", "hr@200"]
    page = (tmp_path / "report_test.html").read_text()
    assert not any(">hr@10<" in text or "NDCG@10" in text for text in (page, *lines[:-1]))
    assert "hr@10" not in "".join(lines[:-1]) and "ndcg@7" in "".join(lines) and ">ndcg@7<" in page
    for k in (1, 3, 7):
        assert found["asked_leads"][f"ndcg@{k}"]["all"].keys() == found["leads"]["ndcg@10"].keys()
        lead = found["asked_leads"][f"ndcg@{k}"]["search"]["most_popular"]["mean"]
        both = found["slices"]["search"]
        assert lead == pytest.approx(both["model"][f"ndcg@{k}"] - both["most_popular"][f"ndcg@{k}"])


def test_a_cut_behind_what_is_ordered_anew_and_behind_the_catalogue(place, tmp_path):
    """Beyond the 6 that the head orders it changes no hit; beyond all items each target is one."""
    _, _, found, _ = place.evaluate("--evaluate.k", "6,8,1000000000", "--out", tmp_path)
    for k in (6, 8):
        assert found["model_reranked"][f"hr@{k}"] == pytest.approx(found["model"][f"hr@{k}"])
    for system in ("model", "model_reranked", "most_popular"):
        assert found[system]["hr@1000000000"] == 1.0 > found[system]["hr@8"]
        assert found[system]["ndcg@1000000000"] < 1


def test_cut_offs_out_of_order_are_refused(place):
    status, _, _, errors = place.evaluate("--evaluate.k", "5,1")
    assert status == 2 and len(errors) == 1
    assert "evaluate.k must be cut-offs from 1 up, each larger than the one before, not 5,1" in errors[0]


# --- a row a target -------------------------------------------------------------------------------------------


def test_a_row_a_target_and_their_means_are_what_is_printed(place, tmp_path):
    file = tmp_path / "new folder" / "each.parquet"
    status, lines, found, errors = place.evaluate(
        "--evaluate.k", "1,4", "--per-user", file, "--evaluate.neighbours", "5", "--out", tmp_path
    )
    assert (status, errors) == (0, []) and f"a row a target: {file}" in lines
    each = pl.read_parquet(file)
    assert each.columns[:4] == ["user", "item", "time", "query"] and len(each) == found["targets"]
    assert each["user"].n_unique() < len(each), "a user may have several targets"
    events = pl.read_csv(place.root / "events.csv", schema_overrides={"query": pl.String})
    known = set(events.with_columns(pl.col("query").fill_null("")).iter_rows())
    rows = each.select("user", "item", "time", pl.col("query").fill_null("")).rows()
    assert set(rows) <= known and len(set(rows)) == len(rows)
    assert 0 < each["query"].null_count() == found["slices"]["recommendation"]["targets"]
    printed = row(lines, "retrieval", "model")
    for system in ("model", "model_reranked", "most_popular", "most_recent", "user_knn"):
        for metric in ("hr@1", "hr@4", "ndcg@1", "ndcg@4", "mrr"):
            assert each[f"{metric}/{system}"].mean() == pytest.approx(found[system][metric], abs=1e-9)
    for metric in ("hr@4", "ndcg@4", "mrr"):
        assert f"{each[f'{metric}/model'].mean():.4f}" == printed[metric]
    assert (each["rank/model"] >= 1).all() and "hr@10/model" not in each.columns


def test_what_a_system_says_nothing_of_is_missing_and_slices_are_those_of_the_report(place, tmp_path):
    file = tmp_path / "each.parquet"
    _, _, found, _ = place.evaluate("--per-user", file, "--out", tmp_path)
    each = pl.read_parquet(file)
    assert each["ndcg@10/query_user_knn"].null_count() >= each["query"].null_count() > 0
    assert each["rank/history_without_query"].null_count() == each["query"].null_count()
    assert {"hr@1/model", "hr@200/model", "ndcg@50/model"} <= set(each.columns), "the usual cut-offs"
    for name, measured in found["slices"].items():
        if name != "all":
            part = each.filter(pl.col(f"slice/{name}"))
            assert len(part) == measured["targets"]
            for system in measured.keys() - {"targets"}:
                assert part[f"hr@10/{system}"].mean() == pytest.approx(measured[system]["hr@10"], abs=1e-9)


def test_in_python_too_and_the_same_bytes_however_many_targets_are_written_at_a_time(place, tmp_path, monkeypatch):
    found = evaluate.evaluate(
        place.workdir, data_dir=place.data, out=tmp_path, per_user=tmp_path / "a.parquet", slice_by=[]
    )
    monkeypatch.setattr(per_user, "ROWS", 7)
    evaluate.evaluate(place.workdir, data_dir=place.data, out=tmp_path, per_user=str(tmp_path / "b.parquet"))
    one, other = (pl.read_parquet(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    assert one.equals(other) and len(one) == found["targets"] > 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("each.csv", "a parquet file is written: give a name that ends in .parquet"),
        ("folder.parquet", "is a folder: give the name of a file in it"),
        ("file/each.parquet", "cannot be written"),
    ],
)
def test_files_that_cannot_be_written_are_told_before_the_work(place, tmp_path, monkeypatch, name, message):
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(protocol, "evaluate", lambda *_: pytest.fail("the work was begun"))
    status, _, _, errors = place.evaluate("--per-user", tmp_path / name, "--out", tmp_path)
    assert status == 2 and len(errors) == 1 and message in errors[0]


def test_a_file_is_there_whole_or_not_at_all(place, tmp_path, monkeypatch):
    """What was found is printed all the same."""
    file = tmp_path / "each.parquet"
    file.write_text("of before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(per_user, "_tables", full)
    place.capsys.readouterr()
    assert place.call("evaluate", place.workdir, "--json", "--per-user", file, "--out", tmp_path) == 2
    said = place.capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["targets"] > 0
    assert "No space left on device" in said.err and "give another --per-user FILE" in said.err
    assert file.read_text() == "of before" and not list(tmp_path.glob("*.tmp"))


# --- slices by one's own columns ------------------------------------------------------------------------------


@pytest.fixture
def tables(tmp_path):
    """Items with 24 brands, of which some have none; and half of the users."""
    items = ["item,category,brand", *(f"i{i},{'ab'[i % 2]},b{i}" for i in range(ITEMS - 2)), "i22,,b22", "other,c,b0"]
    (tmp_path / "items.csv").write_text("\n".join(items) + "\n")
    users = [{"user": f"u{user}", "paying": user % 4 == 0} for user in range(0, USERS, 2)]
    pl.DataFrame(users).write_parquet(tmp_path / "users.parquet")
    return tmp_path / "items.csv", tmp_path / "users.parquet"


def test_slices_by_columns_of_items_and_users(place, tables, tmp_path):
    items, users = tables
    file = tmp_path / "each.parquet"
    more = "--slice-by", items, "--slice-by", users, "--per-user", file, "--out", tmp_path / "out"
    status, lines, found, errors = place.evaluate(*more)
    assert (status, errors) == (0, [])
    each, cut = pl.read_parquet(file), found["slices"]
    for column in ("category", "brand", "paying"):
        parts = [measured["targets"] for name, measured in cut.items() if name.startswith(f"{column}=")]
        assert sum(parts) == found["targets"], column
    number = each["item"].str.slice(1).cast(pl.Int64)
    user = each["user"].str.slice(1).cast(pl.Int64)
    by_hand = {
        "category=a": (number % 2 == 0) & (number < 22),
        "category=b": (number % 2 == 1) & (number < 22),
        "category=(none)": number >= 22,
        "paying=true": user % 4 == 0,
        "paying=false": user % 4 == 2,
        "paying=(none)": user % 2 == 1,
    }
    page = (tmp_path / "out" / "report_test.html").read_text()
    for name, mask in by_hand.items():
        part = each.filter(mask)
        assert len(part) == cut[name]["targets"] > 0 and part.equals(each.filter(pl.col(f"slice/{name}")))
        for metric in ("hr@10", "ndcg@10", "hr@50", "mrr"):
            for system in ("model", "most_popular", "model_reranked"):
                column = f"{metric}/{system}"
                assert part[column].mean() == pytest.approx(cut[name][system][metric], abs=1e-9)
        assert any(line.startswith(f"{name} ") and " model " in line for line in lines) and name in page
    brands = {name for name in cut if name.startswith("brand=")}
    assert len(brands) <= 22 and "c" not in {name.partition("=")[2] for name in cut}


def test_a_column_of_many_values_keeps_those_of_the_most_targets():
    names = [f"v{i:02}" for i in range(23)] + [own_slices.NONE]
    column = own_slices.Column("c", "item", ["", *names])
    item = np.concatenate([np.full(40 - i, 1 + i) for i in range(24)])
    found = own_slices.masks([column], {"item": item, "user": np.zeros_like(item)})
    assert list(found) == [*(f"c=v{i:02}" for i in range(20)), "c=(other)", "c=(none)"]
    assert [int(mask.sum()) for mask in found.values()] == [*range(40, 20, -1), 20 + 19 + 18, 17]
    np.testing.assert_array_equal(np.sum(list(found.values()), axis=0), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sku,colour\ni1,red\n", "neither a column item nor a column user"),
        ("item,user,colour\ni1,u1,red\n", "both columns item and user"),
        ("item\ni1\n", "the column 'item' alone: add a column to slice by"),
        ("item,colour\ni1,red\ni1,blue\n", "1 with other values than an earlier row of the same item has like 'i1'"),
        ("item,colour\nsku-1,red\n", "none of its 1 items, such as 'sku-1', is in the log small"),
        ("user,colour\ni1,red\n", "which has users such as 'u0': give the ids of the log's table"),
        ("item,colour\n,red\n", "1 without an item (line 2)"),
        ("item,colour\ni1,red,blue\n", "1 with 3 columns where the header has 2 (line 2)"),
        ("item,colour\n", "there are no rows"),
    ],
)
def test_tables_that_are_refused(place, tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(protocol, "evaluate", lambda *_: pytest.fail("the work was begun"))
    (tmp_path / "table.csv").write_text(text)
    status, _, _, errors = place.evaluate("--slice-by", tmp_path / "table.csv", "--out", tmp_path)
    assert status == 2 and len(errors) == 1 and message in errors[0] and "table.csv" in errors[0]


def test_the_same_column_in_two_tables_and_the_same_row_twice(place, tmp_path):
    for name in ("one.csv", "other.csv"):
        (tmp_path / name).write_text("item,colour\ni1,red\ni1,red\n")
    log = open_run(place.workdir, [], place.data).run.log
    (column,) = own_slices.read([tmp_path / "one.csv"], log)
    assert column.values.count("red") == 1
    with pytest.raises(UserError, match=r"column 'colour' is in .*one\.csv and in .*other\.csv: rename one of them"):
        own_slices.read([tmp_path / "one.csv", tmp_path / "other.csv"], log)
