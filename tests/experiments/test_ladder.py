"""The ladder (experiments/ladder): its log in one file, its feed, what it writes and how it goes on, its report."""

import dataclasses
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import array_log
import batches
import jax
import jax.numpy as jnp
import ladder
import numpy as np
import pytest
import runs
from small_log import random_log
from small_run import TREE, cycle_log

from data_pipelines.event_log import event_log
from synergen_jax import config as configs
from synergen_jax.batch import LogSpec
from synergen_jax.config import Config, DataConfig, EvaluateConfig, LossConfig
from synergen_jax.errors import UserError
from synergen_jax.runs import family as families
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import place_catalogue
from synergen_jax.training import train_step

ROOT = pathlib.Path(__file__).resolve().parents[2]
LADDER = ROOT / "experiments" / "ladder"
SMALL = DataConfig(log="small", max_history=6, batch=4, rank_events=2, rank_candidates=4, negatives=5)
SPARE = "grain tensorflow_datasets array_record scann polars sklearn scipy bm25s tensorboardX matplotlib pyarrow"


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def file(tmp_path):
    array_log.write(random_log(users=30), tmp_path / "small.npz")
    return tmp_path / "small.npz"


# --- the log in one file --------------------------------------------------------------------------------------


def test_a_log_in_one_file_is_the_same_log(file):
    log, found = random_log(users=30), array_log.ArrayLog(file)
    assert (len(found), found.spec, found.labels, found.actions) == (30, log.spec, log.labels, log.actions)
    assert (found.name, found.fingerprint, found.lengths.tolist()) == (log.name, log.fingerprint, log.lengths.tolist())
    for user in range(30):
        same(dict(found[user]), dict(log[user]))
    same(found.item_matrices, log.item_matrices)
    same(found.query_matrices, log.query_matrices)
    config = Config(data=SMALL)
    mine, theirs = batches.Source(found, config), batches.Source(log, config)
    same(mine.train(3), theirs.train(3))
    same(mine.catalogue, theirs.catalogue)
    same(mine.test.batch(0), theirs.test.batch(0))


def test_prepare_puts_an_event_log_into_one_file(tmp_path, capsys):
    small = random_log(users=5)
    names = ("name", "item_ids", "item_titles", "queries", "actions", "labels", "item_matrices", "query_matrices")
    log = event_log.write(
        tmp_path / "log", users=small.records, source={}, **{name: getattr(small, name) for name in names}
    )
    assert ladder.main(["prepare", str(tmp_path / "log"), "--out", str(tmp_path / "small.npz")]) == 0
    found = array_log.ArrayLog(tmp_path / "small.npz")
    assert (found.spec, found.fingerprint) == (log.spec, log.fingerprint)
    for user in range(5):
        same(dict(found[user]), log[user])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_text("text"), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:900] + b"\xff" * 40 + path.read_bytes()[940:]), "damaged"),
        (lambda path: np.savez(path, item=np.zeros(3)), "damaged.*about"),
    ],
)
def test_what_is_no_log_is_refused(file, damage, words):
    damage(file)
    with pytest.raises(UserError, match=f"small.npz: {words}"):
        array_log.ArrayLog(file)


# --- the feed -------------------------------------------------------------------------------------------------


def take(feed, count):
    found = list(itertools.islice(feed, count))
    feed.close()
    return found


