"""Histories of users, in SQLite and in PostgreSQL alike: against plain lists, by many threads, across processes."""

import collections
import dataclasses
import random
import subprocess
import sys
import threading

import pytest

from synergen_jax.errors import UserError
from synergen_jax.serving.history.opening import open_store
from synergen_jax.serving.history.store import Event, History, Outcome, Size, Status

EVENT = Event("ann", "shoe-3", "buy", 1_700_000_000, id="e1")


class Lists:
    """What a store should say, by plain lists."""

    def __init__(self):
        self.events = collections.defaultdict(list)

    def append(self, events):
        said = []
        for event in events:
            there = [other for other in self.events[event.user] if other.id == event.id]
            if not there:
                self.events[event.user].append(event)
            said.append(
                Outcome(event.id, Status.STORED if not there else Status("known" if there == [event] else "conflict"))
            )
        return said

    def history(self, user, last):
        events = sorted(self.events[user], key=lambda event: event.time)  # stable: by arrival within a second
        return events[len(events) - min(last, len(events)) :]


def made_up(rng):
    """An event of few users, times and ids, so that all of them meet."""
    text = rng.choice(["", "red shoe", "Schuh für 20 €", "靴"])
    item = rng.choice(["shoe-3", "hat", "帽子", *[""] * bool(text)])
    request = rng.choice(["", "r1"])
    return Event(
        rng.choice("abcd"), item, rng.choice(["buy", "view"]), rng.randint(1, 9), text, request, str(rng.randint(1, 40))
    )


@pytest.mark.parametrize("seed", range(2))
def test_it_says_what_lists_would_say(store, seed):
    rng, lists, versions = random.Random(seed), Lists(), {user: [] for user in "abcd"}
    for _ in range(60):
        before = {user: list(lists.events[user]) for user in "abcd"}
        if rng.random() < 0.1:
            user = rng.choice("abcd")
            assert store.delete(user) == len(lists.events.pop(user, []))
        else:
            events = [made_up(rng) for _ in range(rng.randint(0, 6))]
            assert store.append(events) == lists.append(events)
        last = rng.randint(0, 30)
        for user, history in zip("abcd", store.histories("abcd", last)):
            assert history.events == lists.history(user, last)
            assert history == store.history(user, last) and history.version == store.version(user)
            assert (history.version == 0) == (not lists.events[user])
            if before[user] == lists.events[user]:
                assert versions[user][-1:] in ([history.version], [])
            elif history.version:
                assert history.version > max(versions[user], default=0)
            versions[user].append(history.version)
    users = sorted(user for user in "abcd" if lists.events[user])
    assert list(store.users()) == users
    size = store.size()
    assert size == Size(len(users), sum(map(len, lists.events.values())), size.bytes) and size.bytes > 0
    seen = [version for user in "abcd" for version in set(versions[user]) if version]
    assert len(seen) == len(set(seen)), "no version is that of two users"


def test_what_is_written_is_there_when_it_is_opened_again(place):
    events = [dataclasses.replace(EVENT, time=time, id=str(time)) for time in (3, 1, 2)]
    with open_store(place, "shop") as store:
        store.append(events)
        version = store.version("ann")
    with open_store(place, "shop") as store:
        assert store.history("ann") == History(version, sorted(events, key=lambda event: event.time))
        store.delete("ann")
    with open_store(place, "shop") as store:
        store.append(events[:1])
        assert store.version("ann") > version, "a user who comes back has another history"


def test_a_store_makes_ids_where_a_client_has_none(store):
    twice = [dataclasses.replace(EVENT, id="")] * 2
    said = store.append(twice)
    assert [outcome.status for outcome in said] == [Status.STORED, Status.STORED]
    assert [event.id for event in store.history("ann").events] == [outcome.id for outcome in said]
    assert said[0].id != said[1].id


def test_ids_are_of_one_user(store):
    other = dataclasses.replace(EVENT, user="bob", item="hat")
    assert [outcome.status for outcome in store.append([EVENT, other])] == [Status.STORED, Status.STORED]


def test_of_many_that_send_one_event_one_stores_it(place):
    """Each thread appends the same events in an order of its own; to PostgreSQL over two stores, as two servers do."""
    first = open_store(place, "shop")
    second = open_store(place, "shop") if "://" in place else first
    events = [Event(f"user-{n % 5}", "hat", "buy", 1 + n, id=str(n)) for n in range(40)]
    said, contents = [], collections.defaultdict(set)

    def send(number):
        store, mine = (first, second)[number % 2], random.Random(number).sample(events, len(events))
        for some in (mine[place : place + 4] for place in range(0, len(mine), 4)):
            said.extend(zip(some, store.append(some)))
            user = some[0].user
            history = store.history(user)
            assert set(event for event in some if event.user == user) <= set(history.events), "it reads what it wrote"
            contents[user, history.version].add(tuple(history.events))

    in_threads(send, 8)
    for store in (first, second):
        there = [event for history in store.histories(sorted(store.users())) for event in history.events]
        assert there == sorted(events, key=lambda event: (event.user, event.time))
    first.close()
    second.close()
    stored = collections.Counter(event for event, outcome in said if outcome.status is Status.STORED)
    assert stored == collections.Counter(events) and len(said) == 8 * len(events)
    assert all(len(there) == 1 for there in contents.values()), "a version is one content"


