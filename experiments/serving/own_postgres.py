"""A PostgreSQL server of one's own, for tests and experiments: in a temporary folder, on loopback, with a password.

It needs PostgreSQL's programs on the machine, and an ordinary user to run as: for root, `postgres` or `nobody`.
"""

from __future__ import annotations

import glob
import os
import pathlib
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import typing

import psycopg

WAIT = 30.0  # seconds within which a server comes up


class NoPostgres(Exception):
    """There is none on this machine, or nobody to run it; the message says which."""


def programs() -> pathlib.Path:
    """The folder of initdb and postgres.

    Raises:
      NoPostgres: there is none.
    """
    folders = []
    if config := shutil.which("pg_config"):
        folders.append(subprocess.run([config, "--bindir"], capture_output=True, text=True).stdout.strip())
    folders += sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)
    folders += [os.path.dirname(path) for path in [shutil.which("postgres")] if path]
    for folder in map(pathlib.Path, folders):
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise NoPostgres("PostgreSQL is not installed: no initdb and postgres beside pg_config, in /usr/lib or on the path")


class Server:
    """A server that runs until `close`; a context manager.

    Raises:
      NoPostgres: PostgreSQL is not installed, or there is no ordinary user, or it does not come up.
    """

    def __init__(self):
        self._programs = programs()
        self._user = _ordinary_user()
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="own-postgres-"))
        self._process: subprocess.Popen | None = None
        self._password = secrets.token_hex(8)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"postgresql://owner:{self._password}@127.0.0.1:{self._port}/postgres"
        try:
            self._make()
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Starts it, again after `kill`, and waits until it answers."""
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            if self._process is None or self._process.poll() is not None:  # those of a killed one have to end first
                self._process = self._run("postgres", "-D", "data", "-p", str(self._port))
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.05)
        raise NoPostgres(f"PostgreSQL does not come up: {(self._folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        """Ends it at once, as if it were lost: its children see that it is gone, and finish nothing."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """Ends it and removes its folder."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)  # "immediate": what it holds is thrown away
            try:
                self._process.wait(WAIT)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self) -> None:
        (self._folder / "password").write_text(self._password)
        if self._user:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
            os.chown(self._folder / "password", self._user.pw_uid, self._user.pw_gid)
        options = ("--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", "--username=owner", "--pwfile=password")
        if self._run("initdb", "-D", "data", "--no-sync", *options).wait():
            raise NoPostgres(f"initdb failed: {(self._folder / 'log').read_text()[-2000:]}")
        with (self._folder / "data" / "postgresql.conf").open("a") as file:
            file.write("listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nshared_buffers = 16MB\n")

    def _run(self, name: str, *arguments: str) -> subprocess.Popen:
        who = {} if not self._user else {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._programs / name, *arguments],
                cwd=self._folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                **who,
            )


def _ordinary_user() -> pwd.struct_passwd | None:
    """Who the server runs as; None: oneself, who is not root."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoPostgres("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
