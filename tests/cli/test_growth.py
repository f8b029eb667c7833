"""A shop that is open for several days: trained, appended to, asked, measured, and trained further."""

import json

import numpy as np
import pytest
import small_shop

import synergen_jax as sg
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.sources.prepare import locate
from synergen_jax.model import grown
from synergen_jax.runs import log_versions
from synergen_jax.runs.run import open_run

DAY = 86_400
MONDAY = 1_600_000_000 + 10 * DAY


def monday(folder):
    """Known users and a new one buy what is known and what is new."""
    rows = ["user,item,time,action,query"]
    for user in range(0, 48, 2):
        rows.append(f"u{user},i{(7 * user) % 24},{MONDAY + user},buy,")
        rows.append(f"u{user},n1,{MONDAY + 100 + user},buy,golden lamp")
    rows += [f"newcomer,i{i},{MONDAY + 500 + i},return,blue hat" for i in range(4)]
    (folder / "monday.csv").write_text("\n".join(rows) + "\n")


class Open(small_shop.Shop):
    def result(self, capsys, *arguments):
        """What a command prints with --json."""
        capsys.readouterr()
        status = self.call(*arguments, "--json")
        out, err = capsys.readouterr()
        assert status == 0, err
        return json.loads(out.splitlines()[-1])

    def error(self, capsys, *arguments):
        capsys.readouterr()
        assert self.call(*arguments) == 2
        return capsys.readouterr().err


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    made = Open(tmp_path_factory.mktemp("shop")).trained()
    monday(made.root)
    made.before = open_run(made.workdir, [], made.data)
    drop = ("--drop", "duplicates")
    assert made.call("data", "append", "shop", made.root / "monday.csv", "--items", made.root / "new.csv", *drop) == 0
    return made


def test_parameters_that_grow_keep_their_rows_and_new_ones_are_zeros(shop):
    later = open_run(shop.workdir, [], shop.data, log="shop")
    was, now = shop.before.run.log.spec, later.run.log.spec
    assert (now.items, now.actions, was.actions) == (was.items + 2, 3, 2)
    flat = lambda opened: np.asarray(opened.params["tables"]["item"]).reshape(-1, 16)
    np.testing.assert_array_equal(flat(later)[: was.items], flat(shop.before)[: was.items])
    assert not flat(later)[was.items :].any()
    inner = lambda opened: opened.params["model"]["params"]
    np.testing.assert_array_equal(inner(later)["action"][:2], inner(shop.before)["action"])
    assert not inner(later)["action"][2:].any()
    assert later.run.catalogue.counts[-2:].tolist() == [0, 0]
    np.testing.assert_array_equal(later.run.catalogue.counts[:-2], shop.before.run.catalogue.counts)


def test_a_table_grows_over_several_lines():
    spec = lambda items: sg.LogSpec(items=items, actions=2, queries=1, labels=("engage",))
    table = np.arange(1, 1 + 768 * 2, dtype=np.float32).reshape(1, 768, 2)
    params = {"model": {"params": {"action": np.ones((2, 2))}}, "tables": {"item": table}}
    found = np.asarray(grown.grown(params, spec(700), spec(2000))["tables"]["item"])
    assert found.shape == (3, 768, 2)
    np.testing.assert_array_equal(found[0, :700], table[0, :700])
    assert not found[0, 700:].any() and not found[1:].any()
    with pytest.raises(sg.UserError, match="train anew"):
        grown.grown(params, spec(700), spec(600))


def test_a_run_answers_on_the_newest_version_with_what_came_since(shop, capsys):
    answer = shop.result(capsys, "recommend", shop.workdir, "--user", "u2", "-k", 3)
    assert answer["events"] == shop.before.run.log.lengths[shop.before.run.log.find_user("u2")] + 2
    assert answer["history"][-1]["item"] == "n1"
    found = shop.result(capsys, "search", shop.workdir, "--query", "golden lamp", "--user", "newcomer", "-k", 24)
    assert "n1" in [row["item"] for row in found["recommendations"]]  # by its words: no training event has it
    old = shop.result(capsys, "recommend", shop.workdir, "--user", "u2", "-k", 3, "--log", "shop@1")
    assert old["events"] == answer["events"] - 2
    assert "no user 'newcomer'" in shop.error(
        capsys, "recommend", shop.workdir, "--user", "newcomer", "--log", "shop@1"
    )


