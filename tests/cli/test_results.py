"""What an evaluation shows on demand: cut-offs, results of each target, slices by one's own columns."""

import json

import numpy as np
import pytest

from synergen_jax.cli.main import main

CONFIG = """
[data]
log = "small"
split = "time"
max_history = 8
batch = 8
rank_events = 2
rank_candidates = 4
[model]
width = 16
depth = 1
heads = 2
[optimiser]
warmup = 2
[mesh]
data = 1
[run]
steps = 2
eval_every = 2
checkpoint_every = 2
[evaluate]
batch = 16
rank_candidates = 5
rerank = 6
bootstrap = 10
scann = false
"""
USERS, ITEMS, START = 30, 24, 1_600_000_000


class Place:
    def __init__(self, root):
        self.root, self.data, self.workdir, self.capsys = root, root / "data", root / "run", None

    def call(self, *arguments):
        return main([*map(str, arguments), "--data-dir", str(self.data)])

    def evaluate(self, *arguments):
        """Status, the lines printed, the JSON, and the lines of errors."""
        self.capsys.readouterr()
        status = self.call("evaluate", self.workdir, "--json", *arguments)
        said = self.capsys.readouterr()
        lines = said.out.splitlines()
        return status, lines, json.loads(lines[-1]) if not status else {}, said.err.splitlines()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A log in which users go on at the same time, so that the newest tenth holds several targets of one user."""
    place, rng = Place(tmp_path_factory.mktemp("results")), np.random.default_rng(0)
    rows = ["user,item,time,query"]
    for user in range(USERS):
        for n, item in enumerate(rng.permutation(ITEMS)[:12]):
            query = f"thing {item}" if rng.random() < 0.5 else ""
            rows.append(f"u{user},i{item},{START + 1000 * n + user},{query}")
    (place.root / "events.csv").write_text("\n".join(rows) + "\n")
    (place.root / "small.toml").write_text(CONFIG)
    assert place.call("data", "import", place.root / "events.csv", "--name", "small") == 0
    assert place.call("train", place.root / "small.toml", "--workdir", place.workdir) == 0
    return place


@pytest.fixture
def place(made, capsys):
    made.capsys = capsys
    return made


def row(lines, title, system):
    """A system's row of the table under a title, by column."""
    start = lines.index(title) + 1
    head = lines[start].split()
    found = next(line.split() for line in lines[start + 2 :] if line.startswith(system + " "))
    return dict(zip(head, (word.rstrip("*") for word in found)))


# --- cut-offs -------------------------------------------------------------------------------------------------


def test_cut_offs_that_were_asked_for_are_shown_and_those_of_selections_kept(place, tmp_path):
    _, before, plain, _ = place.evaluate("--out", tmp_path / "plain")
    status, lines, found, errors = place.evaluate("--evaluate.k", "1,3,7,30", "--out", tmp_path)
    assert (status, errors) == (0, [])
    assert plain["model"] == {name: found["model"][name] for name in plain["model"]}
    assert plain["leads"] == found["leads"] and plain["slice_leads"] == found["slice_leads"]
    assert "k" not in plain["settings"] and found["settings"]["k"] == [1, 3, 7, 30]
    cut = [f"{metric}@{k}" for metric in ("hr", "ndcg") for k in (1, 3, 7, 30)]
    assert list(row(lines, "retrieval", "model"))[1:11] == [*cut, "mrr", "knows"]
    assert list(row(before, "retrieval", "model"))[1:6] == ["hr@1", "hr@5", "hr@10", "hr@50", "hr@200"]
    page = (tmp_path / "report_test.html").read_text()
    assert not any(">hr@10<" in text or "NDCG@10" in text for text in (page, *lines[:-1]))
    assert "hr@10" not in "".join(lines[:-1]) and "ndcg@7" in "".join(lines) and ">ndcg@7<" in page
    for k in (1, 3, 7):
        assert found["asked_leads"][f"ndcg@{k}"]["all"].keys() == found["leads"]["ndcg@10"].keys()
        lead = found["asked_leads"][f"ndcg@{k}"]["search"]["most_popular"]["mean"]
        both = found["slices"]["search"]
        assert lead == pytest.approx(both["model"][f"ndcg@{k}"] - both["most_popular"][f"ndcg@{k}"])


def test_a_cut_behind_what_is_ordered_anew_and_behind_the_catalogue(place, tmp_path):
    """Beyond the 6 that the head orders it changes no hit; beyond all items each target is one."""
    _, _, found, _ = place.evaluate("--evaluate.k", "6,8,1000000000", "--out", tmp_path)
    for k in (6, 8):
        assert found["model_reranked"][f"hr@{k}"] == pytest.approx(found["model"][f"hr@{k}"])
    for system in ("model", "model_reranked", "most_popular"):
        assert found[system]["hr@1000000000"] == 1.0 > found[system]["hr@8"]
        assert found[system]["ndcg@1000000000"] < 1


def test_cut_offs_out_of_order_are_refused(place):
    status, _, _, errors = place.evaluate("--evaluate.k", "5,1")
    assert status == 2 and len(errors) == 1
    assert "evaluate.k must be cut-offs from 1 up, each larger than the one before, not 5,1" in errors[0]