def test_every_epoch_visits_each_window_once():
    source = batches.Source(random_log(1), Config(data=dataclasses.replace(SMALL, stride=3, batch=3)))
    count = len(source.training.rows)
    orders = [batches.order(0, epoch, count) for epoch in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 3
    rows = [(index, row) for index, row in enumerate(np.concatenate([source.training.rows[o] for o in orders]))]
    assert len(rows) == 3 * count, "three epochs are as many batches as one has windows"
    for step in (0, count // 3, count - 1):  # the middle one lies in two epochs, unless they meet between batches
        expected = [source.training.make(index, row) for index, row in rows[3 * step : 3 * step + 3]]
        same(source.train(step).target, np.stack([one["target"] for one in expected]))


def test_workers_make_the_same_batches_without_a_device_and_what_they_made_is_kept(file):
    log, config = array_log.ArrayLog(file), Config(data=SMALL)
    with batches.Batches(log, 0, 0) as alone, batches.Batches(log, 1, 2**30) as feeds:
        expected = take(alone.train(config, True), 9)
        first = take(feeds.train(config, True), 9)
        same(first, expected)
        again = take(feeds.train(dataclasses.replace(config, loss=LossConfig(temperature=1.0)), True), 10)
        assert all(a is b for a, b in zip(first, again)), "another loss, the same batches"
        assert take(alone.train(config, True), 1)[0] is not expected[0], "no memory, nothing kept"
        other = dataclasses.replace(config, data=dataclasses.replace(SMALL, seed=1))
        assert not np.array_equal(take(feeds.train(other, False), 1)[0].target, first[0].target)
        for part in ("validation", "test"):
            same(feeds.targets(config, part), list(getattr(alone.source(config), part)))
        feeds.forget(config)
        assert take(feeds.train(config, False), 1)[0] is not first[0]
        # `_start` leaves them the CPU alone, but not even that is opened.
        opened = feeds._pool.submit(jax._src.xla_bridge.backends_are_initialized)
        assert not opened.result()


class Only:
    """Some settings of a section; others may not be read."""

    def __init__(self, section, *names):
        self.__dict__ = {name: getattr(section, name) for name in names}

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"the setting {name} makes batches: `batches.relevant` must keep it")


@pytest.mark.parametrize("pack", [False, True])
def test_batches_depend_on_the_relevant_settings_alone(pack):
    """Those that `relevant` drops are not read, so that equal relevant settings mean equal batches."""
    config = Config(data=dataclasses.replace(SMALL, pack=pack, max_history=16), evaluate=EvaluateConfig(batch=8))
    kept = Only(config)
    kept.data = config.data
    kept.loss = Only(config.loss, *["hard_candidates"] * pack)
    kept.evaluate = Only(config.evaluate, "batch", "rank_candidates")
    source, plain = (batches.Source(random_log(least=4), one) for one in (kept, batches.relevant(config)))
    same(source.train(2), plain.train(2))
    same(source.validation.batch(0), plain.validation.batch(0))


# --- what is written ------------------------------------------------------------------------------------------


def entry(variant, seed, value, **more):
    """A finished run, NDCG@10 and all other retrieval metrics alike."""
    retrieval = dict.fromkeys(("hr@10", "ndcg@10", "hr@50", "ndcg@50", "hr@200", "ndcg@200", "mrr"), value)
    part = {
        "retrieval": retrieval,
        "reranked": {},
        "ranking": {"auc/engage": 0.75, "log_loss/engage": 0.5, "calibration_error/engage": 0.01},
        "slices": {
            name: {"targets": 10, "model": retrieval}
            for name in ("all", "shortest histories, 2-9 events", "rare items", "users with 1-5 training events")
        },
        "baselines": {
            "most_popular": {"retrieval": dict.fromkeys(retrieval, 0.0625)},
            "user_item_mean": {"ranking": {"auc/engage": 0.625}},
        },
    }
    config = configs.to_dict(Config(data=dataclasses.replace(SMALL, seed=seed)))
    return {
        "variant": variant,
        "seed": seed,
        "changes": {"model.rope": "time"} if variant == "time" else {},
        "config": config,
        "fingerprint": "0" * 64,
        "device": "H100",
        "versions": {"jax": "0.10"},
        "commit": "abc",
        "steps": 40,
        "best_step": 20,
        "seconds": {"all": 30.0},
        "validation": [{"step": step, "ndcg@10": value * step / 40} for step in (20, 40 + 20 * seed)],
        "metrics": {"validation": part, "test": part},
    } | more


def test_a_line_that_was_cut_off_is_no_run_and_is_taken_away(tmp_path):
    assert runs.read(tmp_path) == []
    runs.append(tmp_path, entry("recipe", 0, 0.5))
    path = tmp_path / runs.RUNS
    with path.open("a") as file:
        file.write(json.dumps(entry("recipe", 1, 0.5))[:-9])
    assert [found["seed"] for found in runs.read(tmp_path)] == [0]
    runs.append(tmp_path, entry("recipe", 2, 0.5))
    assert [found["seed"] for found in runs.read(tmp_path)] == [0, 2] and path.read_bytes().endswith(b"\n")
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(UserError, match=r"runs\.jsonl:1: no run"):
        runs.read(tmp_path)


def test_the_recipe_comes_first_with_all_seeds_and_what_is_finished_is_not_run_again(tmp_path):
    config = Config(data=SMALL)
    planned = runs.planned({"recipe": config, "time": config}, (3, 1))
    assert [(run.variant, run.seed) for run in planned] == [("recipe", 3), ("recipe", 1), ("time", 3), ("time", 1)]
    assert all(run.config.data.seed == run.config.run.seed == run.seed for run in planned)
    done = {"config": configs.to_dict(planned[1].config)}
    left = lambda fingerprint="0" * 64, **more: runs.left(
        planned, [entry("recipe", 1, 0.5, **(done | more))], fingerprint, tmp_path
    )
    assert left() == [planned[0], *planned[2:]]
    with pytest.raises(UserError, match="recipe, seed 1, is there already, of another log"):
        left("1" * 64)
    with pytest.raises(UserError, match=r"data\.batch 9 in place of 4"):
        left(
            config=configs.to_dict(
                dataclasses.replace(planned[1].config, data=dataclasses.replace(SMALL, batch=9, seed=1))
            )
        )


def test_a_ladder_has_one_family_and_the_same_settings_for_all_its_runs(tmp_path, capsys):
    """Otherwise a variant's difference from the recipe would be that of the settings, too."""
    plan = {"family": "f", "settings": ["--run.steps", "9"], "fingerprint": "0" * 64, "variants": ["recipe", "time"]}
    planned = runs.planned({"recipe": Config(data=SMALL)}, (0,))
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        other = {"settings": ["--run.steps", "8"]} if name == "c" else {}
        runs._note(tmp_path / name, plan | other | {"log": "small"}, planned)
        runs.append(tmp_path / name, entry("time" if name == "b" else "recipe", 0 if name != "c" else 1, 0.5))
    runs._note(tmp_path / "a", plan | {"log": "small"}, planned)
    with pytest.raises(
        UserError, match=r"a is a ladder with settings \['--run.steps', '9'\] in place of \[\]: give another"
    ):
        runs._note(tmp_path / "a", plan | {"settings": []}, planned)
    with pytest.raises(UserError, match="a is a ladder with family 'f' in place of 'g'"):
        runs._note(tmp_path / "a", plan | {"family": "g"}, planned)
    report = lambda *names: ladder.main(["report", *(str(tmp_path / n) for n in names), "--out", str(tmp_path / "r")])
    assert report("a", "b") == 0
    assert report("a", "c") == 2 and "c has settings ['--run.steps', '8'], and" in capsys.readouterr().err


# --- runs -----------------------------------------------------------------------------------------------------


def climb(folder, feeds, variants, seeds, deadline=float("inf"), after=()):
    command = {"family": "f", "variants": list(variants), "settings": []}
    asked = runs.Asked(variants, next(iter(variants.values())), seeds, command, after)
    return runs.climb(asked, folder, feeds, {"device": "cpu"}, runs.Session(deadline, lambda _: None))


def tiny(**changes):
    """The config of `small_run`, with changes by section."""
    return configs.from_dict({section: values | changes.get(section, {}) for section, values in TREE.items()})


def test_runs_share_a_compiled_step_learn_and_end_with_the_budget(tmp_path, monkeypatch):
    array_log.write(cycle_log(), tmp_path / "cycle.npz")
    log = array_log.ArrayLog(tmp_path / "cycle.npz")
    config = tiny(data={"rank_events": 0}, run={"steps": 12, "eval_every": 4}, evaluate={"rerank": 0})
    made, make_step = [], train_step.make_step
    monkeypatch.setattr(train_step, "make_step", lambda *words: made.append(words) or make_step(*words))
    trainer = runs.Trainer(config, log.spec)
    monkeypatch.setattr(runs, "Trainer", lambda *_: trainer)  # compiled once for all that follows
    with batches.Batches(log, 0, 2**30) as feeds:
        told = climb(tmp_path / "l", feeds, {"recipe": config}, (0, 1))
        assert not told.left and told.finished == runs.read(tmp_path / "l")
        # Nothing is begun that cannot end in time, and what does not end is not written.
        seconds = max(found["seconds"]["all"] for found in told.finished)
        late = climb(tmp_path / "l", feeds, {"recipe": config}, (0, 1, 2), time.monotonic() + seconds / 2)
        assert [run.seed for run in late.left] == [2] and len(runs.read(tmp_path / "l")) == 2
        # On another machine: what an earlier ladder has is not run again.
        other = climb(tmp_path / "n", feeds, {"recipe": config}, (0, 1), after=[tmp_path / "l"])
        assert other.finished == told.finished and not other.left and runs.read(tmp_path / "n") == []
        with pytest.raises(UserError, match="no ladder: neither"):
            climb(tmp_path / "n", feeds, {"recipe": config}, (0,), after=[tmp_path])
        cut = climb(tmp_path / "m", feeds, {"recipe": config}, (0,), time.monotonic() + 0.01)
        assert len(cut.left) == 1 and runs.read(tmp_path / "m") == []
        asked = json.loads((tmp_path / "l" / runs.PLAN).read_text())["asked"]
        assert asked == [["recipe", 0], ["recipe", 1], ["recipe", 2]]
        assert json.loads((tmp_path / "l" / runs.PLAN).read_text())["matrices"] == dict(log.spec.item_matrices)

        # Of three validations the second is the best: its parameters are kept, though later steps take their memory.
        seeded = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=1, patience=1))
        catalogue = place_catalogue(feeds.source(batches.relevant(seeded)).catalogue, trainer.mesh)
        values, seen = [0.5, 0.9, 0.1], []

        def validate(params):
            seen.append(jax.device_get(params))
            return {"ndcg@10": values[len(seen) - 1]}

        found = runs.trained(
            trainer, seeded, catalogue, feeds.train(seeded, False), validate, runs.Session(float("inf"), lambda _: None)
        )
        assert (found.progress.best_step, found.steps, found.stopped) == (8, 12, "steps")
        same(found.params, seen[1])
        assert any((x != y).any() for x, y in zip(jax.tree.leaves(seen[1]), jax.tree.leaves(seen[2])))

        assert len(made) == 1, "the step is traced once for all seeds"
    for number, found in enumerate(told.finished):
        assert (found["variant"], found["seed"], found["steps"], found["stopped"]) == ("recipe", number, 12, "steps")
        curve, part = found["validation"], found["metrics"]["test"]
        assert [point["step"] for point in curve] == [4, 8, 12] and curve[-1]["loss"] < curve[0]["loss"]
        assert {"compile", "train", "feed", "validate", "evaluate", "all"} <= set(found["seconds"])
        best = max(curve, key=lambda point: (point["ndcg@10"], point["step"]))
        assert found["best_step"] == best["step"]
        assert found["metrics"]["validation"]["retrieval"]["ndcg@10"] == pytest.approx(best["ndcg@10"], abs=1e-9)
        popular = part["baselines"]["most_popular"]["retrieval"]["mrr"]  # its ties worth their expectation
        assert found["ties"] == "expected over a random order"
        assert part["retrieval"]["mrr"] > popular + 0.1, "users walk through eleven items in order"
        assert {"auc/engage", "log_loss/like", "calibration_error/like"} <= set(part["ranking"])
        assert "log_loss/engage" not in part["ranking"], "its candidates are sampled"
        assert "log_loss/like" in part["baselines"]["user_item_mean"]["ranking"]
        assert any("users with" in name for name in part["slices"])
    assert told.finished[0]["validation"] != told.finished[1]["validation"]


