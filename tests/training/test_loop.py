"""The training loop: it learns, stops, resumes to the bit, and a killed run loses nothing."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_run import ITEMS, Run, fixed

from synergen_jax import config as configs
from synergen_jax.batch import LogSpec
from synergen_jax.config import Config, LossConfig
from synergen_jax.errors import UserError
from synergen_jax.evaluation import protocol
from synergen_jax.sharding import device_mesh
from synergen_jax.training import loop, train_step
from synergen_jax.training.checkpoint import Checkpoints


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir):
    return {line["step"]: line["loss"] for line in lines(workdir) if "loss" in line}


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def assert_equal(a, b):
    """Two states, to the bit."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(run, result, workdir) of 20 uninterrupted steps."""
    workdir = tmp_path_factory.mktemp("whole")
    run = Run()
    return run, run.train(workdir, fixed(0.5)), workdir


def test_what_a_run_writes(whole):
    _, result, workdir = whole
    assert (result.step, result.stopped) == (20, "steps")
    assert result.events_per_second > 0
    assert set(losses(workdir)) == set(range(1, 21))
    first = lines(workdir)[0]
    for name in ("loss/retrieval", "loss/pointwise", "loss/pairwise", "norm/gradient", "norm/update", "norm/parameter"):
        assert np.isfinite(first[name]), name
    assert first["learning_rate"] == 0 < lines(workdir)[2]["learning_rate"]
    assert [line["step"] for line in lines(workdir) if "validation/ndcg@10" in line] == [5, 10, 15, 20]
    assert list((workdir / "tensorboard").iterdir())
    # Equal validations: the newest counts as the best, and two more are kept.
    assert kept(workdir) == [15, 20]


def test_packed_training_learns_too_and_pads_less(whole, tmp_path):
    run = Run(data={"pack": True, "max_history": 16, "batch": 4}, run={"steps": 40})
    run.train(tmp_path, fixed(0.5))
    assert losses(tmp_path)[40] < 0.7 * losses(tmp_path)[1]
    padding = lambda folder: [line["padding"] for line in lines(folder) if "padding" in line]
    assert len(padding(tmp_path)) == 40 and 0 < np.mean(padding(tmp_path)) < 0.25
    assert np.mean(padding(whole[2])) > 0.3, "of the same users, each in a row of half that length"


def test_the_moving_average_is_validated_and_restored(tmp_path):
    run, judged = Run(optimiser={"average": 0.5}, run={"steps": 4, "eval_every": 1, "checkpoint_every": 1}), []

    def validate(params):
        judged.append(jax.device_get(params))
        return {"ndcg@10": 0.5}

    state = run.train(tmp_path, validate).state
    assert_equal(state.served, judged[-1])
    newest = jax.device_get(state.params)
    again = run.train(tmp_path, validate).state  # reads the checkpoint
    assert_equal((again.served, again.params), (judged[-1], newest))
    # From step 9 on the decay is its own; before it is (1 + step) / (10 + step), so that the start is soon forgotten.
    kernel = lambda params: np.asarray(params["model"]["params"]["retrieval_head"]["kernel"])
    np.testing.assert_allclose(kernel(judged[-1]), kernel(judged[-2]) * 4 / 13 + kernel(newest) * 9 / 13, rtol=1e-5)
    assert np.any(kernel(judged[-1]) != kernel(newest))
    plain = Run().train(tmp_path / "plain", fixed(0.5)).state
    assert plain.served is plain.params


SMALLER = [
    "--data.max_history=8",
    "--data.stride=4",
    "--data.batch=4",
    "--data.workers=0",
    "--model.width=16",
    "--model.heads=2",
    "--model.depth=1",
    "--optimiser.warmup=2",
    "--optimiser.learning_rate=1e-2",
    "--run.steps=60",
    "--run.log_every=1",
    "--run.eval_every=60",
    "--run.checkpoint_every=60",
    "--evaluate.batch=16",
    "--evaluate.rank_candidates=4",
    "--mesh.data=1",
]


@pytest.mark.parametrize("recipe", ["ml_1m", pytest.param("ml_20m", marks=pytest.mark.slow)])  # one compiles as long
def test_recipes_train_at_a_reduced_size(recipe, tmp_path):
    config = configs.load(recipe, SMALLER)
    assert config.data.pack and config.data.crop and config.optimiser.average and config.loss.full_softmax
    result = Run(config).train(tmp_path)
    assert losses(tmp_path)[60] < 0.8 * losses(tmp_path)[1]
    assert result.best > 0.6, "what follows what is found"


