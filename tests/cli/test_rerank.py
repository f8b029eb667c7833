"""`synergen rerank`: fits the second stage of a run, which an evaluation then measures; and the ceiling beside it."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_place import CONFIG, atomic_files, environment

from synergen_jax.cli.main import main
from synergen_jax.evaluation import model_answers
from synergen_jax.runs import rerank
from synergen_jax.runs.run import open_run
from synergen_jax.sharding.table import place_catalogue

CEILING = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "reranking" / "ceiling.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(data folder, a trained run with a second stage)."""
    root = tmp_path_factory.mktemp("rerank")
    files = atomic_files(root / "files", users=500, items=40)
    (root / "tiny.toml").write_text(CONFIG)
    data, workdir = root / "data", root / "run"
    assert main(["data", "prepare", str(files), "--data-dir", str(data)]) == 0
    assert main(["train", str(root / "tiny.toml"), "--workdir", str(workdir), "--data-dir", str(data)]) == 0
    assert main(["rerank", str(workdir), "--data-dir", str(data), "--evaluate.rerank", "20"]) == 0
    return data, workdir


def run(capsys, *arguments):
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err.splitlines()


def test_it_leaves_what_the_documentation_names(place):
    folder = place[1] / "ranker"
    assert {path.name for path in folder.iterdir()} == {"ranker.json", "ranker.msgpack", "statistics.npz"}
    about = json.loads((folder / "ranker.json").read_text())
    assert about["first"] == 20 and about["part"] == "validation"


def test_an_evaluation_measures_it_on_the_test_part_alone(place, capsys, tmp_path):
    data, workdir = place
    out = "--out", tmp_path / "out", "--data-dir", data, "--json"
    status, lines, errors = run(capsys, "evaluate", workdir, *out)
    assert (status, errors) == (0, [])
    found = json.loads(lines[-1])
    assert {"hr@10", "ndcg@10", "mrr"} <= set(found["model_second_stage"])
    assert found["model_second_stage"]["hr@50"] == pytest.approx(found["model"]["hr@50"])
    status, lines, errors = run(capsys, "evaluate", workdir, "--split", "validation", *out)
    assert (status, errors) == (0, []) and "model_second_stage" not in json.loads(lines[-1])
    assert any("it was fitted on the validation part" in line for line in lines)


def test_what_is_measured_is_what_it_says_of_each_list(place):
    data, workdir = place
    opened = open_run(workdir, [], data)
    second = rerank.second_stage(opened)
    asked = model_answers.PlacedModel.of(
        opened.run.model, opened.params, place_catalogue(opened.run.catalogue, opened.mesh)
    )
    batch = next(iter(opened.run.targets("test")))
    found = model_answers.retrieved(asked, batch, 20)
    score = second(batch, *found)
    lists, beside = rerank.collect(opened, second.features, "test", 20)
    real = batch.user >= 0
    np.testing.assert_allclose(second.ranker.scores(lists.feature)[: real.sum()], score[real], rtol=1e-5, atol=1e-5)
    assert (lists.target >= 0).tolist() == (beside["ranks"][:, 1] <= 20).tolist()
    hit = lists.target >= 0
    np.testing.assert_array_equal(lists.target[hit] + 1, beside["ranks"][hit, 0])


def test_a_second_stage_of_another_checkpoint_is_refused(place, capsys, tmp_path):
    data, workdir = place
    copy = pathlib.Path(shutil.copytree(workdir, tmp_path / "run"))
    said = json.loads((copy / "ranker" / "ranker.json").read_text())
    (copy / "ranker" / "ranker.json").write_text(json.dumps(said | {"step": said["step"] + 1}))
    status, _, errors = run(capsys, "evaluate", copy, "--data-dir", data)
    assert status == 2 and "fit it again: `synergen rerank" in errors[0] and len(errors) == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--evaluate.rerank", "0"], "there is no list to order"),
        (["--lists", "30"], "a ranker needs 20 lists"),
        (["--lists", "0"], "--lists is a whole number from 1 up"),
        (["--model.width", "32"], "model.width is fixed by training"),
    ],
)
def test_what_cannot_be_fitted_leaves_what_was_there(place, capsys, arguments, words):
    data, workdir = place
    before = {path: path.read_bytes() for path in (workdir / "ranker").iterdir()}
    status, _, errors = run(capsys, "rerank", workdir, "--data-dir", data, *arguments)
    assert status == 2 and words in errors[0] and len(errors) == 1
    assert {path: path.read_bytes() for path in (workdir / "ranker").iterdir()} == before
    assert not (workdir / "ranker.tmp").exists()


def test_a_full_disk_leaves_what_was_there(place, capsys, monkeypatch):
    data, workdir = place
    before = {path: path.read_bytes() for path in (workdir / "ranker").iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rerank.Statistics, "save", full)
    status, _, errors = run(capsys, "rerank", workdir, "--data-dir", data, "--evaluate.rerank", "20")
    assert status == 2 and "No space left on device" in errors[0]
    assert {path: path.read_bytes() for path in (workdir / "ranker").iterdir()} == before
    assert not (workdir / "ranker.tmp").exists()


def test_the_ceiling(place, tmp_path):
    pytest.importorskip("lightgbm")
    data, workdir = place
    out = tmp_path / "ceiling.json"
    command = [sys.executable, CEILING, workdir, "--data-dir", data, "--json", out, "--without"]
    ask = lambda *columns: subprocess.run([*command, *columns], capture_output=True, text=True, env=environment())
    done = ask("popularity", "--without", "age")
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    found = told["tasks"]["all"]["ndcg@10"]
    both = {"second stage", "second stage, without", "lightgbm", "lightgbm, without"}
    assert set(found) == {"retrieval", "head", "oracle"} | both and told["without"] == ["popularity", "age"]
    assert found["oracle"] == max(found.values()) and all(name in done.stdout for name in both)
    done = ask("popular")
    assert done.returncode == 2 and "--without: there is no column 'popular'; there are score, " in done.stderr
