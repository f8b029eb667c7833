"""The scripts that measure imports and answers at scale: the same events by seed, what is told, and tiny runs of each."""

import json
import pathlib
import subprocess
import sys

import polars as pl
import pytest

SCALE = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "scale"
FORMS = {"events": 3000, "items": 50, "times": "seconds", "seed": 0}
MANY = {"users": 5000, "items": 500, "k": 10, "killed_users": None, "warm_users": 20, "seed": 0}


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCALE))
    import answer_many
    import made_up_events
    import measured

    return answer_many, made_up_events, measured


def run(script, *arguments):
    return subprocess.run([sys.executable, SCALE / script, *map(str, arguments)], capture_output=True, text=True)


def measured_before(folder, setting, *entries):
    folder.mkdir()
    lines = "".join(json.dumps({"setting": setting, **entry}) + "\n" for entry in entries)
    (folder / "measured.jsonl").write_text(lines)


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("import_forms.py", ("--forms", "csv,xls"), "--forms xls: csv, csv.gz"),
        ("import_forms.py", ("--events", "0"), "--events 0: one at least is needed"),
        ("answer_many.py", ("--users", "0"), "--users, --items and --repeats are 1 at least"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(tmp_path, script, arguments, words):
    done = run(script, "--folder", tmp_path / "f", *arguments)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_events_are_a_function_of_sizes_and_seed(scripts):
    _, made_up_events, _ = scripts
    sizes = made_up_events.Sizes(items=50, mean=5, users=made_up_events.USERS + 10)
    frames = list(made_up_events.batches(sizes, seed=1))
    assert [frame.equals(again) for frame, again in zip(frames, made_up_events.batches(sizes, seed=1))] == [True, True]
    assert not frames[0].equals(next(made_up_events.batches(sizes, seed=2)))
    events = pl.concat(frames)
    each = events.group_by("user").agg(pl.len(), pl.col("time").n_unique().alias("times"))
    assert len(each) == sizes.users and each["len"].min() >= 2 and abs(each["len"].mean() - 5) < 0.1
    assert (each["len"] == each["times"]).all(), "no two events of a user are of one moment"
    assert events["item"].null_count() == (events["action"] == "search").sum() > 0


def test_halves_of_memory(scripts):
    """Flat, then a byte a second; of nothing, nothing."""
    answer_many, _, _ = scripts
    flat, up = answer_many.halves([(0.0, 7), (1.0, 7), (2.0, 7), (3.0, 7), (4.0, 8), (5.0, 9)])
    assert flat == {"mean": 7.0, "slope": 0.0} and up == {"mean": 8.0, "slope": 1.0}
    assert answer_many.halves([])[1] == {"mean": 0.0, "slope": 0.0}


def test_what_a_process_takes(scripts):
    """With its children; a failure is told with its last words, and a kill is none."""
    _, _, measured = scripts
    child = "import time; held = bytearray(80 << 20); time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('done')"
    told = measured.run([sys.executable, "-c", parent], every=0.05)
    assert told.text == "done\n" and told.status == 0 and told.peak > 80 << 20 and told.wall > 1
    with pytest.raises(measured.UserError, match="ended with status 3: no luck"):
        measured.run([sys.executable, "-c", "import sys; print('no luck', file=sys.stderr); sys.exit(3)"])
    assert measured.run([sys.executable, "-c", "import time; time.sleep(60)"], 0.05, lambda: True).status == -9


def test_forms_that_give_different_logs_fail(tmp_path):
    """Nothing is measured again: results that are there suffice."""
    taken = {"wall": 2.0, "cpu": 1.0, "peak": 2**20, "bytes": 10**6}
    csv, parquet = ({"form": form, **taken, "fingerprint": form * 3} for form in ("csv", "parquet"))
    measured_before(tmp_path / "f", FORMS, csv, parquet)
    options = ("--events", 3000, "--items", 50, "--folder", tmp_path / "f", "--json", tmp_path / "f.json")
    done = run("import_forms.py", "--forms", "csv,parquet", *options)
    assert done.returncode == 1 and done.stdout.endswith("the forms give different logs\n"), done.stderr
    assert "| parquet | 1 (1.00) | 2 (1.00) | 1 (1.00) | 3,000 | 1 (1.00) | parquetp |" in done.stdout
    assert not json.loads((tmp_path / "f.json").read_text())["same"]
    other = run("import_forms.py", "--forms", "csv", "--seed", 1, *options)
    assert other.returncode == 2 and "give another --folder" in other.stderr


def test_a_small_import_of_three_forms(tmp_path):
    options = ("--events", 3000, "--items", 50, "--folder", tmp_path / "f")
    done = run("import_forms.py", "--forms", "csv,jsonl.gz,parquet", *options)
    assert done.returncode == 0 and done.stdout.endswith("the same log in every form\n"), done.stderr
    found = [json.loads(line) for line in (tmp_path / "f" / "measured.jsonl").read_text().splitlines()]
    assert [one["form"] for one in found] == ["csv", "jsonl.gz", "parquet"]
    assert all(one["peak"] > 50 << 20 and one["cpu"] > 0 for one in found)
    assert len(pl.read_parquet(tmp_path / "f" / "events.parquet")) == 3000
    assert not any((tmp_path / "f" / "data" / "logs").iterdir())


@pytest.mark.slow
def test_few_users_are_answered_killed_and_gone_on_with(tmp_path):
    """Two parts of answers; the same command then only tells what was measured."""
    sizes = ("--users", 5000, "--items", 500, "--warm-users", 20, "--repeats", 1, "--folder", tmp_path / "m")
    done = run("answer_many.py", *sizes, "--json", tmp_path / "m.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "m.json").read_text())
    assert list(found) == ["import", "train", "whole", "killed", "warm"] and found["whole"]["setting"] == MANY
    assert found["killed"]["equal"] and found["killed"]["were_there"] == 4096
    assert len(pl.read_parquet(tmp_path / "m" / "answers.parquet")) == 10 * 5000
    again = run("answer_many.py", *sizes)
    assert again.returncode == 0 and again.stdout == done.stdout