@pytest.mark.parametrize("name", ["loss", "norm/gradient"])
def test_a_loss_or_a_gradient_that_is_not_finite_ends_the_run(tmp_path, name):
    class Trainer:
        mesh = device_mesh.one_device()
        start = staticmethod(lambda config: None)

        def step(self, state, batch, catalogue, seed):
            return state, {"loss": jnp.float32(1), "norm/gradient": jnp.float32(1)} | {name: jnp.float32(np.inf)}

    array_log.write(cycle_log(), tmp_path / "cycle.npz")
    config = tiny()
    with batches.Batches(array_log.ArrayLog(tmp_path / "cycle.npz"), 0, 0) as feeds:
        feed = feeds.train(config, False)
        found = runs.trained(Trainer(), config, None, feed, None, runs.Session(float("inf"), lambda _: None))
    assert (found.stopped, found.steps, found.params) == ("not finite", 1, None)


@pytest.mark.slow  # compiles the same step twice
def test_the_step_with_the_seed_as_an_argument_is_that_of_training():
    config = tiny(model={"dropout": 0.5})
    seeded = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=1))
    source = batches.Source(cycle_log(), batches.relevant(seeded))
    trainer, batch = runs.Trainer(config, source.log.spec), source.train(0)
    stored = place_catalogue(source.catalogue, trainer.mesh)
    plain = train_step.make_step(
        seeded, trainer.model, trainer.mesh, train_step.init_state(seeded, trainer.model, trainer.mesh)[1]
    )
    loss = lambda step, *words: float(step(trainer.start(seeded), batch, stored, *words)[1]["loss"])
    losses = [loss(plain), loss(trainer.step, np.uint32(1)), loss(trainer.step, np.uint32(0))]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and abs(losses[2] - losses[0]) > 1e-3 * losses[0]


