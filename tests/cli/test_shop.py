"""A shop's own log from a table to search by the command line; new items; a families."""

import json
import pathlib

import jax
import numpy as np
import pytest
from small_shop import COLOURS, THINGS, Shop

from data_pipelines.feed import examples
from synergen_jax import config as configs
from synergen_jax.errors import Stopped, UserError
from synergen_jax.runs import family as families
from synergen_jax.runs.run import load
from synergen_jax.serving.catalogue import extended
from synergen_jax.serving.recommender import Recommender
from synergen_jax.training.loop import NotFiniteError


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return Shop(tmp_path_factory.mktemp("shop")).trained()


@pytest.fixture
def search(shop, capsys):
    def ask(*arguments):
        capsys.readouterr()
        status = shop.call("search", shop.workdir, *arguments, "--json")
        said = capsys.readouterr()
        return (json.loads(said.out.splitlines()[-1]) if not status else None), status, said.err.splitlines()

    return ask


def test_words_that_nobody_typed_are_understood_without_texts_of_items(tmp_path, capsys):
    """The same shop without a table of items. Item i is what the i-th of these names, the other way round."""
    made = Shop(tmp_path)
    assert made.call("data", "import", tmp_path / "events.csv", "--name", "shop") == 0
    assert made.call("train", tmp_path / "shop.toml", "--workdir", made.workdir, "--run.steps", "60") == 0
    assert made.call("search", made.workdir, "--query", "dress red", "-k", "3") == 0
    run, params = load(made.workdir)
    texts = [f"{thing} {colour}" for colour in COLOURS for thing in THINGS]
    assert "text" not in run.log.item_matrices and not set(texts) & set(run.log.queries)
    catalogue = extended(run.catalogue, queries={"text": run.log.text_encoder().encode(texts)})
    served = Recommender(run.model, params, catalogue)
    cache = served.encode(jax.tree.map(np.asarray, examples.no_history(run.config)))
    ask = lambda query: [run.log.item_ids[found.item] for found in served.recommend(cache, 0, 3, query)]
    found = [f"i{i}" in ask(len(run.log.queries) + i) for i in range(len(texts))]
    assert sum(found) > 18  # of 24; by chance 3


def titles(found):
    return [row["title"] for row in found["recommendations"]]


def test_a_search_finds_what_its_words_name(search):
    found, status, _ = search("--query", "blue hat", "-k", "3")
    assert status == 0 and titles(found)[0] == "blue hat" and found["history"] == [] and found["query"] == "blue hat"


def test_a_query_is_typed_as_an_import_would_read_it(search):
    """With single spaces: as another text it would be a query that nobody ever typed."""
    clean, spaced = (search("--query", text, "-k", "5")[0] for text in ("blue hat", " blue \t hat "))
    assert clean["recommendations"] == spaced["recommendations"] and spaced["unknown_words"] == []
    assert search("--query", " \t ")[1:] == (
        2,
        ["synergen: error: --query is empty: `synergen recommend` answers without a query"],
    )


def test_words_that_nobody_searched_before(search):
    found, _, _ = search("--query", "hat of blue", "-k", "8")
    assert "blue hat" in titles(found)[:4]


def test_a_search_for_a_user_knows_the_history(search):
    found, status, _ = search("--query", "red cup", "--user", "u3", "-k", "5")
    assert status == 0 and found["events"] >= 5 and len(titles(found)) == 5
    had = {row["item"] for row in found["history"]}
    assert not had & {row["item"] for row in found["recommendations"]}


def test_new_items_are_found_without_training(shop, search):
    found, _, _ = search("--query", "golden lamp", "--new-items", shop.root / "new.csv", "-k", "6")
    assert "golden lamp" in titles(found) and len(set(titles(found))) == 6
    without, _, _ = search("--query", "golden lamp", "-k", "6")
    assert "golden lamp" not in titles(without)


def test_a_query_in_letters_of_another_case_is_that_query(search, shop):
    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.sources.prepare import locate

    query = EventLog.load(locate("shop", shop.data)).queries[1]
    assert query.upper() != query
    found, status, _ = search("--query", query.upper(), "-k", "5")
    assert status == 0
    assert found["recommendations"] == search("--query", query, "-k", "5")[0]["recommendations"]


