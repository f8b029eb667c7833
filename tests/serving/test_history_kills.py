"""Stores of histories that are killed (experiments/serving/kill_store.py), a few of the thousand times."""

import json
import subprocess
import sys

import kill_store
from tqdm import tqdm

PROGRAM = """
import sys
from synergen_jax.serving.history import opening, postgres, sqlite
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_power_cut_loses_nothing_that_was_acknowledged():
    found = kill_store.run("power", kills=30, seed=7)
    assert found.acknowledged > 300 and found.kills == 30
    assert not (found.lost or found.duplicated or found.undeleted or found.unreadable), found


def test_without_syncs_a_power_cut_does_lose():
    """Else the test above could not fail."""
    assert kill_store.run("power", kills=20, synchronous="OFF").lost > 100


def test_a_folder_that_is_not_synced_loses_a_whole_store(monkeypatch):
    monkeypatch.setattr(kill_store, "LIVES", 1)  # a new store each time
    monkeypatch.setattr("power_cut.Disk.sync_folder", lambda disk, folder: None)
    assert kill_store.run("power", kills=20).lost > 100


def test_a_process_that_is_killed_loses_nothing(tmp_path):
    file = tmp_path / "found.json"
    assert kill_store.main(["process", "--kills", "2", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["acknowledged"] > 0


def test_a_postgres_that_is_killed_loses_nothing(server):
    found = kill_store.kill_postgres(1, 0, server, tqdm(disable=True))
    assert found.acknowledged and not (found.lost or found.duplicated or found.undeleted), found


def test_the_store_loads_no_model_and_no_database():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "data_pipelines", "apsw", "psycopg"} & set(run.stdout.split())
