"""The import by Apache Beam against the plain one: the same fingerprint, records, counts and messages."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from data_pipelines.event_log import event_log
from data_pipelines.importing import beam_log, own_log
from data_pipelines.importing.own_log import Options
from synergen_jax.cli import main
from synergen_jax.errors import UserError

LocalFileSystem = pytest.importorskip("apache_beam.io.localfilesystem").LocalFileSystem
ROOT = pathlib.Path(__file__).resolve().parents[2]
NOW = 1_700_000_000
HEAD = "user,item,time\n"


def both(tmp_path, events, items=None, **options):
    """The log of the plain path and that of the Beam path."""
    settings = {"items": items, "options": Options(**options), "data_dir": tmp_path / "data", "now": NOW}
    return (
        own_log.import_log(events, name="plain", **settings),
        beam_log.import_log(events, name="beam", runner="DirectRunner", **settings),
    )


def assert_same(plain, made):
    """Both logs are one and the same, and Beam's is whole."""
    assert made.fingerprint == plain.fingerprint and made.user_ids == plain.user_ids
    for index in range(len(plain)):
        one, other = plain[index], made[index]
        assert one["user_id"] == other["user_id"]
        for name, dtype in event_log.DTYPES.items():
            assert one[name].dtype == other[name].dtype == dtype and np.array_equal(one[name], other[name]), name
    for name in ("item_ids", "item_titles", "item_texts", "queries", "actions", "labels", "item_columns", "source"):
        assert getattr(made, name) == getattr(plain, name), name
    assert made.summary() == plain.summary() and made.lengths.tolist() == plain.lengths.tolist()
    for name, matrix in plain.item_matrices.items():
        assert np.array_equal(made.item_matrices[name], matrix)
    logs = made.path.parent
    assert sorted(path.name for path in logs.iterdir()) == ["beam", "plain"]  # nothing intermediate is left


def table(seed, count=3000, users=40, names="u{}"):
    """Events with ties, repeats, bare searches, interrupted requests, inherited queries, lists and missing words."""
    rng = np.random.default_rng(seed)
    bare = rng.random(count) < 0.1
    pick = lambda form, values, there: [form.format(v) if t else "NULL" for v, t in zip(values.tolist(), there)]
    frame = pl.DataFrame(
        {
            "visitor": pick(names, rng.zipf(1.5, count) % users, np.ones(count, bool)),
            "item": pick(" item {}", rng.integers(0, 80, count), ~bare),
            "time": NOW - rng.integers(0, 3000, count),
            "action": np.array(["view", "cart", "buy"])[rng.integers(0, 3, count)],
            "query": pick('a  "big", {}', rng.integers(0, 30, count), bare | (rng.random(count) < 0.3)),
            "request": pick("r{}", rng.integers(0, 8, count), rng.random(count) < 0.7),
            "shown": [
                "|".join(f"item {i}" for i in rng.integers(0, 99, 5)) if chance < 0.2 else "NULL"
                for chance in rng.random(count)
            ],
        }
    )
    return pl.concat([frame, frame.head(30)])


def test_a_shop_in_many_files_buckets_and_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(beam_log, "BUCKET", 400)
    make = [sys.executable, ROOT / "experiments/make_shop_log.py", "--rows", "3000", "--items", "200"]
    subprocess.run([*make, "--out", tmp_path / "shop"], check=True, capture_output=True)
    events = pl.read_parquet(tmp_path / "shop/events.parquet")
    for number, part in enumerate(events.iter_slices(1100)):
        part.write_parquet(tmp_path / f"shop/part-{number}.parquet")
    plain, made = both(
        *(tmp_path, str(tmp_path / "shop/part-*.parquet"), tmp_path / "shop/items.csv"),
        **{"tags": ["category", "brand"], "labels": {"bought": ["purchase"]}},
    )
    assert_same(plain, made)
    assert len(list(made.path.rglob("*.array_record*"))) > 3
    assert {"category", "brand", "text"} == set(made.item_matrices) and len(made.actions) == 5
    shown = [made[index]["shown_item"] for index in range(len(made))]
    assert sum(map(len, shown)) > 1000 and len(made.queries) > 10