def test_deletions_and_appends_at_once(place):
    """Users are deleted while others append to them: what is there in the end fits what the store counts."""
    first = open_store(place, "shop")
    second = open_store(place, "shop") if "://" in place else first

    def send(number):
        store, rng = (first, second)[number % 2], random.Random(number)
        for n in range(25):
            store.append([Event(rng.choice("ab"), "hat", "buy", 1 + n, id=f"{number}-{n}") for _ in range(3)])
            if rng.random() < 0.15:
                store.delete(rng.choice("ab"))

    in_threads(send, 4)
    assert first.size().events == sum(len(history.events) for history in first.histories("ab"))
    first.close()
    second.close()


def in_threads(work, count):
    """Calls `work` with each number at once; their first error, if any, is raised."""
    errors = []

    def one(number):
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        raise error


def test_close_finishes_what_was_accepted(place):
    store, sent = open_store(place, "shop"), collections.defaultdict(list)

    def send(number):
        for n in range(10_000):
            event = Event(f"user-{number}", "hat", "buy", 1 + n, id=str(n))
            try:
                store.append([event])
            except UserError as error:
                assert "is closed" in str(error)
                return
            sent[event.user].append(event)
            if n == 5:
                enough.release()

    enough = threading.Semaphore(0)
    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        enough.acquire()
    store.close()
    store.close()
    for thread in threads:
        thread.join()
    with pytest.raises(UserError, match="is closed"):
        store.history("user-0")
    with open_store(place, "shop") as again:
        for user, events in sent.items():
            assert again.history(user).events[: len(events)] == events


READER = """
import sys
from synergen_jax.serving.history.opening import open_store
with open_store(sys.argv[1], "shop", write=False) as store:
    for line in sys.stdin:
        print(*(event.item for event in store.history(line.strip()).events), flush=True)
"""


def test_another_process_reads_what_was_acknowledged(store, place):
    with subprocess.Popen(
        [sys.executable, "-c", READER, place], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as run:
        assert run.stdin and run.stdout
        for n in range(20):
            store.append([Event("ann", f"item-{n}", "buy", 1 + n)])
            print("ann", file=run.stdin, flush=True)
            assert run.stdout.readline().split() == [f"item-{k}" for k in range(n + 1)]
        run.stdin.close()


def test_who_only_reads_does_not_write(store, place):
    store.append([EVENT])
    with open_store(place, "shop", write=False) as reader:
        assert reader.history("ann").events == [EVENT]
        for write in (lambda: reader.append([EVENT]), lambda: reader.delete("ann")):
            with pytest.raises(UserError, match="for reading alone"):
                write()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"user": ""}, "user is empty"),
        ({"action": ""}, "action is empty"),
        ({"item": ""}, "neither an item nor a query"),
        ({"item": 3}, "item must be text, not 3"),
        ({"query": "a\0b"}, "NUL"),
        ({"request": "\ud800"}, "surrogate"),
        ({"time": 1.5}, "a whole number, not 1.5"),
        ({"time": 0}, "Unix seconds"),
        ({"time": 1_700_000_000_000}, "not milliseconds"),
        ({"id": "é" * 513}, "id has 1026 bytes; at most 1024"),
    ],
)
def test_what_is_no_event_is_refused_by_its_place(store, change, message):
    with pytest.raises(UserError, match=f"event 1: .*{message}"):
        store.append([EVENT, dataclasses.replace(EVENT, **change)])
    assert store.size().events == 0, "nothing of the call is stored"


def test_the_longest_ids_fit(store):
    event = Event(
        "u" * 1024, "i" * 5_000, "a" * 5_000, 1, "q" * 100_000, "r" * 5_000, random.Random(0).randbytes(512).hex()
    )
    assert store.append([event, event])[1].status is Status.KNOWN
    assert store.history(event.user).events == [event]


def test_odd_questions(store):
    with pytest.raises(UserError, match="from 0 up"):
        store.history("ann", -1)
    with pytest.raises(UserError, match="surrogate"):
        store.version("\ud800")
    assert store.histories([]) == [] and store.append([]) == [] and store.delete("nobody") == 0


def test_a_store_belongs_to_one_log(place):
    open_store(place, "shop").close()
    with pytest.raises(UserError, match="histories of the log 'shop', not of 'books'"):
        open_store(place, "books")
    open_store(place, "shop").close()


def test_there_is_nothing_to_read_yet(place):
    with pytest.raises(UserError, match=r"is not there|no histories yet"):
        open_store(place, "shop", write=False)
