"""Histories in a file of SQLite: what is refused at opening, disks that fail, files that go, text that must go."""

import contextlib
import os
import random
import sys
import tempfile
import time

import apsw
import pytest
from test_history_store import EVENT, in_threads

from synergen_jax.errors import UserError
from synergen_jax.serving.history import sqlite
from synergen_jax.serving.history.opening import open_store
from synergen_jax.serving.history.sqlite import SqliteStore
from synergen_jax.serving.history.store import Event, Status, Unavailable


@pytest.fixture
def path(tmp_path):
    return tmp_path / "histories.db"


class Failing(apsw.VFS):
    """A disk that is full, or whose syncs fail, while it is told so; it counts its syncs, which take their time."""

    def __init__(self):
        super().__init__("failing", "")
        self.full = self.broken = False
        self.syncs = 0

    def xOpen(self, name, flags):
        return FailingFile(self, name, flags)


class FailingFile(apsw.VFSFile):
    """A file on it."""

    def __init__(self, disk, name, flags):
        super().__init__("", name, flags)
        self._disk = disk

    def xWrite(self, data, offset):
        if self._disk.full:
            raise apsw.FullError("no room")
        super().xWrite(data, offset)

    def xSync(self, flags):
        if self._disk.broken:
            raise apsw.IOError("a bad sector")
        self._disk.syncs += 1
        time.sleep(0.005)
        super().xSync(flags)


@pytest.mark.parametrize("fault, message", [("full", "the disk is full: make room"), ("broken", "a bad sector")])
def test_a_disk_that_fails_fails_all_who_wait_and_nothing_else(path, fault, message):
    disk = Failing()
    errors = []

    def send(number):
        with pytest.raises(Unavailable, match=message) as told:
            store.append([Event(f"user-{number}", "hat", "buy", 1, id=f"{n}") for n in range(3)])
        errors.append(told)

    with SqliteStore(path, "shop", vfs="failing") as store:
        store.append([EVENT])
        before = store.history("ann")
        setattr(disk, fault, True)
        in_threads(send, 8)
        assert len(errors) == 8 and store.history("ann") == before and list(store.users()) == ["ann"]
        setattr(disk, fault, False)
        assert store.append([Event("user-1", "hat", "buy", 1, id="1")])[0].status is Status.STORED
    with open_store(path, "shop") as store:
        assert list(store.users()) == ["ann", "user-1"] and store.size().events == 2, "nothing half-written"


def test_one_append_is_one_sync_and_many_at_once_share_them(path):
    disk = Failing()

    def send(number):
        for n in range(10):
            store.append([Event(f"user-{number}", "hat", "buy", 1 + n)])

    with SqliteStore(path, "shop", vfs="failing") as store:
        store.append([EVENT])
        before = disk.syncs
        send(0)
        assert disk.syncs == before + 10
        in_threads(send, 16)
        assert disk.syncs < before + 10 + 160 / 2


def test_a_reader_that_was_there_first_sees_what_a_writer_stores_later(path):
    open_store(path, "shop").close()
    with open_store(path, "shop", write=False) as reader:
        for number in range(2):
            with open_store(path, "shop") as store:
                store.append([Event("ann", "hat", "buy", 1 + number)])
                assert len(reader.history("ann").events) == 1 + number
            assert len(reader.history("ann").events) == 1 + number, "the writer has gone"


@pytest.mark.parametrize("name", ["histories.db", "histories.db-wal"])
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_a_file_that_goes_while_it_is_open_is_no_silent_loss(path, name, replace, again):
    open_store(path, "shop").close()
    store = SqliteStore(path, "shop")
    if again:
        store.append([EVENT])
    file = path.with_name(name)
    away = file.rename(file.with_name("away"))
    if replace:
        file.write_bytes(away.read_bytes())
    for ask in (lambda: store.append([EVENT]), lambda: store.history("ann")):
        with pytest.raises(Unavailable, match="removed or replaced"):
            ask()
    with contextlib.suppress(UserError):
        store.close()


def test_one_process_writes_a_file(path):
    with open_store(path, "shop") as store:
        with pytest.raises(UserError, match=f"process {os.getpid()} writes it already.*postgresql://"):
            open_store(path, "shop")
        (path.parent / "link").symlink_to(path)
        with pytest.raises(UserError, match="writes it already"):
            open_store(path.parent / "link", "shop")
        store.append([EVENT])
    open_store(path, "shop").close()


def test_another_program_that_locks_the_file(path, monkeypatch):
    monkeypatch.setattr(sqlite, "PATIENCE", 50)
    with open_store(path, "shop") as store, contextlib.closing(apsw.Connection(str(path))) as other:
        other.execute("begin immediate")
        with pytest.raises(Unavailable, match="another program has locked the file"):
            store.append([EVENT])
        assert store.history("ann").events == [], "reading goes on"
        other.execute("rollback")
        store.append([EVENT])


