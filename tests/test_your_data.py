"""The commands of docs/your-data.md: all of them parse, and they run in their order on a small shop."""

import pathlib
import re
import shlex

import numpy as np
import polars as pl
import pytest

from synergen_jax.cli import main

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/your-data.md").read_text(encoding="utf-8")
LINES = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)).replace("\\\n", " ").splitlines()
COMMANDS = [words[1:] for line in LINES if (words := shlex.split(line, comments=True)) and words[0] == "synergen"]
# Added to every training: what is shown is how commands go together.
SMALL = (
    "--model.width 16 --model.depth 1 --run.steps 2 --run.eval_every 2 --run.checkpoint_every 2 --optimiser.warmup 1"
)
SMALL += (
    " --data.batch 8 --data.negatives 16 --loss.in_batch 16 --data.max_history 8 --data.stride 8 --data.rank_events 1"
)
SMALL += (
    " --data.rank_candidates 2 --loss.hard_candidates 0 --mesh.data 1 --evaluate.bootstrap 10 --evaluate.scann false"
)
SMALL += " --evaluate.batch 64 --evaluate.neighbours 0"


def test_every_action_of_data_is_shown():
    (data,) = (action for action in main.parser()._subparsers._group_actions if "data" in action.choices)
    actions = {name for one in data.choices["data"]._subparsers._group_actions for name in one.choices}
    assert actions - {"prepare"} == {words[1] for words in COMMANDS if words[0] == "data"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_commands_parse(command):
    main.parser().parse_known_args(command)


def shop(folder):
    """The files that the page names, small: a shop of some users, and what is added to it."""
    rng = np.random.default_rng(0)
    items = [f"sku-{i}" for i in range(60)] + ["sku-895"]
    titles = [
        f"{colour} {thing}" for colour in ("red cotton", "blue", "green") for thing in ("dress", "hat", "shoe", "cup")
    ]
    table = {"item": items, "title": [titles[i % 12] for i in range(61)]}
    table |= {"category": [f"kind-{i % 4}" for i in range(61)], "brand": ["a"] * 61}
    rows = []
    for user in range(60):
        for n in range(int(rng.integers(6, 12))):
            action = ("view", "purchase")[int(rng.integers(2))]
            item = items[int(rng.integers(60))] if n else "sku-895"
            rows.append(
                (f"user-{user}", item, 1_690_000_000 + 40_000 * n + 100 * user, action, titles[n] if n % 3 else "")
            )
    names = ("user", "item", "time", "action", "query")
    events = pl.DataFrame(dict(zip(names, zip(*rows, strict=True), strict=True)))
    (folder / "shop").mkdir()
    events.write_parquet(folder / "shop/events.parquet")
    pl.DataFrame(table).write_csv(folder / "shop/items.csv")
    pl.DataFrame(table).write_csv(folder / "items.csv")
    part = lambda n: ["train"] * (n - 2) + ["valid", "test"]
    split = events.sort("user", "time").with_columns(
        pl.concat(
            [pl.Series(part(len(one))) for _, one in events.sort("user", "time").group_by("user", maintain_order=True)]
        ).alias("split")
    )
    split.write_csv(folder / "events.csv")
    (folder / "folder").mkdir()
    for name in ("train", "valid", "test"):
        split.filter(pl.col("split") == name).drop("split").write_csv(folder / f"folder/{name}.csv")
    events.head(30).with_columns(pl.col("time") + 100_000, item=pl.lit("new-1")).unique(["user"]).write_csv(
        folder / "tuesday.csv"
    )
    (folder / "new-items.csv").write_text("item,title,category\nnew-1,red linen dress,kind-1\n")
    pl.DataFrame({"user": [f"user-{i}" for i in range(60)], "country": ["x", "y"] * 30}).write_parquet(
        folder / "customers.parquet"
    )
    (folder / "users.csv").write_text("user\nuser-1\nuser-2\n")
    (folder / "requests.csv").write_text("user,query\nuser-1,red dress\nuser-2,blue hat\n")
    (folder / "pairs.csv").write_text("user,item\nuser-1,sku-3\nuser-2,new-1\n")
    (folder / "in-stock.csv").write_text("item\n" + "\n".join(items[:40]) + "\n")
    (folder / "banned.csv").write_text("item\nsku-3\n")


@pytest.mark.slow
def test_the_commands_run_in_their_order(tmp_path, monkeypatch):
    shop(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYNERGEN_DATA", str(tmp_path / "data"))
    for words in COMMANDS:
        more = SMALL.split() if words[0] == "train" else []
        if words[0] == "train" and "--data.validation_from" in words:
            more += ["--data.validation_from", "0.6", "--data.test_from", "0.8"]
        if "--data.split" in words and "last-days" in words:
            more += ["--data.validation_days", "1.5", "--data.test_days", "1.5"]
        assert main.main([*words, *more]) == 0, " ".join(words)