# --- the report -----------------------------------------------------------------------------------------------


def test_the_report_worked_by_hand(tmp_path, capsys):
    folder = tmp_path / "ladder"
    folder.mkdir()
    for variant, seed, value in (
        ("time", 0, 0.10),
        ("recipe", 0, 0.20),
        ("recipe", 1, 0.22),
        ("recipe", 2, 0.24),
        ("time", 1, 0.18),
    ):
        runs.append(folder, entry(variant, seed, value))
    runs.append(folder, entry("order", 0, 0.0, metrics={}))
    variants = ["recipe", "time", "order"]
    asked = [[variant, seed] for variant in variants[:2] for seed in range(3)] + [["order", 0], ["other", 0]]
    plan = {"family": "f", "log": "small", "fingerprint": "0" * 64, "settings": ["--run.steps", "9"]}
    plan |= {"matrices": {"genres": 18, "text": 256}}
    (folder / runs.PLAN).write_text(json.dumps(plan | {"variants": variants, "asked": asked}))
    assert ladder.main(["report", str(folder), "--out", str(tmp_path / "out" / "f")]) == 0
    text = (tmp_path / "out" / "f.md").read_text()
    # Differences are -0.10 and -0.04: of seed 2 there is no pair.
    assert "| time | 2 | 0.1400 ± 0.0566 |" in text and "| -0.0700 ± 0.0424 |" in text
    assert "| recipe | 3 | 0.2200 ± 0.0200 |" in text
    assert "| most_popular |  | 0.0625 ± 0.0000 |" in text and "| user_item_mean | engage | 0.6250 ± 0.0000 |" in text
    assert "**Partial evidence**: time has 2 of 3 seeds; not run: other." in text and "order, seed 0" in text
    assert "Matrices of the items in the log: genres (18 wide), text (256 wide)." in text
    assert "--family f --seeds 0,1,2 --out ladder --run.steps 9" in text and '| time | model.rope = "time" |' in text
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == ["f_curves.png", "f_ladder.png", "f_slices.png"] and all(
        f"({name})" in text for name in pictures
    )
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert all(len(found) < 100_000 for found in first.values())
    assert ladder.main(["report", str(folder), "--out", str(tmp_path / "out" / "f")]) == 0
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}, "the same bytes again"
    capsys.readouterr()
    assert ladder.main(["report", str(folder), str(folder), "--out", str(tmp_path / "f")]) == 2
    assert "is in another of the folders, too" in capsys.readouterr().err


