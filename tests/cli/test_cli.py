"""The command line: the happy path on a tiny log, and one clear line and status 2 for everything that is wrong."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from small_place import Place, atomic_files, owner

from synergen_jax.cli import data, evaluate
from synergen_jax.cli.main import main
from synergen_jax.errors import UserError
from synergen_jax.evaluation import protocol, report
from synergen_jax.runs import train as training
from synergen_jax.runs import workdir


def run(capsys, *arguments):
    """(status, lines of stdout, lines of stderr)."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err.splitlines()


def contents(folder):
    """Every path below a folder, and the bytes of every file."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(pathlib.Path(folder).rglob("*"))}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("cli"))
    assert main(["data", "prepare", str(made.files), "--data-dir", str(made.data)]) == 0
    assert main(list(map(str, made.train(made.workdir)))) == 0
    return made


@pytest.fixture
def refused(place, capsys):
    """`refused(arguments, *words)`: status 2, one line with these words on stderr, and nothing written anywhere."""

    def check(arguments, *words):
        before = contents(place.data.parent)
        status, _, errors = run(capsys, *arguments)
        assert status == 2 and len(errors) == 1, errors
        assert errors[0].startswith("synergen: error: ")
        for word in words:
            assert str(word) in errors[0]
        after = contents(place.data.parent)
        assert after.keys() == before.keys() and after == before
        return errors[0]

    return check


# --- what works -------------------------------------------------------------------------------------------------


def test_prepare_says_what_the_log_holds(place, capsys):
    status, lines, errors = run(capsys, "data", "prepare", place.files, "--data-dir", place.data, "--json")
    assert (status, errors) == (0, [])
    found = json.loads(lines[-1])
    assert (found["log"], found["users"], found["items"]) == ("tiny", 24, 20)
    assert found["path"] == str(place.data / "logs" / "tiny")


def test_a_run_leaves_what_the_documentation_names(place):
    for name in (
        "config.json",
        "log.json",
        "metrics.jsonl",
        "curves.png",
        "tensorboard",
        "checkpoints/2",
        "checkpoints/4",
    ):
        assert (place.workdir / name).exists(), name
    steps = [json.loads(line)["step"] for line in (place.workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 4, 4]  # losses at each step, validations at 2 and 4


def test_a_finished_run_has_nothing_to_do(place, capsys, tmp_path):
    workdir = place.copy(tmp_path / "run")
    before = contents(workdir / "checkpoints")
    status, lines, errors = run(capsys, *place.train(workdir, "--json"))
    assert (status, errors) == (0, [])
    assert any(line.startswith("nothing to do") for line in lines)
    assert json.loads(lines[-1])["step"] == 4
    assert contents(workdir / "checkpoints") == before


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


@pytest.mark.parametrize("part", ["validation", "test"])
def test_evaluate(place, capsys, tmp_path, part):
    workdir = place.copy(tmp_path / "run")
    status, lines, errors = run(capsys, "evaluate", workdir, "--split", part, "--data-dir", place.data, "--json")
    assert (status, errors) == (0, [])
    found = json.loads(lines[-1], parse_constant=no_constant)
    for system in ("model", "most_popular"):
        for name in ("hr@10", "ndcg@10"):
            assert 0 <= found[system][name] <= 1
        assert found[system]["ndcg@10"] <= found[system]["hr@10"]
    assert (found["split"], found["targets"], found["log"]) == (part, 24, "tiny")
    assert f"{part} split" in found["protocol"] and "intervals are a 95% bootstrap over users" in found["protocol"]
    assert any(line.startswith("95% bootstrap over users, of the model: HR@10 [") for line in lines)
    assert json.loads((workdir / f"evaluation_{part}.json").read_text()) == found
    assert (workdir / f"report_{part}.html").read_text().startswith("<!")
    best = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    if part == "validation" and found["step"] == 4:
        assert found["model"]["ndcg@10"] == pytest.approx(best["validation/ndcg@10"])


def test_an_evaluation_goes_to_another_folder(place, capsys, tmp_path):
    before, out = contents(place.workdir), tmp_path / "new" / "folder"
    status, lines, errors = run(capsys, "evaluate", place.workdir, "--out", out, "--data-dir", place.data, "--json")
    assert (status, errors) == (0, []) and f"report: {out / 'report_test.html'}" in lines
    assert {path.name for path in out.iterdir()} == {
        "each_test.npz",
        "evaluation_test.json",
        "report_test.html",
        "curves.png",
    }
    assert json.loads((out / "evaluation_test.json").read_text()) == json.loads(lines[-1])
    assert contents(place.workdir) == before


def test_a_folder_that_cannot_be_written_is_told_before_the_work(place, refused, monkeypatch, tmp_path):
    def work(*_, **__):
        raise AssertionError("this is the work")

    monkeypatch.setattr(protocol, "evaluate", work)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    arguments = ["evaluate", place.workdir, "--data-dir", place.data]
    refused([*arguments, "--out", out], f"{out} cannot be written (Not a directory)", f"{place.workdir} --out FOLDER")

    def read_only(**_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(workdir.tempfile, "TemporaryFile", read_only)
    refused(arguments, f"{place.workdir} cannot be written (Read-only file system)", "--out FOLDER")
    monkeypatch.setattr(training, "_train", work)
    (tmp_path / "family.toml").write_text(f'base = "{place.config}"\n[variants.one]\n')
    family = ["sweep", tmp_path / "family.toml", "--workdir", place.data.parent, "--data-dir", place.data]
    refused(family, f"{place.data.parent} cannot be written (Read-only file system)", "another --workdir")


@pytest.mark.parametrize("part", ["write_json", "html_page", "plot_curves"])
def test_what_was_found_is_printed_where_it_cannot_be_written(place, capsys, monkeypatch, tmp_path, part):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workdir if part == "write_json" else report, part, full)
    arguments = "evaluate", place.workdir, "--out", tmp_path, "--data-dir", place.data
    status, lines, errors = run(capsys, *arguments, "--json")
    assert status == 2 and any(line.startswith("most_popular ") for line in lines)
    assert json.loads(lines[-1])["targets"] == 24
    how = f"`synergen evaluate {place.workdir} --out FOLDER` writes elsewhere"
    assert errors == [f"synergen: error: {tmp_path} cannot be written (No space left on device): {how}"]
    assert run(capsys, *arguments)[1][-1] != lines[-1]


def test_metrics_that_cannot_be_drawn_do_not_lose_what_was_found(place, capsys, tmp_path):
    folder = place.copy(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("{")
    status, lines, errors = run(capsys, "evaluate", folder, "--data-dir", place.data, "--json")
    assert status == 2 and json.loads(lines[-1])["targets"] == 24 and len(errors) == 1 and "metrics.jsonl" in errors[0]


def test_half_a_json_file_is_not_left_behind(tmp_path, monkeypatch):
    def full(path, text, **_):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(UserError, match="No space"):
        workdir.write_json(tmp_path / "one.json", {})
    assert not list(tmp_path.iterdir())


def test_an_evaluation_may_change_its_own_settings(place, capsys, tmp_path):
    workdir = place.copy(tmp_path / "run")
    status, lines, _ = run(
        capsys, "evaluate", workdir, "--evaluate.bootstrap", "0", "--data.filter_seen=false", "--json"
    )
    assert status == 0
    found = json.loads(lines[-1])
    assert found["intervals"]["model"] == {} and "seen items kept" in found["protocol"]
    assert "bootstrap" not in found["protocol"] and "expected over a random order" in found["protocol"]


def test_recommend_to_a_user(place, capsys):
    arguments = ("recommend", place.workdir, "--user", "u3", "-k", "5", "--data-dir", place.data, "--json")
    status, lines, errors = run(capsys, *arguments)
    assert (status, errors) == (0, [])
    found = json.loads(lines[-1])
    answer = found["recommendations"]
    assert [row["rank"] for row in answer] == [1, 2, 3, 4, 5]
    scores = [row["score"] for row in answer]
    assert scores == sorted(scores, reverse=True)
    had = {row["item"] for row in found["history"]}
    assert len(had) == found["events"] and not had & {row["item"] for row in answer}
    assert all(0 <= row[label] <= 1 for row in answer for label in ("engage", "like"))  # 1 after four steps: rounded
    ordered = json.loads(run(capsys, *arguments, "--order", "like")[1][-1])["recommendations"]
    likes = [row["like"] for row in ordered]
    assert likes == sorted(likes, reverse=True)


def test_recommend_to_a_history(place, capsys, tmp_path):
    """The history of a user, written to a file, gets that user's own recommendations."""
    arguments = ("recommend", place.workdir, "--data-dir", place.data, "--json")
    known = json.loads(run(capsys, *arguments, "--user", "u5")[1][-1])
    times = [10**9 + 5000 + 60 * n for n in range(known["events"])]
    rows = [f"{row['item']},{row['action']},{time}\n" for row, time in zip(known["history"], times)]
    file = tmp_path / "history.csv"
    file.write_text("item,action,time\n" + "".join(rows))
    status, lines, errors = run(capsys, *arguments, "--history", file)
    assert (status, errors) == (0, [])
    assert json.loads(lines[-1])["recommendations"] == known["recommendations"]
    file.write_text("item\ni1\ni2\n")
    found = json.loads(run(capsys, *arguments, "--history", file)[1][-1])
    assert found["events"] == 2 and len(found["recommendations"]) == 10


