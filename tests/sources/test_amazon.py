"""Amazon: made-up files of each form to a log whose purchases are a recommendation and a search at once."""

import gzip
import json
import re

import numpy as np
import pytest

from data_pipelines.feed import examples, splits
from data_pipelines.sources import amazon, amazon_reviews, prepare
from synergen_jax.config import Config, DataConfig
from synergen_jax.errors import UserError

NOTE = "queries are semi-synthetic: nobody typed them"


@pytest.mark.parametrize(
    "path, query",
    [  # of Amazon Beauty, as the line of work has them
        ("Beauty", "beauty"),
        ("Beauty > Bath & Body > Bath > Bath Bombs", "beauty body bath bomb"),
        ("Beauty > Tools & Accessories > Hair Coloring Tools", "beauty accessory hair coloring tool"),
        ("Beauty > Fragrance > Women's > Eau de Parfum", "beauty fragrance women eau de parfum"),
        ("Beauty > Makeup > Lips > Lip Glosses", "beauty makeup lip gloss"),
        ("Beauty > Hair Care > Shampoo Plus Conditioner", "beauty hair care shampoo plu conditioner"),
        ("Beauty > Hair Care > Styling Products > Mousses & Foams", "beauty hair care styling product mouss foam"),
        ("Beauty > Hair Care > Styling Tools > Hot-Air Brushes", "beauty hair care styling tool hot air brush"),
        ("Toys > Of the & S", "toy"),
        ("", ""),
    ],
)
def test_queries_of_category_paths(path, query):
    assert amazon.category_query(path.split(" > ")) == query


def test_the_core_is_a_fixed_point():
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 60, 400), rng.zipf(1.5, 400) % 50
    keep = amazon.core(user, item, 3)
    for of in (user, item):
        counts = np.bincount(of[keep])
        assert 0 < keep.sum() < len(keep) and counts[counts > 0].min() >= 3
    rows = list(zip(user.tolist(), item.tolist()))  # the slow way: one row after the other
    while rare := [r for r in rows if sum(r[0] == s[0] for s in rows) < 3 or sum(r[1] == s[1] for s in rows) < 3]:
        rows.remove(rare[0])
    assert sorted(rows) == sorted(zip(user[keep].tolist(), item[keep].tolist()))
    assert not amazon.core(user[:5], np.arange(5), 2).any() and not amazon.core(user[:0], item[:0], 2).any()


# --- two tables of CSV ------------------------------------------------------------------------------------------

EVENTS = "user_id,item_id,time\nu,b,200\nu,a,100\nu,c,200\nv,c,300\n"
ITEMS = """item_id,title,brand,categories,query
a,"Soap, ""soft""
and white",Dove,Beauty > Soaps,beauty soap
b,Comb,,Beauty > Combs,beauty comb
c,,Ac&#39;me,Beauty > Soaps,beauty soap
d,Never bought,,Beauty > Hats,beauty hat
"""


def tables(folder, events=EVENTS, items=ITEMS, packed=True):
    folder.mkdir(exist_ok=True)
    for name, text in (("interactions.csv", events), ("items.csv", items)):
        data = text if isinstance(text, bytes) else text.encode()
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return folder


def beauty(tmp_path, **files):
    return prepare.prepare(
        "amazon-beauty-search", source=tables(tmp_path / "beauty", **files), data_dir=tmp_path / "data"
    )


