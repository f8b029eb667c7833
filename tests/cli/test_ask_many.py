"""Many questions by the command line: users to a file, pairs, vectors, similar items; what is refused; killed and gone on."""

import json
import re
import shutil

import numpy as np
import polars as pl
import pytest
from small_shop import Shop

from synergen_jax.errors import UserError
from synergen_jax.runs import answers_file, ask_many, served
from synergen_jax.runs.run import open_run
from synergen_jax.runs.served import Question, Served


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return Shop(tmp_path_factory.mktemp("shop")).trained()


@pytest.fixture(scope="module")
def opened(shop):
    return open_run(shop.workdir, [], shop.data)


@pytest.fixture
def call(shop, capsys):
    """(what --json prints or None, the lines of errors)."""

    def ask(command, *arguments):
        capsys.readouterr()
        status = shop.call(command, shop.workdir, *arguments, "--json")
        said = capsys.readouterr()
        assert status == (2 if said.err.strip() else 0)
        return (None if status else json.loads(said.out.splitlines()[-1])), said.err.splitlines()

    return ask


def one(call, *arguments):
    """The answer to one user: (items, scores)."""
    found = call(*arguments)[0]["recommendations"]
    return [row["item"] for row in found], [row["score"] for row in found]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_many_users_get_what_each_of_them_gets(call, opened, tmp_path, ending, monkeypatch):
    """In the order of the log, whatever the batches and parts."""
    monkeypatch.setattr(answers_file, "PART", 20)
    monkeypatch.setattr(served, "BATCH", 7)
    out = tmp_path / f"answers.{ending}"
    found, errors = call("recommend", "--users", "all", "--out", out, "-k", "3", "--order", "engage")
    assert errors == [] and (found["users"], found["were_there"]) == (48, 0)
    rows = pl.read_parquet(out) if ending == "parquet" else pl.read_ndjson(out)
    assert rows.columns == ["user", "query", "rank", "item", "score", "engage"]
    assert rows["user"].to_list() == [user for user in opened.run.log.user_ids for _ in range(3)]
    assert rows["rank"].to_list() == [1, 2, 3] * 48 and rows["query"].null_count() == 144
    for user in ("u7", "u21", "u40"):
        mine = rows.filter(pl.col("user") == user)
        items, scores = one(call, "recommend", "--user", user, "-k", "3", "--order", "engage")
        assert mine["item"].to_list() == items
        np.testing.assert_allclose(mine["score"].to_numpy(), scores, atol=1e-5)
    assert not list(tmp_path.glob(".*"))


def test_each_user_asks_a_query_of_its_own(call, tmp_path):
    """Known, new and unknown ones, and none; users may come again."""
    (tmp_path / "ask.csv").write_text("user,query\nu3,blue  hat\nu9,hat of blue\nu3,\nu4,xyzzy\n")
    found, _ = call("search", "--users", tmp_path / "ask.csv", "--out", tmp_path / "a.jsonl", "-k", "4")
    assert found["users"] == 4
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["query"] for row in rows[::4]] == ["blue hat", "hat of blue", None, "xyzzy"]
    for at, (user, query) in enumerate((("u3", "blue hat"), ("u9", "hat of blue"), ("u3", ""), ("u4", ""))):
        command = ("search", "--query", query) if query else ("recommend",)
        items, scores = one(call, *command, "--user", user, "-k", "4")
        assert [row["item"] for row in rows[4 * at : 4 * at + 4]] == items
        np.testing.assert_allclose([row["score"] for row in rows[4 * at : 4 * at + 4]], scores, atol=1e-5)


def test_items_that_may_come_back(call, opened, tmp_path):
    log = opened.run.log
    had = {log.item_ids[i] for i in log[log.find_user("u5")]["item"]}
    (tmp_path / "in.csv").write_text("item\n" + "\n".join(f"i{i}" for i in range(12)) + "\n")
    (tmp_path / "out.csv").write_text("item\ni0\ni1\ni2\n")
    lists = ("--items", tmp_path / "in.csv", "--exclude", tmp_path / "out.csv", "-k", "24", "--user", "u5")
    allowed = {f"i{i}" for i in range(3, 12)}
    items, scores = one(call, "recommend", *lists)
    assert set(items) == allowed - had and scores == sorted(scores, reverse=True)
    again, with_seen = one(call, "recommend", *lists, "--keep-seen")
    assert set(again) == allowed
    everything = dict(zip(*one(call, "recommend", "-k", "24", "--user", "u5", "--keep-seen")))
    np.testing.assert_allclose(with_seen, [everything[item] for item in again], atol=1e-5)