def text_of(path):
    """All that the files of a store hold."""
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


def test_no_text_of_the_deleted_stays_in_any_file(path):
    """Pages are split while users come, and merged while they go: copies of rows are left in what no row uses."""
    rng, gone, number = random.Random(0), [], 0
    with open_store(path, "shop") as store:
        for _ in range(12):
            left = [user for user in (f"user-{n:03}" for n in range(150)) if user not in gone]
            events = []
            for _ in range(500):
                user, number = rng.choice(left), number + 1
                words = f"{user} {'x' * rng.randrange(80)}"
                events.append(
                    Event(user, f"item of {user}", "buy", rng.randint(1, 10**6), words, id=f"{user} {number}")
                )
            store.append(events)
            for user in rng.sample(left, 4):
                assert store.delete(user) > 0
                gone.append(user)
        text = text_of(path)
        assert not [user for user in gone if user.encode() in text]
        assert all(user.encode() in text for user in store.users()), "else this test looks in the wrong place"


def test_a_process_that_is_killed_while_it_deletes_leaves_the_rest_to_the_next(path, monkeypatch):
    store = SqliteStore(path, "shop")
    store.append([EVENT])
    with monkeypatch.context() as patch, pytest.raises(Unavailable, match="killed"):
        patch.setattr(store, "_scrub", lambda: (_ for _ in ()).throw(Unavailable("killed")))
        store.delete("ann")
    assert store.history("ann").events == []
    store.close()
    open_store(path, "shop").close()
    assert b"shoe-3" not in text_of(path)


def test_a_reader_that_holds_on_to_the_log(path, monkeypatch):
    monkeypatch.setattr(sqlite, "PATIENCE", 50)
    with open_store(path, "shop") as store, contextlib.closing(apsw.Connection(str(path))) as other:
        store.append([EVENT])
        other.execute("begin; select * from users").fetchall()
        with pytest.raises(Unavailable, match=r"another process has been reading.*delete them again"):
            store.delete("ann")
        assert store.history("ann").events == [] and b"shoe-3" in text_of(path)
        other.execute("rollback")
        assert store.delete("ann") == 0 and b"shoe-3" not in text_of(path)


def a_folder(path):
    path.mkdir()


def no_folder(path):
    path.parent.rmdir()


def a_text(path):
    path.write_text("user,item\n" * 200)


def another_database(path):
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute("create table users (name text)")


def another_form(path):
    open_store(path, "shop").close()
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute("update meta set value = 7 where name = 'schema'")


@pytest.mark.parametrize(
    "make, message",
    [
        (a_folder, "is a folder"),
        (no_folder, "there is no such folder"),
        (a_text, "is no SQLite database"),
        (another_database, "of something else"),
        (another_form, "have form 7, this version reads form 1"),
    ],
)
def test_what_is_no_store_is_refused_and_left_alone(tmp_path, make, message):
    path = tmp_path / "folder" / "histories.db"
    path.parent.mkdir()
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for _ in range(2):
        with pytest.raises(UserError, match=message) as told:
            open_store(path, "shop")
        assert "\n" not in str(told.value)
    assert before == (path.read_bytes() if path.is_file() else None)


def test_a_place_that_cannot_be_written():
    """As an ordinary user, since root may write everywhere."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        path = os.path.join(name, "histories.db")
        with open_store(path, "shop") as store:
            store.append([EVENT])
        if root := os.geteuid() == 0:
            os.seteuid(65_534)
        else:
            os.chmod(name, 0o555)
        try:
            with pytest.raises(UserError, match="its folder cannot be written: Permission denied"):
                open_store(path, "shop")
        finally:
            os.seteuid(0) if root else os.chmod(name, 0o755)


@pytest.mark.parametrize("where, message", [("mysql://a/b", "mysql://: histories are kept in"), ("", "is a folder")])
def test_odd_places(where, message):
    with pytest.raises(UserError, match=message):
        open_store(where, "shop")


def test_a_store_has_the_name_of_a_log(path):
    with pytest.raises(UserError, match="needs the name of the log"):
        open_store(path, "")


def test_a_library_that_is_missing_or_too_old(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
        with pytest.raises(UserError, match=r"apsw brings SQLite 3\.51\.2.*3\.51\.3 or newer"):
            open_store(path, "shop")
    for name, where, extra in (("apsw", path, "serve"), ("psycopg", "postgresql://localhost/a", "postgres")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=rf"pip install 'synergen-jax\[{extra}\]'"):
            open_store(where, "shop")