def test_without_the_recipe_no_other_variant_is_called_so(tmp_path):
    for name, value in (("time", 0.1), ("order", 0.2)):
        runs.append(tmp_path, entry(name, 0, value))
    plan = {"family": "f", "log": "small", "fingerprint": "0" * 64, "settings": []}
    plan |= {"variants": ["recipe", "time", "order"], "asked": [["recipe", 0], ["time", 0], ["order", 0]]}
    (tmp_path / runs.PLAN).write_text(json.dumps(plan))
    assert ladder.main(["report", str(tmp_path), "--out", str(tmp_path / "f")]) == 0
    text = (tmp_path / "f.md").read_text()
    assert "| time | 1 | 0.1000 |" in text and "| order | 1 | 0.2000 |" in text and "not run: recipe" in text
    assert "+0.1000" not in text and "most_popular" not in text and "The recipe by slice" not in text
    assert [path.name for path in tmp_path.glob("*.png")] == ["f_curves.png"]


# --- the command ----------------------------------------------------------------------------------------------


def family(folder):
    """A family file of two variants of a tiny config, for `cycle_log`."""
    lines = [
        f"[{section}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items())
        for section, values in TREE.items()
    ]
    (folder / "base.toml").write_text("\n".join(lines).replace("[data]", '[data]\nlog = "small"'))
    (folder / "tiny.toml").write_text(
        f'base = {json.dumps(str(folder / "base.toml"))}\n[variants.recipe]\n[variants.time]\nmodel.rope = "time"\n'
    )
    return folder / "tiny.toml"