def test_recommend_to_nobody_in_particular(place, capsys):
    arguments = ("recommend", place.workdir, "-k", "3", "--data-dir", place.data)
    status, lines, errors = run(capsys, *arguments)
    assert (status, errors) == (0, []) and lines[0] == "recommended, without a history"
    found = json.loads(run(capsys, *arguments, "--json")[1][-1])
    assert (found["events"], found["history"], len(found["recommendations"])) == (0, [], 3)


@pytest.mark.parametrize("order", [(), ("--order", "like")])
def test_more_than_there_is_gives_what_there_is(place, capsys, order):
    """Of 20 items a user of n events has had n, since nobody repeats one; all others come back, and it says so."""
    arguments = ("recommend", place.workdir, "--user", "u3", "-k", "99999", "--data-dir", place.data, *order)
    status, lines, errors = run(capsys, *arguments, "--json")
    assert (status, errors) == (0, [])
    found = json.loads(lines[-1])
    left = 20 - found["events"]
    assert (found["asked"], found["given"], len(found["recommendations"])) == (99999, left, left)
    assert (
        lines[-2]
        == f"{left} items in place of 99999: there are no more that can be recommended and that user u3 has not had"
    )


def test_a_user_who_had_everything(place, capsys, tmp_path):
    file = tmp_path / "all.csv"
    file.write_text("item\n" + "".join(f"i{n}\n" for n in range(20)))
    status, lines, errors = run(
        capsys, "recommend", place.workdir, "--history", file, "--data-dir", place.data, "--order", "like", "--json"
    )
    assert (status, errors) == (0, [])
    found = json.loads(lines[-1])
    assert found["recommendations"] == [] and found["given"] == 0
    assert f"0 items in place of 10: there are no more that can be recommended and that {file} has not had" in lines


