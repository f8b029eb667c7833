"""A visit to a GPU (experiments/gpu): what it writes and how it goes on, its report, what travels. Nothing large is measured."""

import importlib
import inspect
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time

import correctness
import hstu
import kernels
import numpy as np
import pack
import predictions
import pytest
import report
import stages
import visit
from setting import Setting
from small_log import random_log
from stages import Stage, Unit

from data_pipelines.event_log import event_log

GPU = pathlib.Path(visit.__file__).parent

FAKE = """
import os, signal, time
from setting import Skip

def fine(setting, number=0):
    return {"number": number, "small": setting.small}

def wrong(setting):
    raise ValueError("no such kernel")

def lacking(setting):
    raise Skip("not here")

def absent(setting):
    import a_package_that_nobody_has

def dies(setting):
    os.kill(os.getpid(), signal.SIGKILL)

def strange(setting):
    return {("a", 1): object()}

def leaves(setting):
    raise SystemExit(4)

def floods(setting):
    for number in range(100_000):
        print("line", number)
    return {}

def hangs(setting):
    (setting.out / "hung").write_text(str(os.getpid()))
    time.sleep(100)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Stages that take no time. A function from (stage, limit, units by name) to what a visit then makes."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def choose(*given):
        made = [
            Stage(name, "", limit, tuple(Unit(unit, f"fake.{call}", needs=0.0) for unit, call in units.items()))
            for name, limit, units in given
        ]
        monkeypatch.setattr(stages, "STAGES", tuple(made))
        monkeypatch.setattr(stages, "rehearsed", lambda: tuple(made))

    return choose


def go(out, *words):
    return visit.main(["--out", str(out), "--small", *map(str, words)])


def states(folder):
    return [(one["unit"], one["state"]) for one in visit.read(folder)]


# --- what a visit writes, and how it goes on --------------------------------------------------------------------


def test_what_fails_costs_itself_alone_and_is_tried_once_more(tmp_path, fake, capsys):
    one = {"a": "fine", "b": "wrong", "c": "lacking", "d": "absent", "e": "dies", "f": "fine"}
    fake(("one", 60, one), ("two", 60, {"g": "fine"}))
    assert go(tmp_path / "out", "--scratch", tmp_path / "scratch") == 0
    first = [("a", "done"), ("b", "failed"), ("c", "skipped"), ("d", "skipped"), ("e", "failed"), ("f", "done")]
    assert states(tmp_path / "out") == [*first, ("g", "done")]
    found = {record["unit"]: record for record in visit.read(tmp_path / "out")}
    assert found["a"]["result"] == {"number": 0, "small": True} and found["a"]["versions"]["jax"]
    assert found["b"]["why"] == "ValueError: no such kernel" and found["c"]["why"] == "not here"
    assert "a_package_that_nobody_has is not installed" in found["d"]["why"]
    assert "killed by SIGKILL" in found["e"]["why"]
    assert "ValueError: no such kernel" in (tmp_path / "out" / visit.LOG).read_text(), "with its traceback"
    assert "2 measurements are left" in capsys.readouterr().out
    # Again: what was skipped may be there now; what failed is tried a second time, and then given up.
    assert go(tmp_path / "out") == 0
    again = states(tmp_path / "out")[7:]
    assert sorted(again) == [("b", "failed"), ("c", "skipped"), ("d", "skipped"), ("e", "failed")]
    assert "all is measured" in capsys.readouterr().out
    assert go(tmp_path / "out", "--stages", "two") == 0 and len(states(tmp_path / "out")) == 11


def test_a_stage_ends_with_its_time_which_is_no_fault_of_what_it_cut_off(tmp_path, fake):
    fake(("one", 4, {"a": "hangs", "b": "fine"}), ("two", 60, {"c": "fine"}))
    assert go(tmp_path / "out") == 0
    assert states(tmp_path / "out") == [("a", "cut"), ("c", "done")], "b's stage is over"
    pid = int((tmp_path / "out" / "hung").read_text())
    assert not pathlib.Path(f"/proc/{pid}").exists(), "the process was ended"
    assert visit.left(stages.STAGES, visit.read(tmp_path / "out"), "cpu", True, 0)[0][1].name == "a", "it is no failure"


def test_what_hangs_costs_itself_alone(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(visit, "LEAST", 3.0)
    fake(("one", 60, {"a": "hangs", "b": "fine"}))
    assert go(tmp_path / "out") == 0
    assert states(tmp_path / "out") == [("a", "failed"), ("b", "done")]
    assert visit.read(tmp_path / "out")[0]["why"] == "it did not end within 3 s"
    for stage in stages.STAGES:
        assert all(visit.patience(unit) < stage.limit for unit in stage.units), stage.name


def test_a_flag_that_nobody_knows_costs_its_own_measurements_alone(tmp_path, fake, monkeypatch):
    fake(("one", 60, {"a": "fine"}), ("two", 60, {"b": "fine"}))
    flag = {"XLA_FLAGS": "--xla_a_flag_that_nobody_knows=true"}
    made = tuple(
        stage._replace(
            units=tuple(unit._replace(environment=flag if stage.name == "one" else {}) for unit in stage.units)
        )
        for stage in stages.STAGES
    )
    monkeypatch.setattr(stages, "rehearsed", lambda: made)
    assert go(tmp_path / "out") == 0
    assert states(tmp_path / "out") == [("a", "failed"), ("b", "done")]
    assert "its process did not start" in visit.read(tmp_path / "out")[0]["why"]
    assert "xla_a_flag_that_nobody_knows" in (tmp_path / "out" / visit.LOG).read_text()


def test_the_budget_holds_where_no_device_answers(tmp_path, fake, monkeypatch, capsys):
    (tmp_path / "jax.py").write_text("import time; time.sleep(60)")  # found before the real one
    fake(("one", 60, {"a": "fine"}))
    start = time.monotonic()
    assert go(tmp_path / "out", "--budget", "7") == visit.LOST
    assert time.monotonic() - start < 20 and "no device was found within 2 s" in capsys.readouterr().out


def test_a_folder_is_of_one_kind_of_device(tmp_path, fake, capsys):
    fake(("one", 60, {"a": "fine"}))
    assert go(tmp_path / "out") == 0
    path = tmp_path / "out" / visit.RECORDS
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "another card"'))
    assert go(tmp_path / "out") == 2
    assert "has what was measured on another card (a rehearsal), and this is cpu" in capsys.readouterr().err


def test_what_floods_the_log_is_told_in_part(tmp_path, fake):
    fake(("one", 60, {"a": "floods"}))
    assert go(tmp_path / "out") == 0 and states(tmp_path / "out") == [("a", "done")]
    log = (tmp_path / "out" / visit.LOG).read_text()
    assert len(log) < 300_000 and "line 0\n" in log and "line 99999\n" in log and "[...]" in log
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [visit.RECORDS, visit.LOG]


def test_a_stand_in_is_imported_as_tokamax_imports_xprof():
    words = "import sys; sys.path[:0] = sys.argv[1:]; import worker; worker._stand_in_for_xprof(); "
    words += (
        "from xprof.cli.tools import get_kernel_stats_tool; import importlib.util; importlib.util.find_spec('xprof')"
    )
    subprocess.run([sys.executable, "-c", words, str(GPU)], check=True)


def test_the_worker_does_not_begin_what_would_not_end(tmp_path, fake):
    fake()
    unit = {"name": "long", "call": "fake.fine", "arguments": {}, "needs": 1e6}
    setting = {"small": True, "out": str(tmp_path), "scratch": str(tmp_path), "data": None, "after": []}
    told = {"environment": {}, "units": [unit, unit | {"name": "short", "needs": 0}]}
    told["setting"] = setting | {"deadline": time.monotonic() + 1000}
    log = (tmp_path / "log").open("wb")
    with log, visit.Worker(told, log, tmp_path / "printed") as worker:
        events = [worker.next(60) for _ in range(5)]
    assert [one and one["event"] for one in events] == ["ready", "short", "begin", "end", None]


def test_a_killed_visit_goes_on_and_leaves_no_process_behind(tmp_path, fake):
    fake(("one", 60, {"a": "fine", "b": "hangs"}))
    program = f"""