def words(folder, *more):
    return [
        "run",
        str(folder / "small.npz"),
        "--family",
        str(family(folder)),
        "--out",
        str(folder / "out"),
        "--workers",
        "0",
        *more,
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--variants", "recipe,order"], "--variants order: the family's variants are recipe, time"),
        (["--family", "no_such"], "no family file 'no_such'"),
        (["--data.log", "ml-1m"], "holds the log small, but recipe is for ml-1m"),
        (["--model.widht", "8"], "did you mean 'width'"),
        (["--model.leave_out", "txet"], "variant recipe: model.leave_out: the log has no matrix 'txet'"),
        (["--seeds", "0,one"], "--seeds"),
        (["--model.width"], "needs a value"),
    ],
)
def test_wrong_words_are_told_in_one_line(file, capsys, monkeypatch, more, message):
    monkeypatch.setattr(os, "environ", dict(os.environ))  # `run` names a folder for what is compiled
    assert ladder.main(words(file.parent, *more)) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_the_ladder_of_movielens_1m_asks_for_what_its_log_has():
    """As `synergen data prepare ml-1m` makes it: without a matrix of texts."""
    spec = LogSpec(3707, 6, 1, ("engage", "like"), (("genres", 18),))
    for config in families.load(pathlib.Path("ladder_1m")).variants.values():
        train_step.make_model(config, spec)