def test_an_action_that_a_history_does_not_give_is_named(place, capsys, tmp_path):
    from data_pipelines.event_log.event_log import EventLog
    from data_pipelines.sources.prepare import locate

    log = EventLog.load(locate("tiny", place.data))
    counts = np.bincount(np.concatenate([log[user]["action"] for user in range(len(log))]))
    usual = log.actions[int(counts.argmax())]
    file = tmp_path / "history.csv"
    arguments = ("recommend", place.workdir, "--history", file, "--data-dir", place.data, "--json")
    file.write_text("item\ni1\ni2\n")
    _, lines, _ = run(capsys, *arguments)
    assert f"rows of items without an action are read as {usual!r}, the commonest" in lines
    assumed = json.loads(lines[-1])
    assert assumed["assumed_actions"] == {"item": usual}
    file.write_text(f"item,action\ni1,{usual}\ni2,{usual}\n")
    given = json.loads(run(capsys, *arguments)[1][-1])
    assert given["recommendations"] == assumed["recommendations"] and "assumed_actions" not in given


def test_settings_may_stand_before_options(place, capsys):
    arguments = ["train", place.config, "--model.width", "16", "--workdir", place.workdir, "--data-dir", place.data]
    status, _, errors = run(capsys, *arguments)
    assert status == 2 and "model.width 8 -> 16" in errors[0]


def test_an_interruption_is_status_130(place, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "run", interrupted)
    assert run(capsys, "evaluate", place.workdir) == (130, [], ["synergen: interrupted"])