def test_it_learns_what_follows_what(tmp_path):
    """Every next item follows from the last one: nearly all are found, and the heads tell chosen items from others."""
    run = Run(
        run={"steps": 120, "eval_every": 60, "checkpoint_every": 120},
        model={"dropout": 0.0},
    )
    result = run.train(tmp_path)
    assert losses(tmp_path)[120] < 0.3 * losses(tmp_path)[1]
    found = protocol.evaluate(
        run.model, result.state.params, run.catalogue, run.targets("test"), run.config.evaluate, run.said.append
    )
    assert found.values["model"]["hr@1"] > 0.9 > 0.5 > found.values["most_popular"]["hr@1"]
    assert found.values["model"]["auc/engage"] > found.values["most_popular"]["auc/engage"] + 0.15


def test_resuming_is_exact(whole, tmp_path):
    _, result, workdir = whole
    with pytest.raises(KeyboardInterrupt):
        Run().train(tmp_path, Interrupted())
    again = Run()
    resumed = again.train(tmp_path, fixed(0.5))
    assert "resumed from step 10" in again.said[0]
    assert_equal(resumed.state, result.state)
    assert losses(tmp_path) == losses(workdir)


class Interrupted:
    """A validation that a person interrupts at its third call, at step 15."""

    calls = 0

    def __call__(self, params):
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return {"ndcg@10": 0.5}


def test_a_killed_run_resumes_to_the_bit(whole, tmp_path):
    """20 steps are 10 steps, SIGKILL at step 15, and a second process that goes on."""
    _, result, workdir = whole
    here = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, here / "small_run.py", tmp_path], capture_output=True, text=True, env=environment
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert max(losses(tmp_path)) == 15
    again = Run()
    resumed = again.train(tmp_path, fixed(0.5))
    assert "resumed from step 10" in again.said[0]
    assert_equal(resumed.state, result.state)
    assert losses(tmp_path) == losses(workdir)


def test_a_killed_run_on_all_events_goes_on_to_the_bit_and_serves_the_last_step(tmp_path):
    """Nothing is validated: no patience ends, nothing is the best, and the newest checkpoints alone are kept."""
    changes = {"data": {"split": "none"}, "run": {"patience": 1}}
    whole = Run(**changes)
    result = whole.train(tmp_path / "whole")
    assert (result.step, result.stopped, result.best_step) == (20, "steps", 0)
    assert not any(name.startswith("validation/") for line in lines(tmp_path / "whole") for name in line)
    here = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path])}
    (tmp_path / "run").mkdir()
    program = [sys.executable, here / "small_run.py", tmp_path / "run", "none"]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert 10 in kept(tmp_path / "run") and 20 not in kept(tmp_path / "run")
    again = Run(**changes)
    resumed = again.train(tmp_path / "run")
    assert "resumed from step 10" in again.said[0] and resumed.step == 20
    assert_equal(resumed.state, result.state)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert kept(tmp_path / "run") == kept(tmp_path / "whole") == [15, 20]
    wanted = train_step.abstract_state(again.config, again.model, device_mesh.make_mesh(again.config.mesh))
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        state, info = checkpoints.restore(wanted, best=True)
    assert info["best"] == 0
    assert_equal(state, result.state)
    finished = Run(**changes)
    assert finished.train(tmp_path / "run").best_step == 0 and "nothing to do" in finished.said[-1]


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_to_the_bit(whole, tmp_path):
    """SIGTERM while batch 8 is fetched: step 8 is finished and saved, between two checkpoints and validations."""
    _, result, workdir = whole
    stopped = Run()

    def signalled(step):
        for at, batch in enumerate(stopped.feed(step), start=step + 1):
            if at == 8:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(loop.PreemptedError, match="asked to stop at step 8, whose checkpoint is written") as error:
        stopped.train(tmp_path, fixed(0.5), feed=signalled)
    assert error.value.status == 143 and signal.getsignal(signal.SIGTERM) is before
    assert kept(tmp_path) == [5, 8]
    again = Run()
    resumed = again.train(tmp_path, fixed(0.5))
    assert "resumed from step 8" in again.said[0]
    assert_equal(resumed.state, result.state)
    assert losses(tmp_path) == losses(workdir)


@pytest.mark.slow  # half a minute, to compile for four devices; test_checkpoint restores on another mesh, too
def test_a_run_goes_on_on_another_mesh_and_says_so(whole, tmp_path):
    *_, workdir = whole
    with pytest.raises(KeyboardInterrupt):
        Run().train(tmp_path, Interrupted())
    again = Run(mesh={"data": 4, "model": 2})
    again.train(tmp_path, fixed(0.5))
    assert "resumed from step 10" in again.said[0]
    assert (
        "1 process on a mesh of data 1 x model 1, and goes on with 1 process on a mesh of data 4 x model 2"
        in (again.said[1])
    )
    got, wanted = losses(tmp_path), losses(workdir)
    assert got.keys() == wanted.keys()
    np.testing.assert_allclose([got[step] for step in wanted], list(wanted.values()), atol=1e-4)