def test_a_history_beside_a_user_goes_on_from_it(call, tmp_path):
    (tmp_path / "h.csv").write_text("item,query\ni0,\ni5,red cup\n")
    found, _ = call("recommend", "--user", "u3", "--history", tmp_path / "h.csv")
    before, _ = call("recommend", "--user", "u3")
    assert found["events"] == before["events"] + 2
    assert [row["item"] for row in found["history"][-2:]] == ["i0", "i5"] and found["history"][-1]["query"] == "red cup"
    assert {"i0", "i5"}.isdisjoint(row["item"] for row in found["recommendations"])
    assert found["recommendations"] != before["recommendations"]
    (tmp_path / "early.csv").write_text("item,time\ni0,1500000000\n")
    found, _ = call("recommend", "--user", "u3", "--history", tmp_path / "early.csv")
    assert found["history"][0]["item"] == "i0"
    pl.DataFrame({"item": ["i0", None], "query": [None, "red cup"]}).write_parquet(tmp_path / "h.parquet")
    found, _ = call("search", "--query", "blue hat", "--user", "u3", "--history", tmp_path / "h.parquet")
    assert [(row["item"], row["query"]) for row in found["history"][-2:]] == [("i0", ""), ("", "red cup")]
    assert "rows of queries alone without an action are read as" in " ".join(found["notes"])


def test_pairs(call, tmp_path, monkeypatch):
    """Each pair has the score and probability that the item has in the user's own answer."""
    monkeypatch.setattr(ask_many, "MOST_CANDIDATES", 3)
    lines = [("u3", f"i{i}", "red cup" if i % 2 else "") for i in range(12)] + [("", "i4", ""), ("u8", "i4", "")]
    (tmp_path / "pairs.csv").write_text("user,item,query\n" + "".join(f"{u},{i},{q}\n" for u, i, q in lines))
    found, _ = call("rank", "--pairs", tmp_path / "pairs.csv", "--out", tmp_path / "s.parquet")
    assert found["pairs"] == 14
    rows = pl.read_parquet(tmp_path / "s.parquet")
    assert rows.select("user", "item", "query").rows() == [(u or None, i, q or None) for u, i, q in lines]
    for user, query in (("u3", ""), ("u3", "red cup"), ("u8", ""), ("", "")):
        who = ("--user", user) if user else ()
        command = ("search", "--query", query) if query else ("recommend",)
        answer = call(*command, *who, "-k", "24", "--keep-seen")[0]["recommendations"]
        known = {row["item"]: (row["score"], row["engage"]) for row in answer}
        mine = [row for row in rows.rows() if (row[0] or "", row[2] or "") == (user, query)]
        assert mine
        np.testing.assert_allclose([row[3:] for row in mine], [known[row[1]] for row in mine], atol=1e-5)


def test_vectors_score_as_the_answers_do(call, tmp_path):
    vectors = {}
    for of in ("items", "users", "queries"):
        found, _ = call("vectors", "--of", of, "--out", tmp_path / f"{of}.parquet")
        frame = pl.read_parquet(tmp_path / f"{of}.parquet")
        assert found[of] == len(frame) and found["width"] == frame["vector"].to_numpy().shape[1]
        vectors[of] = dict(zip(frame[frame.columns[0]].to_list(), frame["vector"].to_numpy()))
    assert len(vectors["items"]) == 24 and len(vectors["users"]) == 48 and "red cup" in vectors["queries"]
    for asked, command in (
        (("users", "u3"), ("recommend", "--user", "u3")),
        (("queries", "red cup"), ("search", "--query", "red cup")),
    ):
        items, scores = one(call, *command, "-k", "5")
        mine = [vectors[asked[0]][asked[1]] @ vectors["items"][item] for item in items]
        np.testing.assert_allclose(mine, scores, atol=1e-5)