# --- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("COMMAND", "`synergen --help`")),
        (["trian"], ("'trian'", "train", "evaluate")),
        (["data"], ("ACTION",)),
        (["train"], ("config", "--workdir", "`synergen train --help`")),
        (["evaluate"], ("workdir",)),
        (["evaluate", "x", "--split", "tset"], ("--split", "'tset'", "validation")),
        (["recommend"], ("workdir",)),
        (["recommend", "x", "--users", "all"], ("--users", "--out")),
        (["recommend", "x", "--user", "1", "-k", "many"], ("-k", "'many'")),
        (["recommend", "x", "--user", "1", "--colour"], ("'--colour'",)),
        (["data", "prepare", "ml-100k", "--colour"], ("'--colour'",)),
    ],
)
def test_wrong_arguments(refused, arguments, words):
    refused(arguments, *words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--model.widht", "8"], ("model.widht", "did you mean 'width'")),
        (["--modle.width", "8"], ("'modle'", "did you mean 'model'")),
        (["--model.width", "abc"], ("model.width", "a whole number", "'abc'")),
        (["--model.width", "8.5"], ("model.width", "a whole number")),
        (["--model.width"], ("model.width", "needs a value")),
        (["--model.normalise", "yes"], ("model.normalise", "true or false")),
        (["--model.rope", "spilt"], ("model.rope", "did you mean 'split'")),
        (["--optimiser.learning_rate", "nan"], ("optimiser.learning_rate", "nan")),
        (["--optimiser.b1", "inf"], ("optimiser.b1", "inf")),
        (["--optimiser.b2", "1"], ("optimiser.b2", "below 1")),
        (["--run.steps", "0"], ("run.steps", "at least 1")),
        (["--run.seed", "-1"], ("run.seed", "at least 0")),
        (["--data.seed", str(2**32)], ("data.seed", "below")),
        (["--data.max_history", "1"], ("data.max_history", "at least 2")),
        (["colour"], ("'colour'", "--section.key VALUE")),
        (["--data.log", "tinny"], ("'tinny'", "prepared: tiny", "synergen data prepare")),
        (["--data.batch", "12", "--mesh.data", "8"], ("data.batch 12", "mesh.data 8", "16")),
        (["--data.batch", "8", "--mesh.data", "-1", "--optimiser.accumulate", "2"], ("data.batch 8", "16")),
        (["--mesh.data", "16"], ("16", "8")),
        (["--mesh.model", "4"], ("mesh.model 4",)),  # two heads
        (
            ["--data.split", "time", "--data.validation_from", "0.9", "--data.test_from", "0.5"],
            ("data.validation_from",),
        ),
        (["--data.split", "time", "--data.test_from", "3e9"], ("data.test_from", "cuts nothing")),
        (["--run.select", "ndgc@10"], ("run.select", "did you mean 'ndcg@10'")),
        (["--run.select", "auc/liek"], ("run.select", "'liek'", "did you mean 'like'")),
    ],
)
def test_wrong_settings(refused, place, tmp_path, settings, words):
    refused(place.train(tmp_path / "new", *settings), *words)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[model\n", ("cannot be read as a config", "line 1")),
        ("[modle]\n", ("[modle]", "did you mean 'model'")),
        ("[model]\nwidht = 8\n", ("model.widht", "did you mean 'width'")),
        ('[model]\nwidth = "8"\n', ("model.width", "a whole number", "'8'")),
        ("[model]\nwidth = 8.0\n", ("model.width", "a whole number")),
        ("[model]\nnormalise = 1\n", ("model.normalise", "true or false")),
        ("model = 8\n", ("[model]", "table")),
        ("[optimiser]\nlearning_rate = nan\n", ("optimiser.learning_rate", "nan")),
        ("[optimiser]\nfinal = inf\n", ("optimiser.final", "inf")),
        (f"[optimiser]\nfinal = {10**400}\n", ("optimiser.final", "a number")),
        ("", ("no prepared log 'ml-100k'", "prepared: tiny")),  # all defaults, MovieLens among them
    ],
)
def test_wrong_config_files(refused, place, tmp_path, text, words):
    file = tmp_path / "x.toml"
    file.write_text(text)
    refused(["train", file, "--workdir", tmp_path / "new", "--data-dir", place.data], *words)
    assert not (tmp_path / "new").exists()


def test_configs_that_are_not_there(refused, place, tmp_path):
    arguments = ("--workdir", tmp_path / "new", "--data-dir", place.data)
    refused(["train", "quikstart", *arguments], "'quikstart'", "did you mean 'quickstart'")
    refused(["train", tmp_path, *arguments], tmp_path, "shipped configs")
    refused(
        ["quickstart", "--data.log", "tiny", *arguments], "quickstart is on ml-100k", "train quickstart --data.log tiny"
    )
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    refused(["train", tmp_path / "bytes.toml", *arguments], "bytes.toml")


# --- data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "reason"),
    [("u1\ti1\t3\n", "3 columns, not 4"), ("u1\ti1\tthree\t100\n", "'three'"), ("u1\ti1\t3\t-7\n", "'-7'")],
)
def test_a_bad_row_is_named_by_file_and_line(refused, tmp_path, row, reason):
    folder = atomic_files(tmp_path / "bad")
    lines = (folder / "tiny.inter").read_text().splitlines(keepends=True)
    (folder / "tiny.inter").write_text("".join([*lines[:6], row, *lines[6:]]))
    refused(["data", "prepare", folder, "--data-dir", tmp_path / "data"], f"{folder / 'tiny.inter'}:7: ", reason)
    assert not (tmp_path / "data").exists()


def test_sources_that_are_not_there(refused, tmp_path):
    refused(["data", "prepare", "ml-1ook", "--data-dir", tmp_path / "data"], "'ml-1ook'", "ml-100k")
    refused(["data", "prepare", "ml-100k", "--source", tmp_path / "x", "--data-dir", tmp_path / "data"], tmp_path / "x")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04")
    arguments = ["data", "prepare", "ml-1m", "--source", tmp_path / "cut.zip", "--data-dir", tmp_path / "data"]
    refused(arguments, tmp_path / "cut.zip", "not a whole")
    refused(["data", "prepare", tmp_path, "--data-dir", tmp_path / "data"], tmp_path, ".inter")
    assert not (tmp_path / "data").exists()


