"""The serving engine: its answers are those of `Served`, whatever the tiers hold, and know every acknowledged event."""

import concurrent.futures
import dataclasses
import threading
import time

import jax
import numpy as np
import pytest
import small_shop
from small_service import SmallService

import synergen_jax as sg
from synergen_jax.runs import serve
from synergen_jax.runs.run import open_run
from synergen_jax.serving import compiled
from synergen_jax.serving.asking import Ask, Overloaded, TooLate, Unknown
from synergen_jax.serving.engine import Engine, Settings, _Job
from synergen_jax.serving.history.opening import open_store
from synergen_jax.serving.history.store import Event, Status, Unavailable

SMALL = Settings(slots=16, host_bytes=0, waiting=64, most=100)
LATER = 1_700_000_000


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    made = small_shop.Shop(tmp_path_factory.mktemp("shop")).trained()
    made.opened = open_run(made.workdir, [], made.data)
    made.deployed = serve.deployed(made.opened)
    return made


@pytest.fixture
def engine(shop, tmp_path):
    """An engine over an empty store."""
    with opened(shop, tmp_path) as made:
        yield made


class opened:
    """An engine over the store of a folder, warm, closed at the end."""

    def __init__(self, shop, folder, settings=SMALL):
        self.shop, self.folder, self.settings = shop, folder, settings

    def __enter__(self):
        store = open_store(self.folder / "histories.sqlite", "shop")
        self.engine = Engine(self.shop.deployed, store, self.settings)
        while not self.engine.ready:
            time.sleep(0.01)
        return self.engine

    def __exit__(self, *_):
        self.engine.close()


def served(shop, user, query="", at=LATER, record=None, **asked):
    """What `Served` answers: the path that is evaluated."""
    question = sg.Question(query=query, at=at, **asked)
    made = sg.Served(shop.opened.run, shop.opened.params, question, [query])
    if record is None and user is not None:
        log = shop.opened.run.log
        record = log[log.find_user(user)]
    request = made.request(record, str(user), query)
    found = made.recommender.answer([request], question.k, question.order)[0]
    return [(made.ids[one.item], one.score, one.probability) for one in found]


def same(found, wanted):
    assert [one.item for one in found] == [item for item, _, _ in wanted]
    np.testing.assert_allclose([one.score for one in found], [score for _, score, _ in wanted], atol=1e-5)
    chances = lambda rows: [[*row] for row in rows]
    np.testing.assert_allclose(
        chances(one.probability.values() for one in found), chances(p.values() for _, _, p in wanted), atol=1e-5
    )


def event(user, item, at, action="buy", query="", **more):
    return Event(user, item, action, at, query, **more)


@pytest.mark.parametrize("query", ("", "golden lamp", "red dress", "blue  cup of nothing"))
@pytest.mark.parametrize("user", ("u1", "u7", None))
def test_an_answer_is_that_of_the_path_that_is_evaluated(shop, engine, user, query):
    at = shop.opened.run.log.last_time if user is None else LATER
    answer = engine.ask(Ask(user, query, k=5, time=at))
    same(answer.items, served(shop, user, " ".join(query.split()), at=at, k=5))
    assert answer.model == engine.name and answer.version == 0


def test_order_allow_deny_and_what_was_seen(shop, engine):
    ask = lambda **more: engine.ask(Ask("u3", k=4, time=LATER, **more)).items
    same(ask(order="engage"), served(shop, "u3", k=4, order="engage"))
    best = [one.item for one in ask()]
    assert best[0] not in [one.item for one in ask(deny=best[:1])]
    same(ask(deny=tuple(best[:1])), served(shop, "u3", k=4, exclude=best[:1]))
    same(ask(allow=tuple(best[1:3])), served(shop, "u3", k=2, items=best[1:3]))
    same(ask(keep_seen=True), served(shop, "u3", k=4, keep_seen=True))
    log = shop.opened.run.log
    had = {log.item_ids[i] for i in log[log.find_user("u3")]["item"]}
    assert not had & set(best) and had & {one.item for one in engine.ask(Ask("u3", k=24, keep_seen=True)).items}


