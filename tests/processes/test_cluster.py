"""Several processes: which cluster a process finds, what it is refused, how it stops, and two that train together."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
import small_model
from small_log import random_log
from small_place import CONFIG, Place, owner

from data_pipelines.feed import examples, feed, splits
from synergen_jax.cli.main import main
from synergen_jax.config import Config, DataConfig, EvaluateConfig, MeshConfig
from synergen_jax.errors import UserError
from synergen_jax.evaluation import model_answers, protocol
from synergen_jax.processes import cluster, crash_report
from synergen_jax.sharding import device_mesh
from synergen_jax.sharding.table import place_catalogue
from synergen_jax.training import train_step

HERE = pathlib.Path(__file__).parents[1]
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


# --- which cluster ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, ""),
        (SLURM, "SLURM"),
        (SLURM | {"SLURM_NTASKS": "1"}, ""),
        ({name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}, ""),  # sbatch without srun
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, ""),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""),  # any pod
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "the TPU slice"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, ""),
        ({"TPU_CHIPS": "4"}, "the TPU slice"),  # its metadata server knows, jax asks it
        ({"TPU_SKIP_MDS_QUERY": "1"}, ""),
    ],
)
def test_clusters_are_told_by_the_environment_alone(environment, found, monkeypatch, tmp_path):
    (tmp_path / "accel0").touch()
    package = "libtpu" if any(name.startswith("TPU") for name in environment) else "kubernetes"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == package)
    assert cluster._cluster(environment, tmp_path) == found


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "--process \\$OMPI_COMM_WORLD_RANK"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "install jax\\[k8s\\]"),
    ],
)
def test_launchers_that_do_not_tell_enough_are_refused(environment, words, monkeypatch):
    """Else each process would train alone, all in one workdir."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=words):
        cluster._cluster(environment)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--coordinator", "h:1"], "--processes and --process missing"),
        (["--processes", "2"], "--coordinator and --process missing"),
        (["--process", "0"], "--coordinator and --processes missing"),
        (["--processes", "1", "--process", "1"], "--coordinator missing"),
        (["--coordinator", "h", "--processes", "2", "--process", "0"], "must be HOST:PORT"),
        (["--coordinator", "h:99999", "--processes", "2", "--process", "0"], "must be HOST:PORT"),
        (["--coordinator", "h:1", "--processes", "2", "--process", "2"], "--process 2 must lie within 0 .. 1"),
        (["--coordinator", "h:1", "--processes", "0", "--process", "0"], "--processes 0 must be at least 1"),
        (["--coordinator", "h:1", "--processes", "x", "--process", "0"], "invalid int value: 'x'"),
    ],
)
@pytest.mark.parametrize("command", [["train", "quickstart", "--workdir", "none"], ["evaluate", "none"]])
def test_flags_that_do_not_go_together(command, flags, words, capsys):
    assert main([*command, *flags]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and words in error[0]


def test_a_single_machine_joins_nothing(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("joined"))
    monkeypatch.setattr(crash_report, "begin", lambda: pytest.fail("forked"))
    cluster.join()
    monkeypatch.setattr("os.environ", dict(os.environ) | SLURM)
    cluster.join(processes=1)
    assert (cluster.count(), cluster.index(), cluster.first()) == (1, 0, True)


# --- blocks of a batch ------------------------------------------------------------------------------------------


def fake_mesh(data, model, each):
    """A mesh whose devices belong to processes of `each` devices."""
    devices = [types.SimpleNamespace(id=i, process_index=i // each) for i in range(data * model)]
    return types.SimpleNamespace(devices=np.array(devices).reshape(data, model), shape={"data": data, "model": model})


@pytest.mark.parametrize(
    ("data", "model", "each", "blocks"),
    [
        (4, 1, 2, [(0, 2), (1, 2)]),
        (4, 2, 4, [(0, 2), (1, 2)]),
        (2, 4, 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # a user's row of devices belongs to two processes
        (1, 4, 2, [(0, 1), (0, 1)]),
        (8, 1, 8, [(0, 1)]),
    ],
)
def test_blocks_follow_the_devices(data, model, each, blocks):
    mesh = fake_mesh(data, model, each)
    assert [device_mesh.block(mesh, process) for process in range(len(blocks))] == blocks


def test_meshes_that_cut_a_process_in_two_are_refused():
    with pytest.raises(UserError, match=r"mesh.model 3 does not fit 6 devices on 3 processes"):
        device_mesh.block(fake_mesh(2, 3, 2), 0)
    devices = [types.SimpleNamespace(id=i, process_index=i // 2) for i in range(4)]
    with pytest.raises(UserError, match="a mesh of 2 x 1 leaves process 1 of 2 without a device"):
        device_mesh.make_mesh(MeshConfig(2, 1), devices)


def test_evaluation_on_a_mesh_gives_the_same_answers():
    """Users and items spread over the devices, the last batch padded to a multiple of them."""
    log = random_log(users=21)
    config = Config(data=DataConfig(max_history=8), evaluate=EvaluateConfig(batch=6, rank_candidates=5))
    split = splits.split(log, config.data)
    model, params, _ = small_model.make(spec=log.spec)
    catalogue = examples.catalogue(log, split)
    targets = feed.evaluation_feed(log, split, "test", config)
    mesh = device_mesh.make_mesh(MeshConfig(2, 2), jax.devices()[:4])
    layout = jax.tree.map(lambda x: x.sharding, train_step.abstract_state(config, model, mesh)).params
    placed, stored = jax.device_put(params, layout), place_catalogue(catalogue, mesh)
    one = small_model.stored(catalogue)

    def ask(params, catalogue):
        return model_answers.answers(model_answers.PlacedModel.of(model, params, catalogue), targets, rerank=20)

    plain, spread = ask(params, one), ask(placed, stored)
    assert (plain.reranked != plain.ranks).any()
    for name, found, expected in zip(plain._fields, spread, plain, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
    validate = protocol.validator(model, one, targets), protocol.validator(model, stored, targets)
    assert validate[0](params) == pytest.approx(validate[1](placed), abs=1e-6)


# --- being asked to stop ----------------------------------------------------------------------------------------


@pytest.fixture
def interruptible():
    """Python's own handler of SIGINT, also where the tests run in the background and it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_second_interrupt_stops_at_once(interruptible):
    with cluster.Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.after(1) == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_an_interrupt_that_is_ignored_stays_so(interruptible):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with cluster.Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.after(1) == 0


# --- last words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), 9)", "process 0 of 2 was ended from outside at step 7; the last checkpoint is step 5:"),
        ("os.abort()", "process 0 of 2 was ended from outside at step 7; the last checkpoint is step 5:"),
        ("crash_report.say('process 1 of 2 was lost'); os._exit(1)", "process 1 of 2 was lost at step 7;"),
        ("crash_report.told()", ""),
    ],
)
def test_however_a_process_ends_it_says_where_the_run_stood(tmp_path, end, said):
    for name in ("5", "6.orbax-checkpoint-tmp-1", "4"):
        (tmp_path / name).mkdir()
    program = (
        "import os, pathlib, sys; from synergen_jax.processes import crash_report; crash_report.begin(); crash_report.joined(0, 2);"
        f"crash_report.at(7, pathlib.Path(sys.argv[1])); {end}"
    )
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, env=environment, timeout=30
    )
    lines = done.stderr.splitlines()
    assert len(lines) == bool(said) and all(f"synergen: {said}" in line for line in lines)
    assert (done.returncode == 0) == (not said)


# --- two processes ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A prepared log and a config of 20 steps on all devices."""
    made = Place(tmp_path_factory.mktemp("processes"))
    text = CONFIG.replace("data = 1", "data = -1").replace("steps = 4", "steps = 20")
    made.config.write_text(
        text.replace("eval_every = 2", "eval_every = 5").replace("point_every = 2", "point_every = 5")
    )
    assert main(["data", "prepare", str(made.files), "--data-dir", str(made.data)]) == 0
    return made


def start(words, arguments, devices):
    """A process of its own, with so many CPU devices."""
    path = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": str(devices)}
    environment["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")
    environment["JAX_COMPILATION_CACHE_DIR"] = os.environ["SYNERGEN_TESTS_CACHE"]
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return subprocess.Popen(
        [sys.executable, HERE / "small_processes.py", words, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ended(*started):
    """For each process: (exit status, stdout without what gloo prints there, our lines on stderr)."""
    found = [(p, *p.communicate(timeout=120)) for p in started]
    theirs = lambda said: "\n".join(line for line in said.splitlines() if not line.startswith("[Gloo]"))
    ours = lambda errors: [line for line in errors.splitlines() if line.startswith("synergen:")]
    return [(process.returncode, theirs(said), ours(errors)) for process, said, errors in found]


def two(arguments, words=("", ""), more=((), ())):
    """Two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    flags = lambda i: ["--coordinator", coordinator, "--processes", 2, "--process", i]
    return ended(*(start(words[i], [*arguments, *more[i], *flags(i)], devices=2) for i in range(2)))


def numbers(tree, at=""):
    """Every number of a JSON tree, by where it stands."""
    if isinstance(tree, (int, float)):
        return {at: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return {place: value for name, part in items for place, value in numbers(part, f"{at}/{name}").items()}


def metrics(workdir):
    """Losses and validations by step."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    wanted = ("loss", "validation/")
    return {(line["step"], name): v for line in lines for name, v in line.items() if name.startswith(wanted)}


@pytest.mark.slow  # each process takes some 5 s to start
def test_two_processes_lose_one_and_go_on_as_one(place, tmp_path):
    """SIGKILL on one ends the other within a minute; one process with as many devices then goes on where they were."""
    train = ["train", place.config, "--data-dir", place.data, "--workdir"]
    ((status, *_),) = ended(start("", [*train, tmp_path / "one"], devices=4))
    assert status == 0
    begun = time.monotonic()
    (status, said, ours), killed = two([*train, tmp_path / "two"], ("heartbeat=6", "heartbeat=6,kill=13,once=10"))
    assert killed[0] == -signal.SIGKILL and status == 1
    assert time.monotonic() - begun < 60
    last = "at step 13; the last checkpoint is step 10: start the same command again to go on"
    assert ours == [f"synergen: process 1 of 2 was lost {last}"]
    assert len(killed[2]) == 1 and last in killed[2][0]  # of the helper, which outlives the process that was killed
    assert "2 processes" in said and killed[1] == ""  # process 0 alone prints
    ((status, said, _),) = ended(start("", [*train, tmp_path / "two"], devices=4))
    assert status == 0 and "resumed from step 10" in said and "was written by 2 processes" in said
    got, wanted = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert got.keys() == wanted.keys() and len(got) > 60
    np.testing.assert_allclose([got[key] for key in wanted], list(wanted.values()), atol=1e-4)


@pytest.mark.slow  # each process takes some 5 s to start
def test_two_processes_stop_together_evaluate_and_refuse_together(place, tmp_path):
    run = tmp_path / "run"
    train = ["train", place.config, "--data-dir", place.data, "--workdir", run]
    found = two(train, ("", "term=7"))
    assert [status for status, *_ in found] == [143, 143]
    assert found[0][2] == found[1][2] and len(found[0][2]) == 1 and "asked to stop at step" in found[0][2][0]
    step = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    assert step >= 7 and f"asked to stop at step {step}," in found[0][2][0]

    shutil.copytree(run, tmp_path / "copy")
    evaluate = lambda workdir: ["evaluate", workdir, "--data-dir", place.data, "--json"]
    (status, said, _), (other, silent, _) = two(evaluate(run))
    assert (status, other, silent) == (0, 0, "")
    ((status, alone, _),) = ended(start("", evaluate(tmp_path / "copy"), devices=1))
    got, wanted = (numbers(json.loads(text.splitlines()[-1])) for text in (said, alone))
    assert status == 0 and len(wanted) > 100
    assert got == pytest.approx(wanted, abs=1e-6)

    for more, words in (
        ((["--run.seed", 1], []), "process 1 has another config than process 0"),
        (([], ["--data.log", "none"]), "no prepared log 'none'"),
    ):
        found = two(train, more=more)
        assert [status for status, *_ in found] == [2, 2]
        assert found[0][2] == found[1][2] and words in found[0][2][0]

    with owner(run) as process:
        found = two(train)
        assert [status for status, *_ in found] == [2, 2]
        assert found[0][2] == found[1][2] and f"process {process.pid} on host" in found[0][2][0]