def damaged_log(place, folder, damage):
    """A copy of the data folder and of the run, whose log `damage(log folder)` has changed."""
    shutil.copytree(place.data, folder / "data")
    damage(folder / "data" / "logs" / "tiny")
    workdir = place.copy(folder / "run")
    about = json.loads((workdir / "log.json").read_text()) | {"path": str(folder / "data" / "logs" / "tiny")}
    (workdir / "log.json").write_text(json.dumps(about))
    return workdir


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda log: (log / "items.json").unlink(), ("items.json", "missing")),
        (lambda log: cut(log / "items.json"), ("items.json", "damaged", "bytes")),
        (lambda log: cut(log / "lengths.npy"), ("lengths.npy", "damaged")),
        (lambda log: cut(next(log.rglob("*.array_record*"))), ("array_record", "damaged")),
        (lambda log: cut(log / "log.json"), ("damaged",)),
        (lambda log: (log / "log.json").unlink(), ("log",)),
        (lambda log: shutil.rmtree(log), ("no prepared log 'tiny'",)),
    ],
)
def test_a_log_with_a_missing_or_truncated_file(refused, place, tmp_path, damage, words):
    workdir = damaged_log(place, tmp_path, damage)
    before = contents(tmp_path)
    data = ["--data-dir", tmp_path / "data"]
    for arguments in (
        ["evaluate", workdir, *data],
        ["recommend", workdir, "--user", "u3", *data],
        ["train", place.config, "--workdir", tmp_path / "new", *data],
    ):
        refused(arguments, "prepare", *words)
    assert contents(tmp_path) == before


def test_records_of_the_right_size_that_cannot_be_read(refused, place, tmp_path):
    def scramble(log):
        shard = next(log.rglob("*.array_record*"))
        shard.write_bytes(bytes(reversed(shard.read_bytes())))

    workdir = damaged_log(place, tmp_path, scramble)
    refused(["evaluate", workdir, "--data-dir", tmp_path / "data"], tmp_path / "data", "prepare the log again")


# --- users and histories ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--user", "u999"], ("no user 'u999'", "near it")),
        (["--user", ""], ("no user ''",)),
        (["--user", "u3", "-k", "0"], ("k = 0",)),
        (["--user", "u3", "-k", "-1"], ("k = -1",)),
        (["--user", "u3", "-k", "0", "--order", "like"], ("k = 0",)),
        (["--user", "u3", "-k", "-1", "--order", "like"], ("k = -1",)),
        (["--user", "u3", "--order", "lik"], ("'lik'", "engage, like")),
        (["--user", "u3", "--at", "1"], ("--at 1", "before the last event")),
        (["--user", "u3", "--at", str(10**11)], ("--at", "30 years")),
        (["--user", "u3", "--at", str(1_700_000_000_000)], ("--at", "give Unix seconds")),  # milliseconds
    ],
)
def test_wrong_questions(refused, place, arguments, words):
    refused(["recommend", place.workdir, "--data-dir", place.data, *arguments], *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item\ni1\ni77\n", ("line 3", "'i77' is not in tiny", "did you mean")),
        ("item\n\n\ni77\n", ("line 4", "'i77'")),
        ("item\n77\n", ("line 2", "'77'")),
        ("", ("the file is empty",)),
        ("item\n", ("rows",)),
        ("film\ni1\n", ("no column 'item'", "it has film")),
        ("item,item\ni1,i2\n", ("'item'",)),
        ("item\ni1,rating-5\n", ("line 2", "2 columns where the header has 1")),
        ("item,action\ni1,rating-9\n", ("line 2", "'rating-9'", "rating-5")),
        ("item,time\ni1,yesterday\n", ("line 2", "'yesterday'")),
        ("item,time\ni1,-5\n", ("line 2", "before 1970")),
        ("item,time\ni1,1\ni2,3000000000\n", ("column 'time'", "cannot be told")),
        (b"item\n\xff\n", ("line 2", "not UTF-8")),
        (b"item\ni\x001\n", ("line 2", "a NUL byte")),
    ],
)
def test_wrong_histories(refused, place, tmp_path, text, words):
    file = tmp_path / "history.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(["recommend", place.workdir, "--history", file, "--data-dir", place.data], file, *words)


def test_a_history_that_is_not_there(refused, place, tmp_path):
    refused(["recommend", place.workdir, "--history", tmp_path / "none.csv"], "none.csv")
    refused(["recommend", place.workdir, "--history", tmp_path], tmp_path)


# --- workdirs ---------------------------------------------------------------------------------------------------


def test_a_workdir_of_another_config(refused, place):
    refused(place.train(place.workdir, "--model.depth", "2"), place.workdir, "model.depth 1 -> 2", "another --workdir")
    refused(["evaluate", place.workdir, "--model.width", "16"], "model.width", "fixed by training")
    refused(["evaluate", place.workdir, "--colour", "red"], "'--colour'", "--section.key VALUE")


def test_a_workdir_of_another_log(refused, place, tmp_path, capsys):
    files = atomic_files(tmp_path / "files", users=20)
    assert run(capsys, "data", "prepare", files, "--data-dir", tmp_path / "data")[0] == 0
    refused(
        ["train", place.config, "--workdir", place.workdir, "--data-dir", tmp_path / "data"],
        place.workdir,
        "another log",
        "another --workdir",
    )
    # The log under the same path has changed since.
    workdir = place.copy(tmp_path / "run")
    about = json.loads((workdir / "log.json").read_text()) | {"path": str(tmp_path / "data" / "logs" / "tiny")}
    (workdir / "log.json").write_text(json.dumps(about))
    refused(["evaluate", workdir], workdir, "another log", "prepare that log again")