@pytest.mark.slow
@pytest.mark.parametrize("names", ["u{}", "{}"])  # ordered as text, and by number
def test_ties_repeats_and_rare_items_and_users(tmp_path, monkeypatch, names):
    monkeypatch.setattr(beam_log, "BUCKET", 300)
    (tmp_path / "events").mkdir()
    for number, part in enumerate(table(1, names=names).iter_slices(700)):
        part.write_csv(tmp_path / f"events/{number}.csv")
    options = {"columns": {"user": "visitor"}, "drop": ["duplicates"]}
    plain, made = both(tmp_path, tmp_path / "events", **options)
    assert_same(plain, made)
    told = ("out_of_order", "split_requests", "inherited_queries", "missing_words")
    assert all(made.source[name] > 10 for name in told) and made.source["dropped"]["duplicates"] > 10
    plain, made = both(tmp_path, tmp_path / "events", **options, min_item_events=40, min_user_events=20)
    assert_same(plain, made)
    assert min(made.source["left_out"].values()) > 0


@pytest.mark.parametrize(
    "contents, reason",
    [
        ([f"ann,a,{NOW}\nann,b,\n", f",b,{NOW}\nann\n"], "without a user"),
        ([f"ann,a,{NOW}\n", f"ann,a,{NOW}\nann,b,soon\nann,b,0\n"], "repeat"),
        ([f"ann,a,{NOW}\n", f"ann,a,{NOW}000\n"], "times of several kinds"),
        (["", ""], "no rows after the header"),
        ([f"ann,,{NOW}\n"], "neither an item nor a query"),
    ],
)
def test_bad_tables_are_refused_in_the_same_words(tmp_path, contents, reason):
    (tmp_path / "events").mkdir()
    for number, content in enumerate(contents):
        (tmp_path / f"events/{number}.csv").write_text(HEAD + content)
    messages = []
    for path, extra in ((own_log, {}), (beam_log, {"runner": "DirectRunner"})):
        with pytest.raises(UserError, match=reason) as raised:
            path.import_log(tmp_path / "events", name="x", data_dir=tmp_path / "data", now=NOW, **extra)
        messages.append(str(raised.value))
        assert not list((tmp_path / "data/logs").iterdir())
    assert messages[0] == messages[1]


def test_a_column_that_no_worker_can_read(tmp_path):
    pl.DataFrame({"user": ["ann"], "item": [0.5], "time": [NOW]}).write_parquet(tmp_path / "events.parquet")
    with pytest.raises(UserError, match="column 'item' is of type Float64"):
        beam_log.import_log(
            tmp_path / "events.parquet", name="x", runner="DirectRunner", data_dir=tmp_path / "data", now=NOW
        )


class Store(LocalFileSystem):
    """A store that only Beam can read: `store://` stands for a folder."""

    root = ""

    @classmethod
    def scheme(cls):
        return "store"

    def _under(self, path):
        return str(path).replace("store://", f"{self.root}/")

    def join(self, base, *paths):
        return "/".join((base.rstrip("/"), *paths))

    def split(self, path):
        head, _, tail = path.rpartition("/")
        return head, tail

    def has_dirs(self):
        return False

    def _list(self, prefix):
        for file in sorted(pathlib.Path(self.root).rglob("*")):
            url = f"store://{file.relative_to(self.root)}"
            if file.is_file() and url.startswith(prefix):
                yield self.metadata(url)

    def mkdirs(self, path):
        super().mkdirs(self._under(path))

    def exists(self, path):
        return pathlib.Path(self._under(path)).is_file()  # a store has no folders

    def metadata(self, path):
        found = super().metadata(self._under(path))
        found.path = path
        return found

    def _path_open(self, path, *rest, **settings):
        return super()._path_open(self._under(path), *rest, **settings)

    def rename(self, sources, targets):
        super().rename([*map(self._under, sources)], [*map(self._under, targets)])

    def delete(self, paths):
        LocalFileSystem(None).delete([self._under(path).rstrip("/") for path in paths])


