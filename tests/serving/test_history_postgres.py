"""Histories in PostgreSQL: connections that are lost, servers that do not keep what they say, and secrets."""

import threading
import time

import psycopg
import pytest
from test_history_store import EVENT, in_threads

from synergen_jax.errors import UserError
from synergen_jax.serving.history import pool
from synergen_jax.serving.history.opening import open_store
from synergen_jax.serving.history.store import Event, Status, Unavailable


def end_connections(server):
    """Ends all connections to a server, as a restart of it does."""
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() and datname > ''"
        )


def test_a_lost_connection_is_replaced(server, address):
    with open_store(address, "shop") as store:
        store.append([EVENT])
        for number in range(3):
            end_connections(server)
            assert store.append([Event("bob", "hat", "buy", 1, id=str(number))])[0].status is Status.STORED
            end_connections(server)
            assert store.history("ann").events == [EVENT]


def test_connections_that_are_lost_while_many_write_lose_and_double_nothing(server, address):
    over = threading.Event()

    def send(number):
        if number == 4:
            while not over.wait(0.05):
                end_connections(server)
            return
        for n in range(30):
            event = Event(f"user-{number}", f"item-{n}", "buy", 1 + n, id=str(n))
            while True:
                try:
                    assert store.append([event])[0].status in (Status.STORED, Status.KNOWN)
                    break
                except Unavailable:
                    time.sleep(0.01)
        running.release()
        if number == 0:
            for _ in range(4):
                running.acquire()
            over.set()

    running = threading.Semaphore(0)
    with open_store(address, "shop") as store:
        in_threads(send, 5)
        for number in range(4):
            assert [event.item for event in store.history(f"user-{number}").events] == [f"item-{n}" for n in range(30)]


def test_a_server_that_is_gone_is_an_error_and_no_secret(server):
    gone = server.url.replace(f":{server.url.rpartition(':')[2]}", ":1/postgres")
    secret = server.url.split(":")[2].split("@")[0]
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1/postgres: PostgreSQL says: connection failed") as told:
        open_store(gone, "shop")
    assert secret not in str(told.value)
    with pytest.raises(Unavailable, match="authentication failed") as told:
        open_store(server.url.replace(secret, "wrong-secret"), "shop")
    assert "wrong-secret" not in str(told.value)
    with pytest.raises(UserError, match="an address of PostgreSQL is") as told:
        open_store(f"postgresql://owner:{secret}@[::1", "shop")
    assert secret not in str(told.value)


def test_databases_that_do_not_keep_text_are_refused(server):
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("create database ascii encoding 'SQL_ASCII' template template0 locale 'C'")
    with pytest.raises(UserError, match="server_encoding = SQL_ASCII, and histories need UTF8"):
        open_store(server.url.replace("/postgres", "/ascii"), "shop")


def test_a_database_that_would_not_wait_for_its_disk_is_made_to(server, address):
    """`synchronous_commit = off` acknowledges what a crash loses."""
    with open_store(f"{address}%20-csynchronous_commit%3Doff", "shop") as store:
        assert store._do(lambda connection: connection.execute("show synchronous_commit").fetchall()) == [("on",)]


def test_servers_that_start_at_once_make_one_store(address):
    stores = []
    in_threads(lambda number: stores.append(open_store(address, "shop")), 6)
    for number, store in enumerate(stores):
        store.append([Event("ann", f"item-{number}", "buy", 1 + number)])
    assert len(stores[0].history("ann").events) == 6
    for store in stores:
        store.close()


def test_many_threads_share_few_connections(server, address):
    with open_store(address, "shop") as store, psycopg.connect(server.url) as connection:
        in_threads(lambda number: store.append([Event("ann", "hat", "buy", 1, id=str(number))]), 3 * pool.MOST)
        asked = "select count(*) from pg_stat_activity where pid <> pg_backend_pid() and datname > ''"
        assert connection.execute(asked).fetchall()[0][0] <= pool.MOST
        assert len(store.history("ann").events) == 3 * pool.MOST
