"""A small log in memory with the interface of `EventLog`, and hand-made or random users for it."""

import numpy as np

from synergen_jax.batch import LogSpec

ACTIONS = ("", "view", "click", "buy")
LABELS = {"engage": (2, 3), "like": (3,)}


class SmallLog:
    """Records in a list. Pickles as it is, so that feed processes can have it."""

    name, fingerprint = "small", "0" * 64
    item_columns = {}  # noqa: RUF012
    source = {}  # noqa: RUF012

    def __init__(self, records, items, queries=5, labels=LABELS, seed=0):
        rng = np.random.default_rng(seed)
        matrix = lambda rows, width: np.vstack([np.zeros((1, width)), rng.normal(size=(rows - 1, width))])
        self.records, self.labels, self.actions = records, labels, list(ACTIONS)
        self.item_ids = ["", *(f"item-{i}" for i in range(1, items))]
        self.item_titles = list(self.item_ids)
        self.queries = ["", *(f"query {i}" for i in range(1, queries))]
        self.user_ids = [record["user_id"] for record in records]
        self.lengths = np.array([len(record["item"]) for record in records], np.int32)
        self.item_matrices = {"text": matrix(items, 4).astype(np.float16)}
        self.query_matrices = {"text": matrix(queries, 4).astype(np.float16)}
        self.spec = LogSpec(items, len(ACTIONS), queries, tuple(labels), (("text", 4),), (("text", 4),))

    def __len__(self):
        return len(self.records)

    def __getitem__(self, user):
        return self.records[user]


def user(item, *, name="u", action=None, query=None, time=None, request=None, shown=()):
    """A record. By default: clicks without a query, one a minute, each a request of its own.

    Args:
      shown: triples (request, item, action) of the lists that were shown, in the order of requests.
    """
    n = len(item)
    array = lambda values, default: np.array(default if values is None else values, np.int32)
    lists = np.array(shown, np.int32).reshape(-1, 3).T
    return {
        "user_id": name,
        "item": array(item, ()),
        "action": array(action, [2] * n),
        "query": array(query, [0] * n),
        "request": array(request, range(1, n + 1)),
        "time": 1_000_000_000 + np.array(range(0, 60 * n, 60) if time is None else time, np.int64),
        "shown_request": lists[0],
        "shown_item": lists[1],
        "shown_action": lists[2],
    }


def random_log(seed=0, users=20, items=40, longest=30, queries=5, least=1):
    """Users of 1 to `longest` events with repeats, tied times, bare searches, shared requests and shown lists."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(users):
        n = int(rng.integers(least, longest + 1))
        query = rng.integers(0, queries, n) * (rng.random(n) < 0.5)
        item = np.where((rng.random(n) < 0.15) & (query > 0), 0, rng.integers(1, items, n))
        request = 1 + np.cumsum(np.append(0, rng.random(n - 1) < 0.7))
        time = np.sort(rng.integers(0, 3 * n, n)) * 10 + rng.integers(0, 10**7)
        shown = []
        for at in np.unique(request):
            if rng.random() < 0.3:
                own = item[(request == at) & (item > 0)]
                others = rng.integers(1, items, rng.integers(1, 12))
                listed = np.setdiff1d(others, own)
                shown += [(at, i, 2) for i in dict.fromkeys(own.tolist())] + [(at, i, 0) for i in listed.tolist()]
        records.append(
            user(
                item,
                name=f"user-{number}",
                action=rng.integers(1, len(ACTIONS), n),
                query=query,
                time=time,
                request=request,
                shown=shown,
            )
        )
    return SmallLog(records, items, queries)
