"""JSON lines, and packed text: the same log as from CSV, and one clear error for each broken file."""

import gzip
import json

import numpy as np
import polars as pl
import pyarrow
import pytest
from test_own_log import GOOD, HEAD, NOW, load, random_table, refused, rows, shown

from data_pipelines.importing import delimited_text, event_files, item_table, json_lines, packed_text
from data_pipelines.importing.own_log import Options, import_log
from synergen_jax.cli import data
from synergen_jax.errors import UserError

MEND = "; mend them, or leave them out with --drop "


def line(**fields):
    return json.dumps(fields) + "\n"


def zstd(data):
    return pyarrow.compress(data, "zstd", asbytes=True)


def test_every_form_gives_the_same_log(tmp_path, monkeypatch):
    table = random_table()
    columns = {"user": "who.id", "item": "what", "shown": "page.list"}
    read = lambda path, **settings: import_log(
        path, name="t", options=Options(**settings), data_dir=tmp_path / "data", now=NOW
    )
    table.write_csv(tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_bytes()
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text[:9999]) + gzip.compress(text[9999:]))  # of several members
    (tmp_path / "t.csv.zst").write_bytes(zstd(text))
    table.write_ndjson(tmp_path / "t.jsonl")
    (tmp_path / "t.json.gz").write_bytes(gzip.compress((tmp_path / "t.jsonl").read_bytes()))
    nested = []
    for row in table.rows(named=True):
        told = {key: value for key, value in row.items() if value is not None}  # a key that is not there is missing
        told["who"] = {"id": told.pop("user")}
        told["page"] = {"list": told.pop("shown").split("|")} if "shown" in told else None
        told["what"] = told.pop("item", None)
        nested.append(json.dumps(told, indent=None) + "\r\n")
    (tmp_path / "nested.ndjson").write_text("".join(nested))
    (tmp_path / "parts").mkdir()
    for part in range(3):
        some = "".join(nested[part * 1500 : (part + 1) * 1500])
        (tmp_path / f"parts/{part}.jsonl.gz").write_bytes(gzip.compress(some.encode()))
    expected = read(tmp_path / "t.csv").fingerprint
    for module in (delimited_text, json_lines):
        monkeypatch.setattr(module, "BLOCK", 5000)  # many pieces
    assert read(tmp_path / "t.csv").fingerprint == expected
    for file in ("t.csv.gz", "t.csv.zst", "t.jsonl", "t.json.gz", "nested.ndjson", "parts", "parts/*.gz"):
        settings = {"columns": columns} if file.startswith(("nested", "parts")) else {}
        assert read(tmp_path / file, **settings).fingerprint == expected, file
    assert not list((tmp_path / "data" / "logs").glob(".*"))


def test_values_of_json(tmp_path):
    """Numbers as they are written, whole floats as whole numbers; lists; what looks like JSON and is text; keys with dots."""
    content = (
        line(user=7, item=101.0, time=NOW - 9, query="[2]", shown=["p", 5, 2.0])
        + "\n"
        + line(user="7", item=12345678901234567890123, time=NOW - 8.5, query='{"a": 1}')
        + line(user="ann", item="x", time=NOW, query=None, shown="p|q")
    )
    log = load(tmp_path, content, file="t.jsonl")
    assert [row[:2] for row in rows(log, "7")] == [("101", "[2]"), ("12345678901234567890123", '{"a": 1}')]
    assert shown(log, "7") == [(1, "p", ""), (1, "5", ""), (1, "2", "")] and shown(log) == [(1, "p", ""), (1, "q", "")]
    both = line(u={"id": "ann"}, item="a", time=NOW) + line(**{"u.id": "bob"}, item="b", time=NOW)
    both = b"\xef\xbb\xbf" + both.encode()
    assert load(tmp_path, both, file="t.jsonl", columns={"user": "u.id"}).user_ids == ["ann", "bob"]


