"""Another split of Last.fm: artists go whole, a fifth each, and the seed says where."""

import collections
import csv
import gzip
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "lastfm_split.py"


@pytest.fixture
def source(tmp_path):
    """Users of 3 to 12 artists, each listened to, every second one tagged, too."""
    folder = tmp_path / "source"
    folder.mkdir()
    lines = ["user_id,item_id,query,date,plays,part"]
    for user in range(8):
        for artist in range(3 + user + user // 4):
            lines.append(f"u{user},a{artist},,,5,train")
            lines += [f'u{user},a{artist},"rock, loud",,,train'] * (artist % 2)
    (folder / "events.csv.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    (folder / "items.csv.gz").write_bytes(gzip.compress(b"item_id,name\na1,One\n"))
    return folder


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def events(folder):
    with gzip.open(folder / "events.csv.gz", "rt") as file:
        return list(csv.DictReader(file))


def test_a_split(source, tmp_path):
    for seed in (1, 2):
        assert run(source, "--seed", seed, "--out", tmp_path / str(seed)).returncode == 0
    assert run(source, "--seed", 1, "--out", tmp_path / "again").returncode == 0
    one, two, again = (events(tmp_path / name) for name in ("1", "2", "again"))
    assert one == again != two
    without = lambda rows: [{k: v for k, v in row.items() if k != "part"} for row in rows]
    assert without(one) == without(two) == without(events(source))
    part = {}
    for row in one:
        assert part.setdefault((row["user_id"], row["item_id"]), row["part"]) == row["part"]
    sizes = collections.Counter((user, part) for (user, _), part in part.items())
    for user, count in collections.Counter(user for user, _ in part).items():
        assert sizes[user, "valid"] == sizes[user, "test"] == count // 5
    assert (tmp_path / "1" / "items.csv.gz").read_bytes() == (source / "items.csv.gz").read_bytes()


def test_what_is_wrong_is_told_in_one_line(source, tmp_path):
    done = run(tmp_path / "none", "--seed", 1, "--out", tmp_path / "out")
    assert done.returncode == 2 and "No such file" in done.stderr and done.stderr.count("\n") == 1
    done = run(source, "--seed", 1, "--out", source)
    assert done.returncode == 2 and "is the source, which stays as it is" in done.stderr
    (source / "events.csv.gz").write_bytes(gzip.compress(b"user_id,item_id\n1,2\n"))
    done = run(source, "--seed", 1, "--out", tmp_path / "out")
    assert done.returncode == 2 and "there is no column part" in done.stderr
    assert not (tmp_path / "out").exists()
