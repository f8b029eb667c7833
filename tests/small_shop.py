"""A small shop whose users buy what their words name: its tables, its config, and the command line over both."""

import numpy as np

from synergen_jax.cli.main import main

CONFIG = """
[data]
log = "shop"
max_history = 8
batch = 8
rank_events = 2
rank_candidates = 4
[model]
width = 16
depth = 1
heads = 2
dropout = 0.0
query_ids = false
id_dropout = 0.2
[loss]
full_softmax = true
hard_candidates = 2
[optimiser]
learning_rate = 1e-2
warmup = 2
[mesh]
data = 1
[run]
steps = 30
eval_every = 15
checkpoint_every = 15
[evaluate]
batch = 32
rank_candidates = 5
rerank = 5
bootstrap = 10
scann = false
"""
COLOURS, THINGS = ("red", "blue", "green", "black"), ("dress", "shoes", "hat", "lamp", "chair", "cup")


def table(folder):
    """48 users, each of whom buys what its words name; items are a colour and a thing."""
    rng = np.random.default_rng(0)
    titles = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    rows = ["user,item,time,action,query"]
    for user in range(48):
        for n, item in enumerate(rng.permutation(len(titles))[: rng.integers(5, 9)]):
            query = titles[item] if rng.random() < 0.5 else ""
            rows.append(f"u{user},i{item},{1_600_000_000 + 1000 * user + 60 * n},buy,{query}")
    (folder / "events.csv").write_text("\n".join(rows) + "\n")
    items = ["item,title", *(f"i{i},{title}" for i, title in enumerate(titles))]
    (folder / "items.csv").write_text("\n".join(items) + "\n")
    (folder / "new.csv").write_text("item,title\nn1,golden lamp\nn2,green teapot\n")


class Shop:
    def __init__(self, root):
        self.root, self.data, self.workdir = root, root / "data", root / "run"
        table(root)
        (root / "shop.toml").write_text(CONFIG)

    def call(self, *arguments):
        return main([*map(str, arguments), "--data-dir", str(self.data)])

    def trained(self):
        """The shop with its log imported and a run trained on it."""
        events, items = self.root / "events.csv", self.root / "items.csv"
        assert self.call("data", "import", events, "--name", "shop", "--items", items) == 0
        assert self.call("train", self.root / "shop.toml", "--workdir", self.workdir) == 0
        return self