import sys; sys.path[:0] = {[str(GPU), str(GPU.parent / "ladder"), str(tmp_path)]!r}
import stages, visit
from stages import Stage, Unit
units = (Unit("a", "fake.fine", needs=0), Unit("b", "fake.hangs", needs=0))
stages.rehearsed = lambda: (Stage("one", "", 60, units),)
stages.STAGES = stages.rehearsed()
sys.exit(visit.main(["--out", {str(tmp_path / "out")!r}, "--small"]))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    hung = tmp_path / "out" / "hung"
    deadline = time.monotonic() + 60
    while not (hung.exists() and hung.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert go(tmp_path / "out") == 2, "two visits do not write to one folder"
    process.send_signal(signal.SIGKILL)
    process.wait()
    worker = pathlib.Path(f"/proc/{int(hung.read_text())}")
    while worker.exists() and "Z" not in (worker / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.exists() or worker.joinpath("stat").read_text().split()[2] == "Z"
    assert states(tmp_path / "out") == [("a", "done")]
    with (tmp_path / "out" / visit.RECORDS).open("ab") as file:
        file.write(b'{"stage": "one", "un')  # a line that the kill has cut off
    fake(("one", 60, {"a": "fine", "b": "fine"}))
    assert go(tmp_path / "out") == 0
    assert states(tmp_path / "out") == [("a", "done"), ("b", "done")]


def test_a_result_that_cannot_be_written_says_so(tmp_path, fake):
    fake(("one", 60, {"a": "strange", "b": "leaves"}))
    assert go(tmp_path / "out") == 0
    assert [one["state"] for one in visit.read(tmp_path / "out")] == ["failed", "failed"]
    assert [one["why"][:10] for one in visit.read(tmp_path / "out")] == ["TypeError:", "SystemExit"]


def test_another_machine_goes_on_and_another_kind_begins_anew(tmp_path, fake):
    fake(("one", 60, {"a": "fine", "b": "fine"}))
    assert go(tmp_path / "first", "--stages", "one") == 0
    assert go(tmp_path / "second", "--after", tmp_path / "first") == 0 and states(tmp_path / "second") == []
    path = tmp_path / "first" / visit.RECORDS
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "another card"'))
    assert go(tmp_path / "second", "--after", tmp_path / "first") == 0
    assert states(tmp_path / "second") == [("a", "done"), ("b", "done")]


def test_wrong_words_are_refused_in_one_line(tmp_path, fake, capsys):
    fake(("one", 60, {"a": "fine"}))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / visit.RECORDS).write_text('{"stage": "one"}\n')
    (tmp_path / "file").write_text("")
    for words, message in (
        (["--stages", "three"], "--stages three: stages are one"),
        (["--budget", "5"], "--budget must be more than 5 s"),
        (["--budget", "nan"], "--budget must be more than 5 s"),
        (["--data", tmp_path / "no.npz"], "no such file; make it by"),
        (["--after", tmp_path], "no visit: records.jsonl is not there"),
        (["--after", tmp_path / "old"], "records.jsonl:1: no record of a visit"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--out", tmp_path / "old", "--after", tmp_path / "old"], "is --out itself"),
        (["--out", tmp_path / "file"], "file"),
    ):
        assert go(tmp_path / "out", *words) == 2, words
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, (words, error)
    assert visit.main(["--out", str(tmp_path / "out")]) == visit.LOST, "without --small a CPU is refused"
    assert "--small rehearses" in capsys.readouterr().out


# --- the measurements -------------------------------------------------------------------------------------------


def test_every_measurement_names_a_function_and_what_it_takes():
    names = [(stage.name, unit.name) for stage in stages.STAGES for unit in stage.units]
    assert len(set(names)) == len(names) > 90
    assert [stage.name for stage in stages.rehearsed()] == [stage.name for stage in stages.STAGES]
    setting = Setting(True, pathlib.Path(), pathlib.Path(), None, (), 0.0, print)
    for stage in stages.STAGES:
        for unit in stage.units:
            module, _, name = unit.call.partition(".")
            inspect.signature(getattr(importlib.import_module(module), name)).bind(setting, **unit.arguments)


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_gradient_that_is_nan_never_passes(where):
    fine, broken = np.array([1.0, 2.0]), np.array([np.nan, 2.0])
    found = {"first": [broken, fine], "last": [fine, broken]}[where]
    error = correctness._compared(found, [fine, fine])
    assert np.isnan(error)
    assert not correctness._verdict({"a": 0.0, "b": error}, 1.0)["holds"]


def test_flops_of_hstu_are_those_that_recsys_examples_states():
    # Its analysis of a step: 32 sequences of 4,099 tokens, three of them contextual, 8 layers, D 1024: 63.89 TFLOP.
    assert hstu.block_flops(np.full(32, 4099), 1024, 8, contextual=3) / 1e12 == pytest.approx(63.89, abs=0.01)
    lengths = hstu.zipf_lengths(200, most=30)
    assert lengths.min() == 5 and lengths.max() == 63
    first, real = hstu.packed(lengths, 64)
    assert real.sum() == lengths.sum() and len(real) < 150
    begins = (first == np.arange(64)) & real
    assert begins.sum() == 200, "each sequence begins once"


def test_the_longest_kernels_of_a_trace(tmp_path):
    import jax
    import jax.numpy as jnp

    f = jax.jit(lambda x: jnp.sin(x @ x).sum())
    x = jnp.ones((64, 64))
    f(x).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        f(x).block_until_ready()
    found = kernels.top(tmp_path)
    assert found["kernels"] and found["total_ms"] > 0
    shares = [row["share"] for row in found["kernels"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-9
    with pytest.raises(FileNotFoundError, match="no trace"):
        kernels.top(tmp_path / "empty")


# --- the report -------------------------------------------------------------------------------------------------


def record(stage, unit, result=None, device="H100", at=1.0, **more):
    found = {"stage": stage, "unit": unit, "state": "done", "seconds": 1.0, "device": device, "small": False}
    found |= {"visit": 1, "at": at, "commit": "abc", "versions": {"jax": "0.11.2"}, "result": result}
    return found | more


def products(of_peak):
    row = {"shape": [1, 2, 3], "dtype": "bfloat16", "tflops": 700.0, "of_peak": of_peak}
    return {"products": dict.fromkeys(("square", "width 128"), row), "copy_gb_per_second": 3000.0}


def test_a_report_has_a_row_a_device_and_says_what_came_of_what_was_expected(tmp_path):
    recipe = {"variant": "recipe", "seed": 0, "steps": 4, "seconds": {"train": 20.0, "all": 40.0}}
    recipe |= {"metrics": {"test": {"hr@10": 0.37, "ndcg@10": 0.225}}}
    records = [
        record("device", "peak", products(0.7)),
        record("device", "peak", products(0.9), device="H200"),
        record("correctness", "cudnn, bfloat16", {"errors": {"x": 0.5}, "tolerance": 0.03, "holds": False}),
        *(record("recipe", f"recipe, seed {seed}", recipe | {"seed": seed}) for seed in (0, 1, 2)),
        record("torch", "step, flex", None, state="failed", why="RuntimeError: no\nmore"),
        record("mfu", "a name that is no more", {}),
    ]
    words = report.text(records)
    assert "H100, H200; jax 0.11.2; commit abc; one device, which shows nothing of sharding." in words
    assert words.count("| H100 |") > words.count("| H200 |") > 2 and "**NO**" in words
    rows = {(row["device"], row["expected before"]): row for row in report.prediction_rows(report.Found(records))}
    square = "share of the peak of a square product of 8,192"
    assert (rows["H100", square]["held"], rows["H200", square]["held"]) == ("yes", "no")
    quality = "test NDCG@10 of the ML-1M recipe, mean of three seeds"
    assert rows["H100", quality]["held"] == "yes" and rows["H200", quality]["measured"] == "not measured"
    missing = report.missing_rows(report.Found(records))
    assert {"device": "H100", "stage": "torch", "measurement": "step, flex", "why": "RuntimeError: no"} in missing
    assert any(row["stage"] == "variants" and row["measurement"].endswith("more") for row in missing)


def test_the_last_that_was_measured_counts_and_a_failure_never_hides_it():
    done, failed = (
        record("device", "peak", products(0.5)),
        record("device", "peak", None, state="failed", why="x", at=2.0),
    )
    better = record("device", "peak", products(0.6), at=3.0)
    assert report.newest([failed, done]) == [done]
    assert report.newest([better, done, failed]) == [better]


def test_a_report_goes_between_its_marks_or_nowhere(tmp_path, capsys):
    folder, page = tmp_path / "first", tmp_path / "speed.md"
    folder.mkdir()
    line = json.dumps(record("device", "peak", products(0.7))) + "\n"
    (folder / visit.RECORDS).write_text(line)
    page.write_text("before\n")
    assert report.main([str(folder), "--into", str(page)]) == 2 and page.read_text() == "before\n"
    assert "are not both there" in capsys.readouterr().err
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        assert report.main([str(folder), "--into", str(page)]) == 0
        text = page.read_text()
        assert text.startswith("before\n") and text.endswith(f"{report.END}\nafter\n") and "old" not in text
        assert text.count("### Matrix products") == 1
    (folder / visit.RECORDS).write_text(line + line.replace('"small": false', '"small": true'))
    assert report.main([str(folder)]) == 2 and "rehearsal" in capsys.readouterr().err
    assert report.main([str(tmp_path)]) == 2 and "no visit" in capsys.readouterr().err
    assert report.BEGIN in (GPU.parent / "results" / "speed.md").read_text()


def test_predictions_are_told_apart_and_read_what_is_measured():
    texts = [one.text for one in predictions.PREDICTIONS]
    assert len(set(texts)) == len(texts)
    names = {(stage.name, unit.name) for stage in stages.STAGES for unit in stage.units}

    class Every(float):
        """A result with whatever is asked of it: each a number, and a list of one."""

        def __getitem__(self, name):
            return Every(1.0)

        def __iter__(self):
            return iter([1.0])

    class Asked(dict):
        def __missing__(self, key):
            assert key in names, f"no measurement is called {key}"
            return Every(1.0)

    for one in predictions.PREDICTIONS:
        assert one.low <= one.high
        assert one.value(Asked()) == 1.0, "whatever it asks for is measured under that name"


# --- what travels -----------------------------------------------------------------------------------------------


def test_what_travels_is_one_file_or_none(tmp_path, monkeypatch, capsys):
    small = random_log(users=5)
    names = ("name", "item_ids", "item_titles", "queries", "actions", "labels", "item_matrices", "query_matrices")
    event_log.write(tmp_path / "log", users=small.records, source={}, **{name: getattr(small, name) for name in names})
    monkeypatch.setattr(pack, "wheels", lambda python, folder: [])
    files = [pack.Part("checkout", pathlib.Path(pack.__file__), "experiments/gpu/pack.py")]
    monkeypatch.setattr(pack, "checkout", lambda: files)
    out = tmp_path / "visit.tar"
    assert pack.main([str(tmp_path / "log"), "--out", str(out)]) == 0
    with tarfile.open(out) as archive:
        assert sorted(archive.getnames()) == ["visit/COMMIT", "visit/experiments/gpu/pack.py", "visit/log.npz"]
    assert "all" in capsys.readouterr().out
    out.unlink()
    monkeypatch.setattr(pack, "LIMIT", 0.001)
    assert pack.main([str(tmp_path / "log"), "--out", str(out)]) == 2 and not out.exists()
    assert "MB would travel" in capsys.readouterr().err
    assert pack.main([str(tmp_path / "none"), "--out", str(out)]) == 2 and capsys.readouterr().err.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")] and os.listdir(tmp_path)
