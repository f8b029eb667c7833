"""Regressions and LightGBM within shown lists, beside the runs of a sweep: experiments/reranking/shown_lists.py."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from small_place import environment

from synergen_jax.cli.main import main

pytest.importorskip("lightgbm")
SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "reranking" / "shown_lists.py"


def first_is_clicked(path):
    """Sixty users who look at one hotel, and then click the first one of three lists."""
    rng, rows = np.random.default_rng(0), []
    for user in range(60):
        time = int(rng.integers(1_000_000, 1_080_000))
        for step in range(1, 5):
            listed, price = rng.permutation(40)[:6] + 1, rng.integers(20, 300, 6)
            shown = [None, None] if step == 1 else ["|".join(map(str, values)) for values in (listed, price)]
            action = "interaction item image" if step == 1 else "clickout item"
            row = f"u{user}", f"s{user}", time + 9 * step, step, action, str(listed[0]), "Oslo", None, *shown
            rows.append(row)
    names = "user_id session_id timestamp step action_type reference city current_filters impressions prices"
    pl.DataFrame(rows, schema=names.split(), orient="row", infer_schema_length=None).write_parquet(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where logs lie, and a run that was evaluated and one that was not."""
    place = tmp_path_factory.mktemp("shown")
    first_is_clicked(place / "trips.parquet")
    data = ["--data-dir", str(place)]
    assert main(["data", "prepare", "trivago", "--source", str(place / "trips.parquet"), *data]) == 0
    small = "--data.log trips --data.batch 8 --data.negatives 8 --data.max_history 8 --data.stride 8 --loss.in_batch 8"
    small += " --model.width 16 --run.steps 2 --run.eval_every 2 --run.checkpoint_every 2"
    assert main(["train", "trivago", "--workdir", str(place / "0"), *small.split(), *data]) == 0
    shutil.copytree(place / "0", place / "1")
    settings = ["--evaluate.scann", "false", "--evaluate.bootstrap", "10"]
    assert main(["evaluate", str(place / "0"), "--split", "test", *settings, *data]) == 0
    return place


def script(place, *arguments):
    command = [sys.executable, SCRIPT, *arguments, "--data-dir", place]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


def test_what_goes_by_the_features_is_measured_on_the_lists_of_the_runs(runs, tmp_path):
    out = tmp_path / "found.json"
    done = script(runs, runs / "0", "--only", "price,again", "--json", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    evaluated = json.loads((runs / "0" / "evaluation_test.json").read_text())["shown"]
    assert set(found["mrr"]) == {"runs", "regression on 2", "regression on all 16", "lightgbm"}
    mean = {name: value["mean"] for name, value in found["mrr"].items()}
    assert mean["runs"] == pytest.approx(evaluated["model"]["list_mrr"]["mean"])
    assert mean["regression on all 16"] == pytest.approx(evaluated["feature_regression"]["list_mrr"]["mean"], abs=1e-6)
    assert mean["regression on all 16"] > 0.95 > 0.8 > mean["regression on 2"]
    for name, lead in found["lead"].items():
        assert (
            lead["mean"] == pytest.approx(mean["runs"] - mean[name]) == pytest.approx(found["seeds"][name][0], abs=1e-4)
        )
    assert f"{found['lists']} shown lists, MRR" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0", "--only", "prize"], "--only prize: the log's candidate features are position, price"),
        (["1"], "1: there are"),
    ],
)
def test_what_is_not_there_is_told(runs, arguments, message):
    done = script(runs, runs / arguments[0], *arguments[1:])
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