def test_a_purchase_is_one_request_of_two_events(tmp_path):
    log = beauty(tmp_path)
    assert log.name == "amazon-beauty-search" and log.user_ids == ["u", "v"]
    assert log.item_ids == ["", "a", "b", "c", "d"] and log.item_titles[1:4] == ['Soap, "soft" and white', "Comb", "c"]
    assert log.item_texts == ["", 'Soap, "soft" and white Dove', "Comb", "Ac'me", "Never bought"], "and no category"
    assert log.queries == ["", "beauty comb", "beauty soap"] and log.actions == ["", "purchase"]
    assert log.labels == {"engage": (1,)}
    u = log[0]
    assert u["item"].tolist() == [1, 1, 2, 2, 3, 3] and u["query"].tolist() == [0, 2, 0, 1, 0, 2]
    assert u["request"].tolist() == [1, 1, 2, 2, 3, 3] and u["time"].tolist() == [100, 100, 200, 200, 200, 200]
    assert log.query_note.startswith(NOTE)
    assert log.source["counts"] == {"purchases": 4, "items without a title": 1, "items without a query": 0}
    assert log.item_matrices["text"].any(axis=1).tolist() == [False, True, True, True, True]
    assert log.query_matrices["text"].any(axis=1).tolist() == [False, True, True]
    plain = tables(tmp_path / "plain", packed=False)
    again = prepare.prepare("amazon-beauty-search", source=plain, data_dir=tmp_path / "other")
    assert again.fingerprint == log.fingerprint


def test_neither_reader_of_a_purchase_sees_the_other(tmp_path):
    log = beauty(tmp_path)
    config = Config(data=DataConfig(max_history=8, rank_candidates=2))
    split = splits.Split(*(np.array(x, np.int32) for x in ([6, 2], [1, 1], [[6, 6], [2, 2]], [[6, 6], [2, 2]])))
    made = examples.training(log, split, config)
    window = made.make(0, made.rows[0])
    assert window["target"].tolist() == [0, 1, 2, 2, 3, 3, 0, 0], "of the first purchase the search alone can be told"
    assert window["retrieval"].visible[:6].tolist() == [0, 0, 2, 2, 4, 4]
    assert window["retrieval"].query[:6].tolist() == [0, 2, 0, 1, 0, 2]


@pytest.mark.parametrize(
    "files, reason",
    [
        (
            {"events": "user_id,item_id\nu,a\n"},
            r"interactions.csv.gz:1: there is no column time; it has user_id, item_id",
        ),
        ({"events": ""}, "interactions.csv.gz: the file is empty"),
        ({"events": "user_id,item_id,time\n"}, "interactions.csv.gz: there are no rows after the header"),
        ({"events": EVENTS + "v,x,300\n"}, r"interactions.csv.gz:6: item_id 'x' is not in .*items.csv.gz: take both"),
        ({"events": EVENTS + "v,a\n"}, "interactions.csv.gz:6: 2 columns, not 3"),
        ({"events": EVENTS + ",a,300\n"}, "interactions.csv.gz:6: user_id is empty"),
        ({"events": EVENTS + "v,a,soon\n"}, "interactions.csv.gz:6: time 'soon' is not a number"),
        ({"events": EVENTS + "v,a,1405296000000\n"}, "interactions.csv.gz:6: time '1405296000000' lies after 2100"),
        ({"items": ITEMS + "a,,,,\n"}, "items.csv.gz:7: item_id 'a' comes a second time; line 2 has it"),
        ({"items": ITEMS + 'e,"x,,,\n'}, "items.csv.gz:7: not CSV"),
        ({"items": ITEMS.replace("brand", "maker")}, "items.csv.gz:1: there is no column brand"),
        ({"items": b"item_id,title\xff"}, "items.csv.gz:1: byte 0xff is not UTF-8"),
    ],
)
def test_bad_tables_are_refused(tmp_path, files, reason):
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path / 'beauty'))}/{reason}"):
        beauty(tmp_path, **files)
    assert not (tmp_path / "data" / "logs").exists()