def test_broken_lines_of_json_are_found_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "BLOCK", 300)
    good = line(user="ann", item="a", time=NOW).strip()
    kinds = [
        good.encode(),
        b"not json",
        b'{"user": NaN}',
        b"[1]",
        b"null",
        b'{"a":1}{"b":2}',
        b'{"user":"\xff"}',
        b"",
        b"  ",
    ]
    kinds += [b'{"user": "x"', b'"text"', b'{"user": "\\ud800"}']
    choice = np.random.default_rng(0).integers(0, len(kinds), 400)
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n".join([kinds[0], *(kinds[kind] for kind in choice)]))
    pieces = list(event_files.EventFiles(path).pieces(["user", "item"]))
    every = lambda why: np.concatenate([piece.broken.get(why, []) for piece in pieces]).tolist()
    numbers = lambda *which: (np.flatnonzero(np.isin(choice, which)) + 2).tolist()
    assert np.concatenate([piece.rows for piece in pieces]).tolist() == [1, *numbers(0)]
    assert every(packed_text.NOT_UTF8) == numbers(6) and every(json_lines.NOT_JSON) == numbers(1, 2, 3, 4, 5, 9, 10, 11)
    assert set(pl.concat([piece.columns for piece in pieces])["user"]) == {"ann"}
    content = good + "\nnot json\n" + good.replace("ann", "bob")
    why = "t.jsonl: 1 of 3 rows cannot be imported: 1 with what is no JSON object (line 2)" + MEND + "bad-lines"
    refused(tmp_path, content, why, file="t.jsonl")
    assert load(tmp_path, content, file="t.jsonl", drop=["bad-lines"]).source["dropped"] == {"bad-lines": 1}


@pytest.mark.parametrize(
    "file, content, reason",
    [
        ("t.jsonl", "", ": none of its first lines is a JSON object: a file of an object a line is wanted"),
        ("t.json", json.dumps([{"user": 1}], indent=1), ": none of its first lines is a JSON object: a file of an object a line is wanted"),
        ("t.jsonl", line(user="a", thing="b", time=NOW), ": there is no column 'item'; it has user, thing, time; name the right one with --columns item=..."),
        ("t.jsonl", line(user={"id": 1}, item="b", time=NOW), ": there is no column 'user'; did you mean 'user.id'?; it has user.id, item, time; name the right one with --columns user=..."),
        ("t.jsonl", line(user=1, item="b", time=NOW) + line(user={"id": 1}, item="b", time=NOW), ": column 'user' holds objects, where text or numbers are wanted; there are user.id"),
        ("t.jsonl", line(user=["a", "b"], item="b", time=NOW), ": column 'user' is of type List(String), where text or whole numbers are wanted"),
        ("t.jsonl", line(user="a", item="b", time=NOW, shown=[["x", "y"]]), ": column 'shown' holds lists of lists or of objects, where lists of texts or numbers are wanted"),
        ("t.csv.gz", HEAD + GOOD, ": damaged, or no gzip file: zlib inflate failed: incorrect header check"),
        ("t.csv.gz", gzip.compress((HEAD + GOOD * 999).encode(), mtime=0)[:-9], ": damaged, or no gzip file: Truncated compressed stream"),
        ("t.csv.zst", zstd((HEAD + GOOD * 999).encode())[:-3], ": damaged, or no zstd file: Truncated compressed stream"),
        ("t.csv.gz", b"", ": the file is empty, or its first line is, which must name the columns"),
        ("t.csv.bz2", HEAD + GOOD, ": a .csv, .tsv, .jsonl or .parquet file is wanted; text may be packed, .csv.gz or .csv.zst"),
        ("t.parquet.gz", HEAD + GOOD, ": a .csv, .tsv, .jsonl or .parquet file is wanted; text may be packed, .csv.gz or .csv.zst"),
    ],
    ids=range(13),
)  # fmt: skip
def test_files_that_are_refused_whole(tmp_path, file, content, reason):
    refused(tmp_path, content, file + reason, file=file)


def test_a_column_that_comes_late_is_not_passed_over(tmp_path, monkeypatch):
    """A role that the first lines lack would be left out in silence, although some line has it."""
    monkeypatch.setattr(json_lines, "FIRST", 3)
    lines = [line(user="ann", item=f"i{n}", time=NOW - n) for n in range(5)]
    late = "".join(lines) + line(user="ann", item="a", time=NOW - 99, query="hat")
    reason = "t.jsonl, line 6: 'query', which the first 3 lines lack: move a line that has it to the top, or name another column"
    refused(tmp_path, late, reason, file="t.jsonl")
    assert len(rows(load(tmp_path, "".join([lines[0].replace("i0", "query"), *lines[1:]]), file="t.jsonl"))) == 5


def test_tables_of_items_in_every_form(tmp_path):
    content = "item,title,text,kind\na,A,first,x|y\nb,B,,y\n"
    objects = line(item="a", title="A", text="first", kind=["x", "y"]) + line(item="b", title="B", kind="y")
    forms = {
        "items.csv": content.encode(),
        "items.csv.gz": gzip.compress(content.encode()),
        "items.csv.zst": zstd(content.encode()),
        "items.jsonl": objects.encode(),
        "items.json.gz": gzip.compress(objects.encode()),
    }
    found = []
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        found.append(item_table.read(tmp_path / name, {}, ["kind"], {}, []))
    assert all(one == found[0] for one in found) and found[0].tags == {"kind": [("x", "y"), ("y",)]}
    (tmp_path / "items.jsonl").write_text(objects + "nothing\n")
    with pytest.raises(UserError, match=r"1 of 3 rows cannot be imported: 1 with what is no JSON object \(line 3\)"):
        item_table.read(tmp_path / "items.jsonl", {}, [], {}, [])