@pytest.mark.parametrize("text", ["sku,title\nn1,lamp\n", "item,title\nn1,lamp\nn1,cup\n", "item,title\n"])
def test_tables_of_new_items_that_are_refused_name_no_option_that_is_not_there(search, shop, text):
    file = shop.root / "wrong.csv"
    file.write_text(text)
    _, status, errors = search("--query", "hat", "--new-items", file)
    assert status == 2 and len(errors) == 1 and str(file) in errors[0]
    assert "--item-columns" not in errors[0] and "--drop" not in errors[0]


def test_words_of_which_none_is_known(search, shop):
    """Then it is not a search, and says so."""
    found, status, _ = search("--query", "qqq zzz", "-k", "5")
    assert status == 0 and found["query_known"] is False and found["unknown_words"] == ["qqq", "zzz"]
    assert found["notes"] == ["no word of 'qqq zzz' is known: this is what is recommended without a query"]
    some, _, _ = search("--query", "blue zzz hat", "-k", "5")
    assert some["query_known"] is True and some["unknown_words"] == ["zzz"] and "blue hat" in titles(some)
    assert some["notes"] == ["words that are not known: 'zzz'"]
    new = shop.root / "blank.csv"
    new.write_text("item,title\nn1,qqq\nn2,golden lamp\n")
    found, _, _ = search("--query", "golden lamp", "--new-items", new, "-k", "40")
    assert "no word of 1 of the new items is known: they are never recommended: n1" in found["notes"]
    assert "golden lamp" in titles(found) and "qqq" not in titles(found)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--query", "  "], "--query is empty"),
        (["--query", "hat", "-k", "0"], "k = 0: k lies within 1 .. the number of items"),
        (["--query", "hat", "--user", "nobody"], "no user 'nobody'"),
        (["--query", "hat", "--order", "likes"], "cannot order by 'likes'"),
        (["--query", "hat", "--new-items", "missing.csv"], "missing.csv"),
        (["--query", "hat", "--new-items", "ITEMS"], "item 'i0' is in shop already"),
    ],
)
def test_questions_that_cannot_be_answered(shop, search, arguments, message):
    arguments = [str(shop.root / "items.csv") if word == "ITEMS" else word for word in arguments]
    _, status, errors = search(*arguments)
    assert status == 2 and len(errors) == 1 and errors[0].startswith("synergen: error: ") and message in errors[0]