def spare(folder):
    """An environment without what the accelerator's machine may lack; its processes' children are without it, too."""
    (folder / "lack").mkdir(exist_ok=True)
    (folder / "lack" / "sitecustomize.py").write_text(
        "import sys\n"
        "class Lack:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {SPARE.split()!r}:\n"
        "            raise ModuleNotFoundError(f'{name} is not on this machine')\n"
        "sys.meta_path.insert(0, Lack())\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    return environment | {"PYTHONPATH": f"{folder / 'lack'}:{ROOT}", "JAX_PLATFORMS": "cpu"}


def test_runs_need_jax_and_its_like_alone(tmp_path):
    """Whatever the modules import when they are loaded; the slow test runs them."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import batches, runs, results, plots, write_up, array_log, ladder"
    )
    tried = [sys.executable, "-c", program + "; import synergen_jax.runs.family; import grain", str(LADDER)]
    done = subprocess.run(tried, env=spare(tmp_path), capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == "ModuleNotFoundError: grain is not on this machine", done.stderr


def test_help_needs_no_jax():
    program = f"import sys; sys.path.insert(0, {str(LADDER)!r}); sys.modules['jax'] = None; "  # as a script has it
    program += "import runpy; sys.argv = ['ladder.py', 'run', '--help']; "
    done = subprocess.run(
        [sys.executable, "-c", program + f"runpy.run_path({str(LADDER / 'ladder.py')!r}, run_name='__main__')"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--budget SECONDS" in done.stdout, done.stderr


def test_a_package_that_is_not_there_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "plots", raising=False)
    runs.append(tmp_path, entry("recipe", 0, 0.5))
    plan = {"family": "f", "log": "small", "fingerprint": "0" * 64, "settings": [], "variants": ["recipe"]}
    (tmp_path / runs.PLAN).write_text(json.dumps(plan | {"asked": [["recipe", 0]]}))
    assert ladder.main(["report", str(tmp_path), "--out", str(tmp_path / "r")]) == 2
    assert "matplotlib" in capsys.readouterr().err


@pytest.mark.slow  # two programs that import jax and compile, each with a worker that imports it, too
def test_a_killed_ladder_goes_on_on_a_machine_that_has_little(tmp_path):
    array_log.write(cycle_log(), tmp_path / "small.npz")
    command = [
        sys.executable,
        str(LADDER / "ladder.py"),
        *words(tmp_path, "--workers", "1", "--seeds", "0,1", "--commit", "c0ffee"),
    ]
    lines = tmp_path / "out" / runs.RUNS
    with (tmp_path / "said").open("w") as said:  # no pipe: a worker would hold its other end
        first = subprocess.Popen(command, env=spare(tmp_path), stdout=said, stderr=said)
        deadline = time.monotonic() + 600
        while not (lines.is_file() and lines.read_bytes().count(b"\n")) and first.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.wait()
    before = lines.read_bytes()
    assert before.count(b"\n") < 4, (tmp_path / "said").read_text()
    with lines.open("ab") as torn:
        torn.write(b'{"variant": "rec')
    done = subprocess.run(command, env=spare(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert lines.read_bytes().startswith(before)
    found = runs.read(tmp_path / "out")
    assert [(one["variant"], one["seed"]) for one in found] == [(v, s) for v in ("recipe", "time") for s in (0, 1)]
    assert found[3]["changes"] == {"model.rope": "time"} and found[3]["commit"] == "c0ffee"
    assert any((tmp_path / "out" / "compiled").iterdir())
    again = subprocess.run(command, env=spare(tmp_path), capture_output=True, text=True)
    assert "recipe" in again.stdout and "] recipe" not in again.stdout, "nothing is left to do"
    assert ladder.main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "tiny")]) == 0
    assert "Partial" not in (tmp_path / "tiny.md").read_text()