def test_answers_on_the_version_of_training_are_those_of_before(shop):
    run, params = sg.load(shop.workdir, shop.data, log="shop@1")
    user = run.log.user_ids[3]
    one = sg.Served(run, params, sg.Question()).recommend([user])
    other = sg.Served(shop.before.run, shop.before.params, sg.Question()).recommend([user])
    assert one == other


def test_a_known_history_is_answered_alike_on_a_later_version(shop):
    """u1 did nothing since: what it gets of the items of before has the same scores."""
    run, params = sg.load(shop.workdir, shop.data)
    old = sg.Served(shop.before.run, shop.before.params, sg.Question(k=5)).recommend(["u1"])[0]
    new = sg.Served(run, params, sg.Question(k=5, exclude=("n1", "n2"))).recommend(["u1"])[0]
    assert [row["item"] for row in new] == [row["item"] for row in old]
    np.testing.assert_allclose([row["score"] for row in new], [row["score"] for row in old], atol=1e-5)


def test_it_is_measured_where_it_was_trained_or_on_what_came_since(shop, capsys):
    targets = lambda found: found["targets"]
    mine = shop.result(capsys, "evaluate", shop.workdir, "--out", shop.root / "own")
    later = shop.result(capsys, "evaluate", shop.workdir, "--out", shop.root / "later", "--log", "shop")
    assert "trained on version" not in mine["protocol"]
    assert "trained on version 1 of the log and measured on version 2" in later["protocol"]
    assert targets(later) == targets(mine) + 1  # the newcomer


def test_another_log_is_no_later_version(shop, capsys, tmp_path):
    rows = "user,item,time\n" + "".join(f"u1,i{i},2024-01-0{i}\n" for i in range(1, 7))
    (tmp_path / "other.csv").write_text(rows)
    assert shop.call("data", "import", tmp_path / "other.csv", "--name", "other") == 0
    assert "trained on another log" in shop.error(capsys, "evaluate", shop.workdir, "--log", "other")
    error = shop.error(
        capsys,
        "train",
        shop.root / "shop.toml",
        "--data.log",
        "other",
        "--workdir",
        tmp_path / "r",
        "--init-from",
        shop.workdir,
    )
    assert "does not go on from that" in error and not (tmp_path / "r").exists()


def test_more_steps_go_on_with_a_finished_run_on_its_own_version(shop, capsys):
    train = ("train", shop.root / "shop.toml", "--workdir", shop.workdir)
    assert "belongs to another config (run.steps 30 -> 20" in shop.error(capsys, *train, "--run.steps", 20)
    capsys.readouterr()
    assert shop.call(*train, "--run.steps", 40) == 0
    said = capsys.readouterr().out
    assert "resumed from step 30" in said and "it had 30 steps, and goes on to 40" in said
    assert shop.result(capsys, *train, "--run.steps", 40)["step"] == 40
    found = json.loads((shop.workdir / "log.json").read_text())
    assert found["fingerprint"] == shop.before.run.log.fingerprint
    assert open_run(shop.workdir, [], shop.data).step <= 40


def test_steps_are_not_raised_before_they_are_done(shop, capsys):
    folder = shop.root / "unfinished"
    train = ("train", shop.root / "shop.toml", "--workdir", folder)
    assert shop.call(*train, "--run.steps", 15) == 0
    config = json.loads((folder / "config.json").read_text())
    config["run"]["steps"] = 25  # as if it had been cut off at step 15 of 25
    (folder / "config.json").write_text(json.dumps(config))
    assert "at step 15 of 25: run.steps" in shop.error(capsys, *train, "--run.steps", 35)
    assert shop.result(capsys, *train, "--run.steps", 25)["step"] == 25


