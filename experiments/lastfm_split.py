"""Draws another split of Last.fm (HetRec 2011): results on one split of a small log say little.

  python experiments/lastfm_split.py lastfm-hetrec2011 --seed 1 --out lastfm-1/source
  synergen data prepare lastfm --source lastfm-1/source --data-dir lastfm-1
  synergen sweep joint_lastfm --data-dir lastfm-1 --workdir runs/joint-lastfm-1 --seeds 0 --split test

A user's distinct artists are split at random: a fifth each, rounded down, is validated and tested, the rest trained on.
Events go with their artist. That is the split that the file has, drawn anew.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import pathlib
import shutil
import sys

import numpy as np

EVENTS, ITEMS = "events.csv.gz", "items.csv.gz"


def parts(artists: dict[str, list[str]], seed: int) -> dict[tuple[str, str], str]:
    """The part of each (user, artist): "train", "valid" or "test".

    Args:
      artists: of each user, each once.
    """
    found = {}
    for number, (user, names) in enumerate(artists.items()):
        order = np.random.default_rng((seed, number)).permutation(len(names)).tolist()
        some = len(names) // 5
        for place, at in enumerate(order):
            part = "valid" if place < some else "test" if place < 2 * some else "train"
            found[user, names[at]] = part
    return found


def split(source: pathlib.Path, seed: int, out: pathlib.Path) -> None:
    """Writes the files of `source` to `out`, with another split.

    Raises:
      ValueError: the file of events lacks a column.
      OSError: a file cannot be read or written.
    """
    with gzip.open(source / EVENTS, "rt", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        events, columns = list(rows), list(rows.fieldnames or ())
    if missing := {"user_id", "item_id", "part"} - set(columns):
        raise ValueError(f"{source / EVENTS}: there is no column {sorted(missing)[0]}")
    artists: dict[str, dict[str, None]] = {}
    for event in events:
        artists.setdefault(event["user_id"], {})[event["item_id"]] = None
    part = parts({user: sorted(names) for user, names in artists.items()}, seed)
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(event | {"part": part[event["user_id"], event["item_id"]]} for event in events)
    shutil.copyfile(source / ITEMS, out / ITEMS)
    (out / EVENTS).write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def main() -> int:
    """Splits, and exits with 2 where the input is wrong."""
    parser = argparse.ArgumentParser(
        "lastfm_split.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=pathlib.Path, help=f"a folder that holds {EVENTS} and {ITEMS}")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="another folder")
    arguments = parser.parse_args()
    if arguments.seed < 0:
        parser.error(f"--seed {arguments.seed}: a whole number from 0 up")
    if arguments.out.resolve() == arguments.source.resolve():
        parser.error(f"--out {arguments.out} is the source, which stays as it is")
    try:
        split(arguments.source, arguments.seed, arguments.out)
    except (OSError, ValueError, EOFError) as error:
        print(f"lastfm_split.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