def test_a_finished_run_has_nothing_to_do(whole, monkeypatch):
    """Nor is there a fresh state beside the one that is read."""
    _, result, workdir = whole
    again = Run()
    monkeypatch.setattr(train_step, "init_state", None)
    found = again.train(workdir, fixed(0.5))
    assert "nothing to do" in again.said[-1] and found.step == 20
    assert_equal(found.state, result.state)


def test_checkpoints_of_another_log_are_refused(whole):
    *_, workdir = whole
    with pytest.raises(UserError, match="trained on another log"):
        Run().train(workdir, fingerprint="other")


def test_checkpoints_may_be_chosen_by_how_a_label_is_ranked(tmp_path):
    aucs = iter([0.5, 0.9, 0.6, 0.7])
    validate = lambda params: {"ndcg@10": 1.0, "auc/like": next(aucs)}
    result = Run(run={"select": "auc/like"}).train(tmp_path, validate)
    assert (result.best, result.best_step) == (0.9, 10)


def test_early_stopping_keeps_the_best(tmp_path):
    run = Run(run={"steps": 100, "eval_every": 2, "patience": 3, "checkpoint_every": 100, "keep": 1})
    result = run.train(tmp_path, fixed(0.1, 0.4, 0.3, 0.4, 0.2, 0.1))
    # Best at 4, equalled at 8; the third validation without a better one is that of step 10.
    assert (result.step, result.stopped, result.best, result.best_step) == (10, "patience", 0.4, 8)
    assert kept(tmp_path) == [8, 10]
    again = Run(run={"steps": 100, "eval_every": 2, "patience": 3, "checkpoint_every": 100, "keep": 1})
    assert again.train(tmp_path).step == 10 and "nothing to do" in again.said[-1] and "patience 3" in again.said[-1]
    longer = Run(run={"steps": 100, "eval_every": 2, "patience": 4, "checkpoint_every": 100, "keep": 1})
    assert longer.train(tmp_path, fixed(0.1)).step == 12, "one more validation, and patience ends again"


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    """An item with an infinite vector comes up in the fifth batch."""
    run = Run(
        run={"checkpoint_every": 2, "eval_every": 2, "log_every": 100},
        loss={"full_softmax": False, "in_batch": 4},
        data={"negatives": 4},
    )
    bad = ITEMS - 1
    run.catalogue.item_matrices["text"][bad] = np.inf

    def feed(step):
        good = lambda x: np.where(x == bad, 1, x) if x.dtype == np.int32 else x
        for index, batch in enumerate(run.feed(step), start=step + 1):
            batch = jax.tree.map(good, batch)
            if index == 5:
                batch.events.item[0, 0] = bad
            yield batch

    with pytest.raises(loop.NotFiniteError, match=r"^step 5: the loss or its gradient is not finite .*loss nan"):
        run.train(tmp_path, fixed(0.5), feed=feed)
    assert kept(tmp_path) == [2, 4]


def test_batches_that_do_not_fit_the_mesh(tmp_path):
    with pytest.raises(UserError, match=r"data\.batch 9 is not divisible by 8"):
        Run(data={"batch": 9}, mesh={"data": 8}).train(tmp_path)


def test_matrices_that_are_left_out():
    names = Run(model={"leave_out": "text"}).model.config.left_out
    assert names == ["text"]
    with pytest.raises(UserError, match=r"model.leave_out: the log has no matrix 'txt'; did you mean 'text'"):
        Run(model={"leave_out": "txt"})
    with pytest.raises(UserError, match="items have no vectors"):
        Run(model={"leave_out": "text", "item_ids": False})


def test_hard_candidates_lack_the_features_of_shown_ones():
    """One column would tell them from the items of the list: nothing about items would be learned from them."""
    spec = LogSpec(items=9, actions=3, queries=1, labels=("engage",), candidate_features=("price",))
    with pytest.raises(UserError, match=r"loss.hard_candidates: .* \(price\), by which the head .* set it to 0"):
        train_step.make_model(Config(loss=LossConfig(hard_candidates=2)), spec)
    train_step.make_model(Config(), spec)


def test_the_rate_counts_what_steps_are_waited_for(monkeypatch):
    """Steps of 100 events: dispatched at once, waited for ten seconds each; a validation of an hour is a pause."""
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    meter = loop._Meter()
    for _ in range(3):
        meter.add(100)
        now[0] += 10
        meter.waited()
        meter.rate()
        with meter.paused():
            now[0] += 3600
    assert meter.overall() == pytest.approx(10), (
        "200 events in 20 seconds: the first step, which compiles, does not count"
    )