def test_a_run_begins_with_the_parameters_of_one_of_a_version_before(shop, capsys):
    folder = shop.root / "further"
    train = ("train", shop.root / "shop.toml", "--workdir", folder)
    assert shop.call(*train, "--init-from", shop.workdir, "--run.steps", 1, "--optimiser.learning_rate", 1e-9) == 0
    source = open_run(shop.workdir, [], shop.data, log="shop")
    begun = open_run(folder, [], shop.data)
    assert begun.run.trained_on is None and begun.run.log.version == 2
    for name in ("action", "kind"):
        inner = lambda opened, name=name: np.asarray(opened.params["model"]["params"][name])
        np.testing.assert_allclose(inner(begun), inner(source), atol=1e-6)
    np.testing.assert_allclose(begun.params["tables"]["item"], source.params["tables"]["item"], atol=1e-6)
    assert json.loads((folder / "log.json").read_text())["init_from"] == str(shop.workdir.resolve())
    other = shop.error(capsys, *train, "--init-from", folder, "--run.steps", 1, "--optimiser.learning_rate", 1e-9)
    assert "began with" in other
    wide = shop.error(capsys, *train[:3], shop.root / "wide", "--init-from", shop.workdir, "--model.width", 32)
    assert "has another model: model.width 16 there and 32 here" in wide


def test_a_run_of_all_events_is_measured_on_what_came_since(shop, capsys):
    folder = shop.root / "all"
    (shop.root / "all.toml").write_text(small_shop.CONFIG.replace('log = "shop"', 'log = "shop@1"\nsplit = "none"'))
    assert shop.call("train", shop.root / "all.toml", "--workdir", folder) == 0
    assert "nothing is held back" in shop.error(capsys, "evaluate", folder)
    found = shop.result(capsys, "evaluate", folder, "--log", "shop")
    was = EventLog.load(locate("shop@1", shop.data))
    log = EventLog.load(locate("shop", shop.data))
    new = int(log.lengths.sum() - was.lengths.sum())
    seen = sum(
        item in was[was.find_user(user)]["item"]
        for user in was.user_ids
        for item, time in zip(log[log.find_user(user)]["item"], log[log.find_user(user)]["time"], strict=True)
        if time > was.last_time
    )
    assert found["targets"] == new - seen  # what a user had already is no target


def test_by_user_is_not_measured_on_a_later_version(shop, capsys):
    folder = shop.root / "drawn"
    (shop.root / "drawn.toml").write_text(
        small_shop.CONFIG.replace('log = "shop"', 'log = "shop@1"\nsplit = "by-user"')
    )
    assert shop.call("train", shop.root / "drawn.toml", "--workdir", folder) == 0
    assert "draws users anew for version 2" in shop.error(capsys, "evaluate", folder, "--log", "shop")
    assert shop.call("recommend", folder, "--user", "u1") == 0


def test_a_run_whose_version_is_gone_is_asked_and_not_trained_further(shop, capsys):
    """The last test: it takes version 1 away."""
    assert "they can be evaluated and asked on the next version" in shop.error(
        capsys, "data", "delete-user", "shop", "u0"
    )
    assert shop.call("data", "delete-user", "shop", "u0", "--force") == 0
    assert locate("shop", shop.data).name == "shop@3"
    assert shop.call("recommend", shop.workdir, "--user", "u1") == 0
    assert "which is gone" in shop.error(
        capsys, "train", shop.root / "shop.toml", "--workdir", shop.workdir, "--run.steps", 50
    )
    found = shop.result(capsys, "data", "list")["logs"]
    assert [(row["log"], row.get("version")) for row in found if row["log"].startswith("shop")] == [("shop@3", 3)]
    assert log_versions.spec_of(EventLog.load(locate("shop", shop.data)), shop.before.run.log.as_ancestor).actions == 2