def test_items_of_which_nothing_is_known_have_no_score(opened, tmp_path, capsys):
    """A score of 0 would put them before all items of negative score."""
    (tmp_path / "new.csv").write_text("item,title\nn1,golden lamp\nn2,xyzzy\n")
    (tmp_path / "pairs.csv").write_text("user,item\nu3,n1\nu3,n2\nu3,i4\n")
    question = Question(new_items=tmp_path / "new.csv")
    ask_many.rank(opened, tmp_path / "pairs.csv", question, tmp_path / "s.parquet")
    assert "1 pairs have no score" in capsys.readouterr().out
    assert pl.read_parquet(tmp_path / "s.parquet")["score"].is_null().to_list() == [False, True, False]
    ask_many.vectors(opened, "items", question, tmp_path / "v.parquet")
    assert "1 items have zeros" in capsys.readouterr().out


def test_similar_items(call, tmp_path):
    found, _ = call("similar", "--item", "i0", "-k", "23")
    call("vectors", "--of", "items", "--out", tmp_path / "v.parquet")
    frame = pl.read_parquet(tmp_path / "v.parquet")
    vectors = dict(zip(frame["item"].to_list(), frame["vector"].to_numpy()))
    unit = {item: vector / np.linalg.norm(vector) for item, vector in vectors.items()}
    wanted = sorted((item for item in unit if item != "i0"), key=lambda item: -(unit[item] @ unit["i0"]))
    assert [row["item"] for row in found["similar"]] == wanted
    np.testing.assert_allclose(
        [row["cosine"] for row in found["similar"]], [unit[i] @ unit["i0"] for i in wanted], atol=1e-5
    )
    assert "i00" in call("similar", "--item", "i00")[1][0]


def test_a_stopped_command_goes_on_where_it_was(opened, tmp_path, monkeypatch):
    """What was answered is not answered again, another question is refused, and the file is that of a command never stopped."""
    monkeypatch.setattr(answers_file, "PART", 10)
    asked = []
    real = Served.in_batches

    def counting(self, asks, places, ask):
        if len(asked) == 3 and not going_on:
            raise KeyboardInterrupt
        asked.append(len(places))
        return real(self, asks, places, ask)

    going_on = False
    monkeypatch.setattr(Served, "in_batches", counting)
    out, question = tmp_path / "a.parquet", Question(3)
    with pytest.raises(KeyboardInterrupt):
        ask_many.recommend(opened, "all", question, out)
    assert not out.exists() and sum(asked) == 30
    with pytest.raises(
        UserError, match=r"\.a\.parquet\.parts holds what an unfinished command wrote that asked otherwise \(k\)"
    ):
        ask_many.recommend(opened, "all", Question(4), out)
    new = Question(3, new_items=tmp_path / "new.csv")
    for title in ("golden lamp", "green teapot"):  # the same question, of another file of that name
        new.new_items.write_text(f"item,title\nn1,{title}\n")
        with pytest.raises((KeyboardInterrupt, UserError)) as stopped:
            asked.clear()
            ask_many.recommend(opened, "all", new, tmp_path / "n.parquet")
    assert "asked otherwise (new_items)" in str(stopped.value)
    shutil.rmtree(tmp_path / ".n.parquet.parts")
    new.new_items.unlink()
    asked[:] = [10] * 3
    going_on = True
    (tmp_path / ".a.parquet.parts" / "part-000003.tmp").write_bytes(b"half")
    assert ask_many.recommend(opened, "all", question, out)["were_there"] == 30
    assert sum(asked) == 48 and list(tmp_path.iterdir()) == [out]
    ask_many.recommend(opened, "all", question, tmp_path / "b.parquet")
    assert pl.read_parquet(out).equals(pl.read_parquet(tmp_path / "b.parquet"))