def test_an_evaluation_tells_search_from_recommendation(shop, capsys):
    assert shop.call("evaluate", shop.workdir, "--split", "validation", "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    search = found["slices"]["search"]
    assert {"model", "bm25", "query_without_history", "history_without_query", "model_reranked"} <= set(search)
    assert {"query_lookup", "popular_for_query", "query_user_knn", "lookup_user_knn", "user_knn", "item_knn"} <= set(
        search
    )
    assert search["query_lookup"]["hr@10"] > search["most_popular"]["hr@10"]
    assert {"user_knn", "item_knn"} <= set(found["leads"]["ndcg@10"]) and "query_lookup" not in found
    lead = found["slice_leads"]["search"]["query_lookup"]
    assert lead["mean"] == pytest.approx(search["model"]["ndcg@10"] - search["query_lookup"]["ndcg@10"])
    assert lead["low"] <= lead["mean"] <= lead["high"]
    assert set(found["left_out"]) >= {"last_seen_first", "feature_regression"}
    assert any(line.startswith("search") and "ndcg@10" in line and "query_lookup" in line for line in lines)
    page = (shop.workdir / "report_validation.html").read_text()
    assert "query_lookup" in page and "last_seen_first" in page
    assert search["model"]["hr@10"] > found["slices"]["recommendation"]["model"]["hr@10"]
    assert any(line.startswith("search") and "bm25" in line for line in lines)


def test_an_evaluation_where_people_come_back_to_items(shop, capsys, tmp_path):
    settings = ["--data.filter_seen", "false", "--evaluate.neighbours", "0", "--out", tmp_path]
    assert shop.call("evaluate", shop.workdir, "--split", "validation", "--json", *settings) == 0
    said = capsys.readouterr().out.splitlines()
    found = json.loads(said[-1])
    assert "hr@10" in found["last_seen_first"] and "user_knn" not in found
    assert found["left_out"]["user_knn"] == found["left_out"]["item_knn"] == "evaluate.neighbours is 0"
    assert "user_knn, item_knn, query_user_knn, lookup_user_knn are left out: evaluate.neighbours is 0" in said


def test_a_sweep_makes_one_table_and_goes_on_where_it_stopped(shop, capsys):
    family = shop.root / "family.toml"
    family.write_text(
        f'base = "{shop.root / "shop.toml"}"\n[variants.joint]\n[variants.search-only]\nloss.recommendation_weight = 0.0\n'
    )
    arguments = ["sweep", family, "--workdir", shop.root / "sweep", "--seeds", "0", "--run.steps", "6"]
    assert shop.call(*arguments, "--only", "joint", "--json") == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first["table"][0]["variant"] == "joint" and float(first["table"][0]["search NDCG@10"]) >= 0
    evaluation = shop.root / "sweep" / "joint" / "seed-0" / "evaluation_validation.json"
    told = evaluation.read_text()
    evaluation.write_text(json.dumps(json.loads(told) | {"step": 1}))  # of a run that was not finished
    assert shop.call(*arguments, "--only", "joint") == 0
    assert json.loads(evaluation.read_text()) == json.loads(told), "evaluated anew"
    settings = {name: value for name, value in json.loads(told)["settings"].items() if name != "ties"}
    evaluation.write_text(json.dumps(json.loads(told) | {"settings": settings}))  # when ties counted against the model
    assert shop.call(*arguments, "--only", "joint") == 0
    assert json.loads(evaluation.read_text()) == json.loads(told), "evaluated anew: other metrics"
    assert "expected over a random order of equal scores" in json.loads(told)["protocol"]
    workdir = evaluation.parent
    assert shop.call("evaluate", workdir, "--split", "validation", "--data.filter_seen", "false") == 0
    assert "seen items kept" in evaluation.read_text()
    assert shop.call(*arguments, "--only", "joint") == 0
    assert json.loads(evaluation.read_text()) == json.loads(told), "by the settings of the sweep"
    when = evaluation.stat().st_mtime_ns
    capsys.readouterr()
    assert shop.call(*arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (shop.root / "sweep" / "joint" / "seed-0" / "evaluation_validation.json").stat().st_mtime_ns == when
    rows = json.loads((shop.root / "sweep" / "sweep_validation.json").read_text())["table"]
    assert [row["variant"] for row in rows][:2] == ["joint", "search-only"]
    assert "joint: bm25" in [row["variant"] for row in rows]
    assert "| joint " in (shop.root / "sweep" / "sweep_validation.md").read_text()


def test_a_sweep_refuses_what_the_log_does_not_have_before_it_trains(shop, capsys, tmp_path):
    (tmp_path / "family.toml").write_text(
        f'base = "{shop.root / "shop.toml"}"\n[variants.joint]\n[variants.bare]\nmodel.leave_out = "txet"\n'
    )
    assert shop.call("sweep", tmp_path / "family.toml", "--workdir", tmp_path / "sweep", "--seeds", "0") == 2
    assert "variant bare: model.leave_out: the log has no matrix 'txet'; did you mean 'text'" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_goes_on_after_a_run_that_is_not_finite(tmp_path):
    """And tells in the end which one that was: by an error, since somebody has to look at it."""
    (tmp_path / "f.toml").write_text('base = "quickstart"\n[variants.wild]\n[variants.tame]\n')
    family, said = families.load(tmp_path / "f.toml"), []

    def fit(config, folder):
        if folder.parent.name == "wild" and config.run.seed:
            raise NotFiniteError("step 7: the loss is not finite")
        folder.mkdir(parents=True)
        return {"best_step": 3}

    beside = []

    def evaluate(folder, split, config):
        beside.append(config.evaluate.baselines)
        return {"protocol": "p, checkpoint of step 3", "model": {"hr@10": 0.5}, "slices": {}, "shown": {}}

    with pytest.raises(Stopped, match=r"1 of 4 runs are without a result: wild, seed 1: step 7"):
        families.sweep(family, (0, 1), tmp_path, "test", fit, evaluate, said.append)
    found = json.loads((tmp_path / "sweep_test.json").read_text())
    assert [len(found["runs"][name]) for name in ("wild", "tame")] == [1, 2] and len(found["failed"]) == 1
    assert beside == [True, False, False]
    with pytest.raises(Stopped, match="1 of 1 runs are without"):
        only = family._replace(variants={"wild": family.variants["wild"]})
        families.sweep(only, (1,), tmp_path, "test", fit, evaluate, said.append)


@pytest.mark.parametrize("text", [None, "", '{"step": 4', "[]", "7"])
def test_half_an_evaluation_is_none(tmp_path, text):
    """A sweep makes it anew."""
    path = tmp_path / "evaluation_test.json"
    if text is not None:
        path.write_text(text)
    assert families._found(path) == {}
    path.write_text('{"step": 4}')
    assert families._found(path) == {"step": 4}


def test_a_sweep_has_its_seeds_from_one_place(tmp_path):
    with pytest.raises(UserError, match="by --seeds, not by"):
        families.load(pathlib.Path("search_100k"), ["--data.seed=3"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "a family has a `base`"),
        ('base = "ml_100k"\n', "a family has a `base`"),
        ('base = "ml_100k"\n[variants]\nx = 1\n', r"\[variants.x\] holds settings"),
        ('base = "ml_100k"\n[variants.x]\nmodel.widht = 3\n', "unknown key model.widht"),
        ('base = "none"\n[variants.x]\n', "no config file 'none'"),
        ("base = [", "cannot be read as a family"),
    ],
)
def test_broken_families(tmp_path, text, message):
    (tmp_path / "f.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        families.load(tmp_path / "f.toml")


def test_shipped_families_load():
    for path in configs.shipped(families=True).values():
        assert len(families.load(path).variants) > 1
    with pytest.raises(UserError, match=r"shipped families: .*search_100k"):
        families.load(path.with_name("nothing"))


def test_the_table_by_hand():
    one = lambda hr, search: {
        "model": {"hr@10": hr},
        "most_popular": {"hr@10": 0.1},
        "slices": {"search": {"targets": 3, "model": {"ndcg@10": search}, "bm25": {"ndcg@10": 0.7}}},
        "shown": {},
        "knows": {"model": "ids, query", "bm25": "query, words"},
    }
    rows = families.table({"a": [one(0.2, 0.5), one(0.4, 0.5)], "b": [one(0.3, 0.1), one(0.3, 0.3)]})
    assert [row.pop("knows", "") for row in rows] == ["ids, query", "ids, query", "", "query, words"]
    assert rows == [
        {"variant": "a", "HR@10": "0.3000 ± 0.1414", "search NDCG@10": "0.5000 ± 0.0000"},
        {"variant": "b", "HR@10": "0.3000 ± 0.0000", "search NDCG@10": "0.2000 ± 0.1414"},
        {"variant": "a: most_popular", "HR@10": "0.1000 ± 0.0000"},
        {"variant": "a: bm25", "search NDCG@10": "0.7000 ± 0.0000"},
    ]


def test_a_baseline_may_be_known_once_and_a_second_stage_in_every_run():
    """A mean over fewer runs than the row beside it would be no comparison."""
    one = lambda **more: {"model": {"hr@10": 0.2}, "slices": {}, "shown": {}, **more}
    second = {"model_second_stage": {"hr@10": 0.6}}
    rows = families.table({"a": [one(user_knn={"hr@10": 0.4}, **second), one()]})
    assert rows[1:] == [{"variant": "a: user_knn", "HR@10": "0.4000"}]
    rows = families.table({"a": [one(**second), one(**second)]})
    assert rows[1:] == [{"variant": "a: model_second_stage", "HR@10": "0.6000 ± 0.0000"}]