def test_workdirs_that_are_none(refused, place, tmp_path):
    file, empty, other = tmp_path / "file", tmp_path / "empty", tmp_path / "other"
    file.write_text("x")
    empty.mkdir()
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    for folder in (file, empty, other, tmp_path / "none"):
        refused(["evaluate", folder], folder, "no workdir")
        refused(["recommend", folder, "--user", "u3"], folder, "no workdir")
    for folder in (file, other):
        refused(place.train(folder), folder, "no workdir")
    refused(place.train(file / "below"), file)
    assert file.read_text() == "x" and [path.name for path in other.iterdir()] == ["thesis.tex"]
    assert not any(empty.iterdir()) and not (tmp_path / "none").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is unwritable to root")
def test_an_unwritable_folder(refused, place, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    refused(place.train(tmp_path / "locked" / "run"), tmp_path / "locked")
    refused(["data", "prepare", place.files, "--data-dir", tmp_path / "locked"], tmp_path / "locked")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "[]", ("config.json", "table")),
        ("config.json", "{", ("config.json", "cannot be read")),
        ("log.json", "[]", ("log.json", "damaged")),
        ("log.json", "{}", ("log.json", "damaged")),
        ("log.json", None, ("no workdir",)),
    ],
)
def test_a_damaged_workdir(refused, place, tmp_path, name, text, words):
    workdir = place.copy(tmp_path / "run")
    (workdir / name).write_text(text) if text is not None else (workdir / name).unlink()
    before = contents(workdir)
    refused(["evaluate", workdir], *words)
    refused(place.train(workdir), *words[:1])
    assert contents(workdir) == before


def edit(workdir, **changes):
    """Writes other settings into config.json, {section__key: value}; `...` removes one."""
    tree = json.loads((workdir / "config.json").read_text())
    for name, value in changes.items():
        section, key = name.split("__")
        tree[section][key] = value
        if value is ...:
            del tree[section][key]
    (workdir / "config.json").write_text(json.dumps(tree))


def before_21513a6(workdir):
    """Makes the checkpoints say no more than those of that version do."""
    for file in (workdir / "checkpoints").glob("*/info/metadata"):
        info = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in info.items() if k not in ("config", "spec", "phase")}))


def every(place, workdir):
    return ["evaluate", workdir], ["recommend", workdir, "--user", "u3"], place.train(workdir)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__width": 16}, ["model.width was 8 when they were trained and is 16 now"]),
        ({"model__width": ...}, ["model.width was 8 when they were trained and is 64 now"]),
        (
            {"model__rope": "time", "data__seed": 3},
            ["data.seed was 0 when they were trained and is 3 now, model.rope was 'split'", "and is 'time' now"],
        ),
        ({"data__filter_seen": False}, ["data.filter_seen was True"]),
        ({"model__dtype": "bfloat16"}, ["model.dtype was 'float32'"]),
    ],
)
def test_an_edited_config_is_told_by_its_keys(refused, place, tmp_path, changes, words):
    """Some would answer otherwise without an error, since no array has another shape."""
    workdir = place.copy(tmp_path / "run")
    edit(workdir, **changes)
    before = contents(workdir)
    for arguments in every(place, workdir):
        error = refused(arguments, f"{workdir / 'config.json'} does not fit the checkpoints: ", *words, "put back what")
        assert "move" not in error and "another --workdir" not in error
    assert contents(workdir) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__width": 16}, ["params/model/params/action (6, 8), not (6, 16)"]),
        ({"model__depth": 2}, ["params/model/params/block_1/attention_norm/scale none, not (8,)"]),
        ({"optimiser__average": 0.9}, ["opt_state/average/model/params/action none, not (6, 8)"]),
    ],
)
def test_checkpoints_that_do_not_keep_the_config_are_told_by_their_arrays(refused, place, tmp_path, changes, words):
    workdir = place.copy(tmp_path / "run")
    before_21513a6(workdir)
    edit(workdir, **changes)
    before = contents(workdir)
    *reading, training = every(place, workdir)
    for arguments in reading:
        error = refused(arguments, "config.json does not fit the checkpoints", workdir / "checkpoints", *words)
        assert "move" not in error
    refused(training, "belongs to another config", "the first is that of its config.json")
    assert contents(workdir) == before


def test_runs_of_before_go_on_and_answer_as_they_did(place, capsys, tmp_path):
    workdir = place.copy(tmp_path / "run")
    before_21513a6(workdir)
    shutil.rmtree(workdir / "checkpoints" / "4")
    with np.load(workdir / "counts.npz") as found:
        np.savez_compressed(workdir / "counts.npz", items=found["items"], queries=found["queries"])
    assert run(capsys, "recommend", workdir, "--user", "u3")[0] == 0
    status, lines, errors = run(capsys, *place.train(workdir))
    assert (status, errors) == (0, []) and any(line.startswith("resumed from step 2") for line in lines)
    info = json.loads((workdir / "checkpoints" / "4" / "info" / "metadata").read_text())
    assert info["config"]["model"]["width"] == 8 and info["spec"]["labels"] == ["engage", "like"]
    ours, theirs = (run(capsys, "recommend", one, "--user", "u3", "--json")[1][-1] for one in (workdir, place.workdir))
    assert ours == theirs