def test_candidates_are_ranked_in_their_order(shop, engine):
    items = ("i3", "i0", "i21")
    found = engine.ask(Ask("u5", candidates=items, time=LATER)).items
    assert [one.item for one in found] == list(items)
    all_of_them = {one.item: one for one in engine.ask(Ask("u5", k=24, keep_seen=True, time=LATER)).items}
    for one in found:
        assert one.score == pytest.approx(all_of_them[one.item].score, abs=1e-5)
        assert one.probability == pytest.approx(all_of_them[one.item].probability, abs=1e-5)


def test_a_candidate_of_which_nothing_is_known_has_no_score(engine, monkeypatch):
    known = engine._answering._findable.copy()
    known[engine._answering.items["i0"]] = False
    monkeypatch.setattr(engine._answering, "_findable", known)
    found = engine.ask(Ask("u5", candidates=("i0", "i3"), order="engage", time=LATER)).items
    assert [one.item for one in found] == ["i3", "i0"]
    assert (found[1].score, found[1].probability) == (None, {}) and found[0].score is not None
    with SmallService(engine=engine) as service:
        told = service.post("/v1/rank", {"user": "u5", "candidates": ["i0"]}).json()["items"]
    assert told == [{"item": "i0", "score": None, "probability": {}}]


def test_requests_that_wait_together_are_answered_as_alone(shop, engine):
    asks = [Ask(f"u{i % 30}", ("", "red hat")[i % 2], k=1 + i % 5, time=LATER + i) for i in range(60)]
    alone = [engine.ask(one) for one in asks]
    found = [None] * len(asks)

    def ask(place):
        found[place] = engine.ask(asks[place])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asks))]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for one, other in zip(found, alone, strict=True):
        assert [x.item for x in one.items] == [x.item for x in other.items]
        np.testing.assert_allclose([x.score for x in one.items], [x.score for x in other.items], atol=1e-5)
    gauges = engine.gauges()
    assert gauges["batches_total"] < gauges["answered_total"] == 120