def test_damaged_and_missing_tables(tmp_path):
    with pytest.raises(UserError, match="amazon-beauty-search is not fetched: give --source FOLDER"):
        prepare.prepare("amazon-beauty-search", data_dir=tmp_path)
    folder = tables(tmp_path / "cut")
    (folder / "items.csv.gz").write_bytes((folder / "items.csv.gz").read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut/items.csv.gz: not a whole .gz file \(.*\): fetch it again"):
        prepare.prepare("amazon-beauty-search", source=folder, data_dir=tmp_path)
    (folder / "items.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"cut/items.csv.gz: not a whole .gz file"):
        prepare.prepare("amazon-beauty-search", source=folder, data_dir=tmp_path)
    (folder / "items.csv.gz").unlink()
    with pytest.raises(UserError, match=r"cut: holds neither interactions.csv.gz with items.csv.gz nor"):
        prepare.prepare("amazon-beauty-search", source=folder, data_dir=tmp_path)
    with pytest.raises(UserError, match="no generated queries, so no share or seed"):
        prepare.prepare("amazon-beauty-search", source=tables(tmp_path / "cut"), data_dir=tmp_path, seed=1)


# --- files as published -----------------------------------------------------------------------------------------

DAY = 86_400
# What the files of all three years hold: users u0 .. u5 review items i0 .. i5, each once and in order, item by item,
# as the published files are sorted; w has too few; i6 is bought by w alone.
PAIRS = [(f"u{u}", f"i{i}", 1_300_000_000 + DAY * (10 * u + i)) for i in range(6) for u in range(6)]
PAIRS += [("w", "i6", 1_300_000_000)]
PRODUCTS = {
    "i0": ("Salt &amp; Pepper <b>Shampoo</b>", "L&#39;Or", [["Toys"], ["Beauty", "Hair Care", "Shampoos"]]),
    "i1": ("Comb", None, [["Beauty", "Combs &amp; Brushes"], ["Toys", "Dolls"]]),
    "i2": ("Soap", "Dove", [["Beauty"]]),
    "i3": (None, "Acme", [["Beauty", "Soaps"]]),
    "i4": ("Bare", "", []),
    "i6": ("Gone", "Acme", [["Beauty", "Hats"]]),
}  # and nothing of i5


def product(year, item):
    title, brand, paths = PRODUCTS[item]
    if year == 2014:
        return {"asin": item, "title": title, "brand": brand, "categories": paths}
    path = next((path for path in paths if len(path) > 1), paths[0] if paths else [])
    if year == 2018:
        return {"category": path, "brand": brand, "title": title, "asin": item, "price": "$1"}
    return {"parent_asin": item, "title": title, "store": brand, "categories": path, "price": None}


def review(year, user, item, time):
    if year == 2023:
        return {
            "rating": 5.0,
            "asin": f"{item}-red",
            "parent_asin": item,
            "user_id": user,
            "timestamp": 1000 * time + 7,
        }
    return {"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": time}


def published(folder, year=2014, packed=True, pairs=None, more_reviews=(), more_products=()):
    """A folder of files as they are published; what is more are lines as they are."""
    folder.mkdir(exist_ok=True)
    names = {
        2014: ("reviews_Beauty_5.json", "meta_Beauty.json"),
        2018: ("Beauty_5.json", "meta_Beauty.json"),
        2023: ("Beauty.jsonl", "meta_Beauty.jsonl"),
    }[year]
    reviews = [json.dumps(review(year, *pair)) for pair in (PAIRS if pairs is None else pairs)]
    products = [repr(product(year, i)) if year == 2014 else json.dumps(product(year, i)) for i in PRODUCTS]
    for name, lines in zip(names, ([*reviews, *more_reviews], [*products, *more_products])):
        data = "".join(f"{line}\n" for line in lines).encode()
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return folder


def reviews_of(tmp_path, source, **settings):
    return prepare.prepare("amazon-reviews", source=source, data_dir=tmp_path / "data", **settings)


def test_the_files_of_three_years_give_one_log(tmp_path):
    log = reviews_of(tmp_path, published(tmp_path / "a"))
    assert log.name == "amazon-reviews-Beauty" and log.user_ids == [f"u{i}" for i in range(6)]
    assert log.item_ids == ["", "i0", "i1", "i2", "i3", "i4", "i5"], "w is gone, and i6 with it"
    assert log.item_titles[1:] == ["Salt & Pepper Shampoo", "Comb", "Soap", "i3", "Bare", "i5"]
    assert log.item_texts[1:] == ["Salt & Pepper Shampoo L'Or", "Comb", "Soap Dove", "Acme", "Bare", ""]
    assert log.queries == ["", "beauty", "beauty comb brush", "beauty hair care shampoo", "beauty soap"]
    u = log[2]
    assert u["item"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 6], "without a path there is no search"
    assert [log.queries[q] for q in u["query"][1:8:2]] == [log.queries[i] for i in (3, 2, 1, 4)]
    assert u["request"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 6]
    assert u["time"].tolist()[::2] == [1_300_000_000 + DAY * (20 + i) for i in (0, 1, 2, 3, 4)]
    assert log.query_note.startswith(NOTE) and log.source["settings"]["core"] == 5
    assert log.source["counts"] == {
        "reviews": 37,
        "repeats": 0,
        "of rare users or items": 1,
        "purchases": 36,
        "items without a title": 2,
        "items without a query": 2,
        "items without metadata": 1,
    }
    made = (log.path / "log.json").stat().st_mtime_ns
    assert reviews_of(tmp_path, tmp_path / "a" / "reviews_Beauty_5.json.gz").fingerprint == log.fingerprint
    assert (log.path / "log.json").stat().st_mtime_ns == made, "the same files by another way"
    for number, (year, packed) in enumerate([(2014, False), (2018, True), (2018, False), (2023, True), (2023, False)]):
        other = reviews_of(tmp_path, published(tmp_path / f"b{number}", year, packed), force=True)
        assert other.fingerprint == log.fingerprint and other.name == log.name, (year, packed)


def test_repeats_and_second_lines_of_a_product(tmp_path):
    plain = reviews_of(tmp_path, published(tmp_path / "a"))
    again = [
        json.dumps(review(2014, "u0", "i0", 1_300_000_000)),
        json.dumps(review(2014, "u0", "i0", 1_300_000_000 + 90 * DAY)),  # not another purchase
        "",
    ]
    second = [repr({"asin": "i2", "title": "Another", "categories": [["Toys", "Dolls"]]})]
    log = reviews_of(tmp_path, published(tmp_path / "a", more_reviews=again, more_products=second))
    assert log.fingerprint == plain.fingerprint and log.source["counts"]["repeats"] == 2
    # u has four reviews of i1, which are one: too few for the core.
    pairs = [pair for pair in PAIRS if pair[0] != "u5"] + [("u5", "i1", 5 + i) for i in range(6)]
    log = reviews_of(tmp_path, published(tmp_path / "a", pairs=pairs))
    assert log.user_ids == [f"u{i}" for i in range(5)] and log.source["counts"]["repeats"] == 5


@pytest.mark.parametrize("year", [2014, 2023])
@pytest.mark.parametrize(
    "file, line, reason",
    [
        ("reviews", '{"reviewerID": "u0", "asi', "neither JSON nor a Python dict .*: mend or delete the line"),
        ("reviews", "[1, 2]", r"an object is wanted, not '\[1, 2\]'"),
        ("reviews", "\xff", "neither JSON nor a Python dict"),
        (
            "reviews",
            '{"asin": "i0", "unixReviewTime": 5}',
            "there is neither reviewerID nor user_id; it has asin, unix",
        ),
        ("reviews", '{"user_id": "u", "timestamp": 5000}', "there is neither parent_asin nor asin; it has user_id"),
        ("reviews", '{"user_id": "u", "asin": 7, "timestamp": 5000}', "asin must be text and not empty, not 7"),
        ("reviews", '{"user_id": " ", "asin": "i0", "timestamp": 5000}', "user_id must be text and not empty, not ' '"),
        ("reviews", '{"user_id": "u", "asin": "i0"}', "there is neither unixReviewTime nor timestamp"),
        ("reviews", '{"user_id": "u", "asin": "i0", "unixReviewTime": "1"}', "'1' must be Unix seconds, before 2100"),
        ("reviews", '{"user_id": "u", "asin": "i0", "unixReviewTime": 13e11}', "must be Unix seconds"),
        ("reviews", '{"user_id": "u", "asin": "i0", "timestamp": 12}', "timestamp 12 must be Unix milliseconds"),
        ("reviews", '{"user_id": "u", "asin": "i0", "unixReviewTime": 0}', "unixReviewTime 0 must be"),
        ("meta", "{'asin': 'i5', 'title': __import__('os')}", "neither JSON nor a Python dict"),
        ("meta", '{"title": "x"}', "there is neither parent_asin nor asin; it has title"),
    ],
)
def test_damaged_lines_are_refused_by_number(tmp_path, year, file, line, reason):
    folder = published(tmp_path / "a", year, **{"more_reviews" if file == "reviews" else "more_products": (line,)})
    if line == "\xff":
        path = next(path for path in folder.iterdir() if not path.name.startswith("meta"))
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-3] + b"\xff\n"))
    at = 1 + (len(PAIRS) if file == "reviews" else len(PRODUCTS))
    with pytest.raises(UserError, match=rf"{'meta_' if file == 'meta' else ''}\w+\.jsonl?\.gz:{at}: .*{reason}"):
        reviews_of(tmp_path, folder)
    assert not (tmp_path / "data" / "logs").exists()