@pytest.mark.parametrize("text", ["{", "[]", "", '{"modle": {}}', None])
def test_a_lost_config_says_where_it_still_stands(refused, place, tmp_path, text):
    workdir = place.copy(tmp_path / "run")
    path = workdir / "config.json"
    path.unlink() if text is None else path.write_text(text)
    cure = f'under "config" in {workdir / "checkpoints" / "4" / "info" / "metadata"}: put that back'
    for arguments in every(place, workdir):
        refused(arguments, path, cure)
    info = json.loads((workdir / "checkpoints" / "4" / "info" / "metadata").read_text())
    path.write_text(json.dumps(info["config"]))
    assert path.read_bytes() != (place.workdir / "config.json").read_bytes()  # it is indented there
    assert json.loads(path.read_text()) == json.loads((place.workdir / "config.json").read_text())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "log.json is damaged ('path')"),
        (None, "log.json is missing, without which"),
        ('{"path": "x", "fingerprint": "abc"}', "log.json does not fit the checkpoints"),
    ],
)
def test_a_lost_log_file_says_what_to_put_back(refused, place, capsys, tmp_path, text, words):
    workdir = place.copy(tmp_path / "run")
    path = workdir / "log.json"
    fingerprint = json.loads(path.read_text())["fingerprint"]
    path.unlink() if text is None else path.write_text(text)
    line = json.dumps({"path": "tiny", "fingerprint": fingerprint})
    for arguments in every(place, workdir):
        refused(arguments, words, f"put back {line}")
    path.write_text(line)
    assert run(capsys, "recommend", workdir, "--user", "u3", "--data-dir", place.data)[0] == 0


def test_counts_of_another_log_are_made_anew(place, capsys, tmp_path):
    """They tell which items are known: with others, items would answer by vectors that they never learned."""
    workdir = place.copy(tmp_path / "run")
    arguments = ("recommend", workdir, "--user", "u3", "--json", "--data-dir", place.data)
    wanted = run(capsys, *arguments)[1][-1]
    with np.load(workdir / "counts.npz") as found:
        items, queries, log = found["items"], found["queries"], found["log"]
    assert str(log) == json.loads((workdir / "log.json").read_text())["fingerprint"]
    for other in (dict(items=0 * items, queries=queries, log="x"), dict(items=items[:-1], queries=queries, log=log)):
        np.savez_compressed(workdir / "counts.npz", **other)
        assert run(capsys, *arguments)[1][-1] == wanted


def test_a_second_run_in_a_workdir_is_refused_and_an_evaluation_is_not(refused, place, capsys, tmp_path):
    workdir = place.copy(tmp_path / "run")
    with owner(workdir) as process:
        refused(place.train(workdir), f"{workdir}: process {process.pid} on host", "trains in it")
        assert run(capsys, "evaluate", workdir, "--data-dir", place.data)[0] == 0
        process.kill()
        process.wait()
        assert run(capsys, *place.train(workdir))[0] == 0
    sweep = tmp_path / "sweep"
    family = tmp_path / "family.toml"
    family.write_text(f'base = "{place.config}"\n[variants.plain]\n')
    with owner(sweep / "plain" / "seed-0") as process:
        arguments = ["sweep", family, "--workdir", sweep, "--seeds", "0", "--data-dir", place.data]
        status, _, errors = run(capsys, *arguments)
        assert status == 2 and len(errors) == 1 and f"seed-0: process {process.pid} on host" in errors[0]