def test_words_of_queries_alone_and_items_of_which_nothing_is_known(tmp_path):
    (tmp_path / "events.csv").write_text(f"user,item,time,query\nann,a,{NOW},red hat\n")
    (tmp_path / "items.csv").write_text("item\na\nb\n")
    plain, made = both(tmp_path, tmp_path / "events.csv", tmp_path / "items.csv")
    assert_same(plain, made)
    assert made.unknown_items == plain.unknown_items == (1, ["b"])
    assert made.query_matrices["text"].any(axis=1).tolist() == [False, True] and "text" not in made.item_matrices


def test_order_and_repeats_within_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(beam_log, "BUCKET", 5)
    rows = [f"u{n % 4},i{n % 3},{NOW - 5}{n * 37 % 1000:03}\n" for n in range(60)]
    (tmp_path / "events").mkdir()
    for number in range(3):
        (tmp_path / f"events/{number}.csv").write_text(HEAD + "".join(rows[number::3]) + rows[number])
    plain, made = both(tmp_path, tmp_path / "events", drop=["duplicates"])
    assert_same(plain, made)
    assert made.source["dropped"] == {"duplicates": 3} and made.source["out_of_order"] > 10
    order = sorted(range(0, 60, 4), key=lambda n: n * 37 % 1000)
    assert [made.item_ids[item] for item in made[0]["item"]] == [f"i{n % 3}" for n in order]


@pytest.mark.slow
def test_events_and_intermediate_files_in_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "root", str(tmp_path / "remote"))
    monkeypatch.setattr(beam_log, "BUCKET", 300)
    (tmp_path / "remote/events").mkdir(parents=True)
    for number, part in enumerate(table(2).rename({"visitor": "user"}).iter_slices(1000)):
        part.write_parquet(tmp_path / f"remote/events/{number}.parquet")
    settings = {"options": Options(drop=["duplicates"]), "data_dir": tmp_path / "data", "now": NOW}
    plain = own_log.import_log(tmp_path / "remote/events", name="plain", **settings)
    for number, pattern in enumerate(("store://events", "store://events/*.parquet")):
        folder = {"runner": "DirectRunner", "folder": f"store://{number}"}
        made = beam_log.import_log(pattern, name="beam", **settings, **folder)
        assert made.source.pop("origin") == pattern
        plain.source.pop("origin", None)
        assert_same(plain, made)
        assert not list((tmp_path / f"remote/{number}").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "runner, options",
    [
        ("DirectRunner", "--direct_running_mode=multi_processing --direct_num_workers=2"),
        ("PortableRunner", "--job_endpoint=embed --environment_type=LOOPBACK"),
    ],
)
def test_workers_in_other_processes_and_behind_a_job_server(tmp_path, monkeypatch, runner, options):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(beam_log, "BUCKET", 300)
    table(3, count=1000).rename({"visitor": "user"}).write_parquet(tmp_path / "events.parquet")
    settings = {"options": Options(drop=["duplicates"]), "data_dir": tmp_path / "data", "now": NOW}
    plain = own_log.import_log(tmp_path / "events.parquet", name="plain", **settings)
    settings |= {"runner": runner, "beam_options": options}
    assert_same(plain, beam_log.import_log(tmp_path / "events.parquet", name="beam", **settings))


def test_command_line(tmp_path, capsys):
    (tmp_path / "shop.csv").write_text(f"{HEAD}ann,a,{NOW}\nbob,b,{NOW}\n")
    command = ["data", "import", str(tmp_path / "shop.csv"), "--data-dir", str(tmp_path / "data"), "--json"]
    assert main.main([*command, "--name", "plain"]) == 0
    plain = json.loads(capsys.readouterr().out.splitlines()[-1])
    options = ["--beam", "DirectRunner", "--beam-options=--direct_num_workers=1", "--beam-folder", str(tmp_path / "f")]
    assert main.main([*command, *options]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["log"] == "shop" and made["fingerprint"] == plain["fingerprint"]
    assert main.main([*command, "--beam", "NoSuchRunner"]) == 2
    assert "--beam NoSuchRunner: " in capsys.readouterr().err