def test_an_answer_knows_every_acknowledged_event(shop, engine):
    """Of a user of the log, and of one whom the log does not know, item after item, past what a cache holds."""
    log = shop.opened.run.log
    for user in ("u2", "stranger"):
        record = (
            log[log.find_user(user)]
            if user == "u2"
            else {n: np.zeros(0, int) for n in ("time", "item", "action", "query")}
        )
        rows = {name: record[name].tolist() for name in ("time", "item", "action", "query")}
        for n in range(20):
            item, query = f"i{(5 * n) % 24}", ("", "red dress", "a golden lamp")[n % 3]
            outcome = engine.add([event(user, item, LATER + n, query=query if n % 3 < 2 else "")])[0]
            assert outcome.status is Status.STORED
            told = LATER + n, log.item_ids.index(item), 1, log.queries.index(query) if n % 3 == 1 else 0
            for values, value in zip(rows.values(), told, strict=True):
                values.append(value)
            answer = engine.ask(Ask(user, k=3, time=LATER + 100, keep_seen=True))
            begin = max(0, -(-(len(rows["time"]) - 8) // 2) * 2)  # windows of 8 events move by 2
            past = {name: np.array(values[begin:]) for name, values in rows.items()} | {"user_id": user}
            past |= {"request": np.arange(1, 1 + len(past["time"]))}
            past |= {name: np.zeros(0, int) for name in ("shown_item", "shown_request", "shown_action")}
            same(answer.items, served(shop, user, at=LATER + 100, record=past, k=3, keep_seen=True))
            assert answer.events == len(past["time"])


def test_late_events_stand_at_their_place(shop, engine):
    engine.add([event("new", "i1", LATER), event("new", "i2", LATER + 50)])
    first = engine.ask(Ask("new", k=3, time=LATER + 100))
    engine.add([event("new", "i3", LATER + 20)])
    late = engine.ask(Ask("new", k=3, time=LATER + 100))
    engine.add([event("other", "i1", LATER), event("other", "i3", LATER + 20), event("other", "i2", LATER + 50)])
    wanted = engine.ask(Ask("other", k=3, time=LATER + 100))
    assert first.version != late.version
    np.testing.assert_allclose([x.score for x in late.items], [x.score for x in wanted.items], atol=1e-6)


@pytest.mark.parametrize("host_bytes", (0, 10_000, 10**8))
def test_what_was_evicted_is_rebuilt_to_the_same_answer(shop, tmp_path, host_bytes):
    """48 users and 16 slots: each is answered again after the others had the slots."""
    with opened(shop, tmp_path, Settings(slots=16, host_bytes=host_bytes)) as engine:
        for user in range(48):
            for n in range(3):  # caches that grew
                engine.add([event(f"u{user}", f"i{(user + n) % 24}", LATER + n)])
                engine.ask(Ask(f"u{user}", k=1))
        answers = []
        for _ in range(2):
            answers.append([engine.ask(Ask(f"u{user}", k=5, time=LATER + 60)) for user in range(48)])
        for one, other in zip(*answers, strict=True):
            assert [x.item for x in one.items] == [x.item for x in other.items]
            np.testing.assert_allclose([x.score for x in one.items], [x.score for x in other.items], atol=1e-5)
        gauges = engine.gauges()
        assert gauges["device_slots_used"] == 16 and gauges["host_bytes"] <= host_bytes
        assert (gauges["cache_host_hits_total"] > 0) == (host_bytes >= 10**8)


def test_a_store_that_fails_costs_no_answer_its_events(shop, engine, monkeypatch):
    """It fails between the versions and the histories of one batch: what is cached by then is not taken for newer."""
    engine.ask(Ask("u1", k=3))
    engine.add([event("u1", "i9", LATER), event("u2", "i9", LATER)])
    store, whole = engine._store, type(engine._store).history

    def fails(self, user, last=None):
        if last is None and user == "u2":
            raise Unavailable("the disk is gone")
        return whole(self, user, last)

    monkeypatch.setattr(type(store), "history", fails)
    jobs = [_Job(Ask(user, k=3), time.monotonic() + 60, concurrent.futures.Future()) for user in ("u1", "u2")]
    engine._waiting += len(jobs)
    engine._on_thread(lambda: engine._answer(jobs))
    assert all(isinstance(job.answer.exception(), Unavailable) for job in jobs)
    with pytest.raises(Unavailable):
        engine.ask(Ask("u2", k=3))
    monkeypatch.undo()
    assert engine.ask(Ask("u1", k=3)).events == shop.opened.run.log.lengths[shop.opened.run.log.find_user("u1")] + 1


def test_the_device_that_fails_costs_the_caches_alone(shop, engine, monkeypatch):
    before = engine.ask(Ask("u1", k=3, time=LATER))

    def fails(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(compiled, "encode_to", fails)
    with pytest.raises(RuntimeError):
        engine.ask(Ask("u30", k=3, time=LATER))
    monkeypatch.undo()
    assert engine.ask(Ask("u1", k=3, time=LATER)) == before


def test_another_process_may_write(shop, engine, tmp_path):
    """A second store over the same file stands for it: it may only read; so the writer's events are seen by its engine."""
    reader = open_store(tmp_path / "histories.sqlite", "shop", write=False)
    other = Engine(shop.deployed, reader, SMALL)
    try:
        before = other.ask(Ask("u9", k=2))
        engine.add([event("u9", "i4", LATER)])
        after = other.ask(Ask("u9", k=2))
        assert (before.version, after.events) == (0, before.events + 1) and after.version > 0
    finally:
        other.close()


def test_nothing_compiles_once_it_is_ready(shop, engine, caplog):
    with jax.log_compiles():
        for n, user in enumerate(("u1", "u2", None, "stranger", "u5")):
            engine.ask(Ask(user, ("", "a golden cup of tea")[n % 2], k=1 + n, order=("", "engage")[n % 2]))
            engine.ask(Ask(user, deny=("i1",), allow=("i1", "i2", "i3")))
            engine.ask(Ask(user, candidates=("i1", "i2")))
            if user:
                engine.add([event(user, f"i{n}", LATER + i) for i in range(n + 1)])
                engine.ask(Ask(user, k=40))
        engine.similar("i2", 3)
        names = {r.getMessage().split()[1] for r in caplog.records if r.getMessage().startswith("Compiling")}
    assert not {name for name in names if any(f"({own})" in name for own in vars(compiled))}


def test_a_deleted_user_is_what_the_log_knows(shop, engine):
    before = engine.ask(Ask("u4", k=3, time=LATER + 9))
    engine.add([event("u4", "i4", LATER)])
    assert engine.ask(Ask("u4", k=3, time=LATER + 9)).version > 0
    assert engine.delete("u4") == 1
    assert engine.ask(Ask("u4", k=3, time=LATER + 9)) == before


def test_events_that_the_log_was_given_count_once(shop, engine):
    log = shop.opened.run.log
    record = log[log.find_user("u6")]
    before = engine.ask(Ask("u6", k=3, time=LATER))
    again = [
        event("u6", log.item_ids[item], int(moment), query=log.queries[query])
        for item, moment, query in zip(record["item"], record["time"], record["query"], strict=True)
    ]
    engine.add(again)
    after = engine.ask(Ask("u6", k=3, time=LATER))
    assert after.events == before.events and [x.item for x in after.items] == [x.item for x in before.items]


def test_a_swapped_model_answers_with_fresh_caches(shop, engine):
    before = engine.ask(Ask("u1", k=5, time=LATER))
    other = jax.tree.map(lambda x: x * 1.01, shop.deployed.params)
    engine.swap(dataclasses.replace(shop.deployed, name="another", params=other))
    after = engine.ask(Ask("u1", k=5, time=LATER))
    assert after.model == engine.name == "another"
    assert [x.score for x in after.items] != [x.score for x in before.items]


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (Ask("u1", k=0), sg.UserError, "k = 0"),
        (Ask("u1", k=10**6), sg.UserError, "k lies within 1"),
        (Ask("u1", order="liked"), Unknown, "none of the ranked labels"),
        (Ask("u1", candidates=("i1", "x9")), Unknown, "candidate 'x9' is not in shop"),
        (Ask("u1", candidates=()), sg.UserError, "0 candidates"),
        (Ask("u1", deny=("x9",)), Unknown, "denied item 'x9'"),
        (Ask("u1", allow=("x9",)), Unknown, "allowed item 'x9'"),
        (Ask("u1", time=5), sg.UserError, "before the last event"),
        (Ask("u1", time=10**10), sg.UserError, "more than 30 years after"),
        (Ask("u1", time=-5), sg.UserError, "before the last event"),
        (Ask("stranger", time=-5), sg.UserError, "out of range"),
    ],
)
def test_what_cannot_be_answered_is_told_and_costs_the_others_nothing(engine, ask, error, message):
    with pytest.raises(error, match=message):
        engine.ask(ask)
    assert engine.ask(Ask("u1", k=1)).items


def test_events_that_the_model_cannot_read_are_refused(engine):
    for wrong, message in (
        (event("u1", "x9", LATER), "item 'x9' is not in shop"),
        (event("u1", "i1", LATER, "bought"), "action 'bought' is none of buy"),
        (event("u1", "i1", -3), "time -3"),
        (event("u1", "i1", LATER, query="x" * 2000), "a query of more than 1,024 bytes"),
    ):
        with pytest.raises(sg.UserError, match=message):
            engine.add([event("u1", "i2", LATER), wrong])
    assert engine.history("u1").events == []


def test_too_many_that_wait_are_refused_and_late_ones_told(shop, tmp_path):
    with opened(shop, tmp_path, Settings(slots=16, waiting=2)) as engine:
        hold, held = threading.Event(), threading.Event()

        def block():
            held.set()
            hold.wait(20)

        blocker = threading.Thread(target=lambda: engine._on_thread(block))
        blocker.start()
        held.wait(20)
        late = []

        def ask(within):
            try:
                engine.ask(Ask("u1", k=1), within)
            except sg.UserError as error:
                late.append(error)

        waiting = [threading.Thread(target=ask, args=(within,)) for within in (0.01, 30)]
        for one in waiting:
            one.start()
        while engine.gauges()["waiting"] < 2:
            time.sleep(0.01)
        with pytest.raises(Overloaded, match="2 requests wait already") as refused:
            engine.ask(Ask("u1", k=1))
        assert refused.value.retry_after > 0
        time.sleep(0.05)
        hold.set()
        for one in (blocker, *waiting):
            one.join()
        assert [type(error) for error in late] == [TooLate]


def test_similar_items_are_those_of_the_command(shop, engine):
    found = engine.similar("i5", 4)
    keys = sg.Recommender(shop.opened.run.model, shop.opened.params, shop.opened.run.catalogue).keys()
    number = shop.opened.run.log.item_ids.index("i5")
    scores = keys @ keys[number]
    scores[[0, number]] = -np.inf
    assert [one.item for one in found] == [
        shop.opened.run.log.item_ids[i] for i in np.argsort(-scores, kind="stable")[:4]
    ]
    with pytest.raises(Unknown):
        engine.similar("x9", 3)


def test_a_closed_engine_says_so(shop, tmp_path):
    with opened(shop, tmp_path) as engine:
        engine.close()
        for call in (
            lambda: engine.ask(Ask("u1")),
            lambda: engine.similar("i1"),
            lambda: engine.add([event("u1", "i1", LATER)]),
        ):
            with pytest.raises(sg.UserError, match="the engine is closed"):
                call()


def test_an_engine_that_cannot_start_says_so(shop, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(compiled, "encode_to", fails)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    engine = Engine(shop.deployed, open_store(tmp_path / "histories.sqlite", "shop"), SMALL)
    with pytest.raises(sg.UserError, match="the engine could not start: RESOURCE_EXHAUSTED"):
        engine.ask(Ask("u1"))
    assert engine.failed and not engine.ready
    engine.close()


def test_the_service_over_a_trained_run(shop, engine):
    """From a request's JSON to the model and back, and the events that it is told of."""
    with SmallService(engine=engine) as service:
        assert service.get("/readyz").status_code == 200
        first = service.post("/v1/search", {"user": "u1", "query": "red dress", "k": 3, "time": LATER}).json()
        assert [row["item"] for row in first["items"]] == [item for item, _, _ in served(shop, "u1", "red dress", k=3)]
        click = {"user": "u1", "item": "i3", "action": "buy", "time": LATER, "request": first["request_id"], "id": "c"}
        assert service.post("/v1/events", {"events": [click]}).json()["outcomes"] == [{"id": "c", "status": "stored"}]
        after = service.post("/v1/recommend", {"user": "u1", "k": 3}).json()
        assert (after["version"] > first["version"]) and after["events"] == first["events"] + 1
        assert service.post("/v1/rank", {"user": "u1", "candidates": ["x9"]}).status_code == 422
        assert len(service.post("/v1/similar", {"item": "i3", "k": 2}).json()["items"]) == 2
        assert [row["item"] for row in service.get("/v1/users/u1").json()["events"]] == ["i3"]
        assert "synergen_device_slots_used" in service.get("/metrics").text