@pytest.mark.parametrize(
    ("room", "file"),
    [(400, "config.json"), (3_000, "checkpoints: cannot write the checkpoint of step 1"), (12_000, "step 1")],
)
def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_afterwards(place, capsys, tmp_path, room, file):
    """A limit to the size of files stands for the disk. What Orbax had begun does not speak up at the end."""
    program = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "from synergen_jax.cli import main as cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    arguments = list(map(str, place.train(tmp_path / "run", "--run.checkpoint_every", "1")))
    path = os.pathsep.join([str(pathlib.Path(__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if "CACHE" not in name} | {"PYTHONPATH": path},
        timeout=120,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith("synergen: error: ") and file in lines[0]
    assert "File too large; once that is mended, the same command goes on" in lines[0]
    status, said, errors = run(capsys, *arguments)
    assert (status, errors) == (0, []) and said[-1].startswith("stopped at step 4")


# --- checkpoints ------------------------------------------------------------------------------------------------


def half(data):
    return data[: len(data) // 2]


def garbage(data):
    return bytes(255 - byte for byte in data)


def damage(workdir, step, how):
    """Damages every file of a checkpoint."""
    for file in (workdir / "checkpoints" / str(step)).rglob("*"):
        if file.is_file():
            file.write_bytes(how(file.read_bytes()))


@pytest.mark.parametrize("how", [half, garbage])
def test_a_damaged_checkpoint_is_passed_over_aloud(place, capsys, tmp_path, how):
    workdir = place.copy(tmp_path / "run")
    damage(workdir, 4, how)
    before = contents(workdir / "checkpoints")
    status, lines, errors = run(capsys, "evaluate", workdir, "--json")
    assert (status, errors) == (0, [])
    assert any("warning" in line and str(workdir / "checkpoints" / "4") in line for line in lines)
    assert json.loads(lines[-1])["step"] == 2
    assert contents(workdir / "checkpoints") == before, "an evaluation mends nothing"


def test_a_run_goes_on_before_a_damaged_checkpoint(place, capsys, tmp_path):
    workdir = place.copy(tmp_path / "run")
    damage(workdir, 4, half)
    status, lines, errors = run(capsys, *place.train(workdir, "--json"))
    assert (status, errors) == (0, [])
    assert any("warning" in line and "checkpoints/4" in line for line in lines)
    assert any(line.startswith("resumed from step 2") for line in lines)
    assert json.loads(lines[-1])["step"] == 4
    assert (workdir / "checkpoints" / "4.damaged").is_dir()
    # The step was written anew, and is as it would have been.
    _, lines, _ = run(capsys, *place.train(workdir))
    assert any(line.startswith("nothing to do") for line in lines)
    assert not any("warning" in line for line in lines)
    answer = ("recommend", workdir, "--user", "u3", "--json")
    ours, theirs = (
        json.loads(run(capsys, *arguments)[1][-1]) for arguments in (answer, (answer[0], place.workdir, *answer[2:]))
    )
    assert ours == theirs


@pytest.mark.parametrize("file", ["state/manifest.ocdbt", "state/_METADATA", "info/metadata"])
def test_one_damaged_file_is_enough(place, capsys, tmp_path, file):
    workdir = place.copy(tmp_path / "run")
    cut(workdir / "checkpoints" / "4" / file)
    status, lines, errors = run(capsys, "recommend", workdir, "--user", "u3")
    assert (status, errors) == (0, [])
    assert "cannot be read and is passed over" in lines[0] and str(workdir / "checkpoints" / "4") in lines[0]


@pytest.mark.parametrize("how", [half, garbage])
def test_no_checkpoint_that_can_be_read(place, capsys, tmp_path, how):
    workdir = place.copy(tmp_path / "run")
    damage(workdir, 2, how)
    damage(workdir, 4, how)
    before = contents(workdir)
    for arguments in (
        ["evaluate", workdir],
        ["recommend", workdir, "--user", "u3"],
        place.train(workdir),
    ):
        status, lines, errors = run(capsys, *arguments)
        assert status == 2 and len(errors) == 1
        assert errors[0].startswith(f"synergen: error: {workdir / 'checkpoints'}: none of its checkpoints can be read")
        assert sum("is passed over" in line for line in lines) == 2
    assert contents(workdir) == before


def test_no_checkpoint_yet(refused, place, tmp_path):
    workdir = place.copy(tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    refused(["evaluate", workdir], workdir, "no checkpoint yet")
    assert not (workdir / "checkpoints").exists()


def test_a_data_command_cleans_up_when_it_is_asked_to_end(monkeypatch):
    """SIGTERM comes as an exception, so that temporary folders go; afterwards it is what it was."""
    cleaned = []

    def listing(arguments, _):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append(True)

    monkeypatch.setattr(data, "list_", listing)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(["data", "list"])
    assert ended.value.code == 143 and cleaned and signal.getsignal(signal.SIGTERM) is before


def test_the_first_line_of_training_tells_whether_rows_are_packed(place, capsys, tmp_path):
    """Users of 6 to 10 events, two of which do not train: they fill a row of 20 by a third, and one of 8 by more than half."""
    short = place.train(tmp_path / "short", "--data.pack", "auto", "--data.max_history", "20")
    _, lines, _ = run(capsys, *short)
    assert ", packed (2" in lines[0] or ", packed (3" in lines[0], lines[0]
    assert json.loads((tmp_path / "short" / "config.json").read_text())["data"]["pack"] is True
    _, lines, _ = run(capsys, *short)
    assert any("nothing to do" in line for line in lines), "auto is what it was"
    padded = place.train(tmp_path / "padded", "--data.max_history", "20")  # of before there was "auto"
    assert run(capsys, *padded)[0] == 0
    status, lines, errors = run(capsys, *padded, "--data.pack", "auto", "--run.patience", "3")
    assert (status, errors) == (0, []) and ", not packed (" in lines[0], "it goes on as it began"
    _, lines, _ = run(capsys, *place.train(tmp_path / "long", "--data.pack", "auto"))
    assert ", not packed (" in lines[0], lines[0]
    assert json.loads((tmp_path / "long" / "config.json").read_text())["data"]["pack"] is False
