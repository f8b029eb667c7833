"""Where tests keep histories: a file, or a PostgreSQL server of their own, if the machine has one."""

import itertools

import own_postgres
import psycopg
import pytest

from synergen_jax.serving.history.opening import open_store

_schemas = itertools.count()


@pytest.fixture(scope="session")
def server():
    try:
        running = own_postgres.Server()
    except own_postgres.NoPostgres as error:
        pytest.skip(str(error))
    with running:
        yield running


@pytest.fixture
def address(server):
    """The address of a database that holds no histories yet."""
    schema = f"test_{next(_schemas)}"
    with psycopg.connect(server.url) as connection:
        connection.execute(f"create schema {schema}")
    return f"{server.url}?options=-csearch_path%3D{schema}"


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    """Where there are no histories yet, of each kind."""
    return str(tmp_path / "histories.db") if request.param == "sqlite" else request.getfixturevalue("address")


@pytest.fixture
def store(place):
    with open_store(place, "shop") as opened:
        yield opened