def test_a_title_that_comes_late_is_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "FIRST", 1)
    (tmp_path / "items.jsonl").write_text(line(item="a") + line(item="b", title="B"))
    with pytest.raises(UserError, match=r"line 2: 'title', which the first 1 lines lack"):
        item_table.read(tmp_path / "items.jsonl", {}, [], {}, [])


# --- rows of other shapes -------------------------------------------------------------------------------------


def test_a_row_a_user_with_lists_side_by_side(tmp_path):
    plain = "user,item,time,action\n" + "".join(
        f"{user},{item},{NOW - n},{action}\n"
        for user, item, n, action in (("ann", "a", 9, "view"), ("ann", "b", 8, "buy"), ("bob", "a", 7, "view"))
    )
    expected = load(tmp_path, plain).fingerprint
    text = f"user,item,time,action\nann,a b ,{NOW - 9}  {NOW - 8},view buy\nbob,a,{NOW - 7},view\ncid,,,\n"
    for separator, content in ((" ", text), ("|", text.replace("b ,", "b,").replace("  ", " ").replace(" ", "|"))):
        log = load(tmp_path, content, lists=separator)
        assert log.fingerprint == expected and log.source["lists"] and log.source["rows"] == 3
    objects = line(user="ann", item=["a", "b"], time=[NOW - 9, NOW - 8], action=["view", "buy"]) + line(
        user="bob", item=["a"], time=[NOW - 7], action="view"
    )
    assert (
        load(tmp_path, objects + line(user="cid", item=[], time=[]), file="t.jsonl", lists="").fingerprint == expected
    )
    columns = {"user": ["ann", "bob"], "item": [["a", "b"], ["a"]], "time": [[NOW - 9, NOW - 8], [NOW - 7]]}
    table = pl.DataFrame(columns | {"action": [["view", "buy"], ["view"]]})
    table.write_parquet(tmp_path / "t.parquet")
    log = import_log(tmp_path / "t.parquet", name="t", options=Options(lists=""), data_dir=tmp_path, now=NOW)
    assert log.fingerprint == expected
    assert not load(tmp_path, plain).source["lists"]


def test_lists_that_do_not_fit(tmp_path):
    text = f"user,item,time\nann,a|b,{NOW - 9}\nbob,a,{NOW - 7}\ncid,,{NOW}\n"
    why = (
        "events.csv: 2 of 3 rows cannot be imported: 2 with lists of different lengths (line 2, line 4)"
        + MEND
        + "bad-lines"
    )
    refused(tmp_path, text, "--lists needs what sets the entries of a list apart, as in --lists '|'", lists="")
    refused(tmp_path, text, why, lists="|")
    both = text.replace("time", "shown")
    why = "--lists takes no shown lists, which would be lists of lists: leave out or rename the column"
    refused(tmp_path, both, why, lists="|", order="file")
    assert rows(load(tmp_path, text, lists="|", drop=["bad-lines"]), "bob") == [("a", "", "interact", NOW - 7)]


def test_the_order_of_the_file_in_place_of_times(tmp_path):
    text = "user,item,time\nbob,a,5\nann,b,\nbob,a,7\nann,a,x\n"
    for wrong in ({"columns": {"time": "time"}}, {"time_unit": "seconds"}):
        reason = "--order file takes no times: give neither --columns time=... nor --time-unit, or leave it out"
        refused(tmp_path, text, reason, order="file", **wrong)
    refused(tmp_path, text, "--order 'row' is none of time, file", order="row")
    log = load(tmp_path, text, order="file")
    assert [row[0] for row in rows(log)] == ["b", "a"] and [row[0] for row in rows(log, "bob")] == ["a", "a"]
    assert np.diff(log[log.find_user("bob")]["time"]).tolist() == [2]
    assert log.query_note == "times are made up, and tell the order of the file alone"
    notes = list(data._notes(log))
    assert log.query_note in notes and "columns: user, item; not used: time" in notes
    lists = "user,item\nann,a b c\nbob,c\n"
    log = load(tmp_path, lists, order="file", lists=" ")
    assert [row[0] for row in rows(log)] == ["a", "b", "c"] and np.diff(log[log.find_user("ann")]["time"]).tolist() == [
        1,
        1,
    ]