def test_what_is_no_source_of_reviews(tmp_path):
    with pytest.raises(UserError, match="amazon-reviews is not fetched: give --source FOLDER, which holds reviews_X_5"):
        prepare.prepare("amazon-reviews", data_dir=tmp_path)
    with pytest.raises(UserError, match="there is no such file or folder"):
        reviews_of(tmp_path, tmp_path / "none")
    (folder := tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="0 files of reviews, where one is wanted"):
        reviews_of(tmp_path, folder)
    published(folder)
    (folder / "reviews_Beauty.json.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 files of reviews \(reviews_Beauty.json.gz, reviews_Beauty_5.json.gz\)"):
        reviews_of(tmp_path, folder)
    (folder / "reviews_Beauty.json.gz").unlink()
    (folder / "meta_Beauty.json.gz").rename(folder / "meta_Toys.json.gz")
    with pytest.raises(
        UserError, match=r"0 files of metadata for reviews_Beauty_5.json.gz; one is wanted: meta_Beauty"
    ):
        reviews_of(tmp_path, folder)
    cut = published(tmp_path / "cut")
    path = cut / "reviews_Beauty_5.json.gz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"reviews_Beauty_5.json.gz: not a whole .gz file \(.*\): fetch it again"):
        reviews_of(tmp_path, cut)
    path.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(UserError, match=r"reviews_Beauty_5.json.gz: there are no reviews"):
        reviews_of(tmp_path, cut)
    few = published(tmp_path / "few", pairs=PAIRS[:20])
    with pytest.raises(UserError, match=r"nothing is left of 20 reviews once users and items of fewer than 5 are gone"):
        reviews_of(tmp_path, few)
    other = published(tmp_path / "other", pairs=[(user, item.replace("i", "x"), time) for user, item, time in PAIRS])
    with pytest.raises(UserError, match=r"none of the 6 items is in it: is it of the same category\?"):
        reviews_of(tmp_path, other)


def test_without_paths_nothing_is_said_of_queries(tmp_path):
    bare = {item: (title, brand, []) for item, (title, brand, _) in PRODUCTS.items()}
    folder = published(tmp_path / "a", 2023)
    lines = [{"parent_asin": item, "title": bare[item][0], "categories": []} for item in bare]
    (folder / "meta_Beauty.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    log = reviews_of(tmp_path, folder)
    assert log.queries == [""] and log.query_note == "" and log[0]["item"].tolist() == [1, 2, 3, 4, 5, 6]


def test_names_of_files():
    told = lambda name: (match := amazon_reviews._NAME.fullmatch(name)) and (match["kind"], match["of"], match["core"])
    assert told("reviews_Home_and_Kitchen_5.json.gz") == ("reviews_", "Home_and_Kitchen", "_5")
    assert told("Home_and_Kitchen_5.json.gz") == (None, "Home_and_Kitchen", "_5")
    assert told("meta_Home_and_Kitchen.jsonl") == ("meta_", "Home_and_Kitchen", None)
    assert told("notes.txt") is None