def test_python_is_answered_as_the_command_is(call, opened):
    asked = Served(opened.run, opened.params, Question(4), ["red cup", ""])
    found = asked.recommend(["u3", None, "u3"], ["", "", "red cup"])
    for answer, arguments in zip(
        found, (("recommend", "--user", "u3"), ("recommend",), ("search", "--user", "u3", "--query", "red cup"))
    ):
        items, scores = one(call, *arguments, "-k", "4")
        assert [row["item"] for row in answer] == items
        np.testing.assert_allclose([row["score"] for row in answer], scores, atol=1e-5)


@pytest.mark.parametrize(
    ("command", "files", "words"),
    [
        (["recommend", "--users", "all"], {}, "--users needs --out FILE"),
        (["recommend", "--users", "all", "--user", "u1", "--out", "a.parquet"], {}, "neither --user nor --history"),
        (["recommend", "--out", "a.parquet"], {}, "--out needs --users"),
        (["recommend", "--users", "all", "--out", "a.csv"], {}, r"a\.csv: a name that ends in \.parquet or \.jsonl"),
        (["recommend", "--users", "all", "--out", "."], {}, r"a name that ends in"),
        (["search", "--users", "all", "--out", "a.jsonl"], {}, "search needs --query, or --users FILE with"),
        (["search", "--user", "u1"], {}, "search needs --query"),
        (["search", "--query", "", "--user", "u1"], {}, "--query is empty"),
        (["search", "--query", " ", "--users", "all", "--out", "a.jsonl"], {}, "--query is empty"),
        (["search", "--users", "w.csv", "--out", "a.jsonl"], {"w.csv": "user\nu1\n"}, r"w\.csv: there is no column 'query', and no --query"),
        (["recommend", "--items", "w.csv", "--exclude", "w.csv"], {"w.csv": "item\ni1\n"}, "--items and --exclude leave 0 items"),
        (["recommend", "--users", "w.csv", "--out", "a.jsonl"], {"w.csv": "user\nu1\nux\nuy\n"}, r"w\.csv, line 3: user 'ux' is not in shop; so are 1 more"),
        (["recommend", "--users", "w.csv", "--out", "a.jsonl"], {"w.csv": "user,x\n,1\n"}, r"w\.csv, line 2: there is no user"),
        (["recommend", "--users", "w.csv", "--out", "a.jsonl"], {"w.csv": "user\n"}, "there are no rows after the header"),
        (["recommend", "--users", "w.csv", "--out", "a.jsonl"], {"w.csv": "users\nu1\n"}, "there is no column 'user'; did you mean 'users'"),
        (["recommend", "--users", "none.csv", "--out", "a.jsonl"], {}, "there is no such file"),
        (["recommend", "--users", "all", "--out", "a.jsonl", "-k", "0"], {}, "k = 0"),
        (["recommend", "--users", "all", "--out", "a.jsonl", "--at", "5"], {}, "--at 5 lies before the last event of user u"),
        (["recommend", "--users", "all", "--out", "a.jsonl", "--order", "x"], {}, "cannot order by 'x'"),
        (["recommend", "--items", "w.csv"], {"w.csv": "item\ni1\nj\nk\n"}, "--items: item 'j' and 1 more items not in shop"),
        (["recommend", "--exclude", "w.csv"], {"w.csv": "item\nj\n"}, "--exclude: item 'j' not in shop"),
        (["search", "--query", "x", "--users", "w.csv", "--out", "a.jsonl"], {"w.csv": "user,query\nu1,hat\n"}, "--query, and a column `query`"),
        (["rank", "--pairs", "w.csv", "--out", "a.jsonl"], {"w.csv": "user,item\nu1,\n"}, r"line 2: there is no item"),
        (["rank", "--pairs", "w.csv", "--out", "a.jsonl"], {"w.csv": "user,item\nu1,i1\nu1,z\n"}, r"line 3: item 'z' is not in shop"),
        (["vectors", "--of", "words", "--out", "a.jsonl"], {}, "--of 'words' is none of items, users, queries"),
    ],
)  # fmt: skip
def test_refused(call, tmp_path, monkeypatch, command, files, words):
    """In one line, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found, errors = call(*command)
    assert found is None and len(errors) == 1 and re.search(words, errors[0]), errors
    assert {path.name for path in tmp_path.iterdir()} == set(files)
