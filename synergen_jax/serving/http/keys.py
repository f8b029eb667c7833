"""API keys: which ones there are, and whether a request brings one of them."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import pathlib
import socket
import typing
import urllib.parse

from synergen_jax.errors import UserError

SHORTEST = 16  # characters


def read(path: pathlib.Path) -> tuple[str, ...]:
    """The keys of a file, one a line; empty lines are skipped.

    Raises:
      UserError: there is no such file, or it has no key, or one that is short or holds what no header can.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: API keys cannot be read: {error}") from None
    keys = tuple(line for line in lines if line)
    if not keys:
        raise UserError(f"{path} holds no API key: write one a line, of at least {SHORTEST} characters")
    for number, line in enumerate(lines, 1):
        if line and len(line) < SHORTEST:
            raise UserError(f"{path}, line {number}: an API key has at least {SHORTEST} characters, not {len(line)}")
        if not all("!" <= character <= "~" for character in line):
            raise UserError(f"{path}, line {number}: an API key is of printable ASCII without blanks")
    return keys


class Keys:
    """Keys, kept as their digests, so that comparing tells nothing of how much of one was right."""

    def __init__(self, keys: typing.Iterable[str]):
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def admit(self, headers: typing.Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether headers bring a key: `Authorization: Bearer KEY` or `X-Api-Key: KEY`."""
        return any([self._is_one(key) for name, value in headers if (key := _key(name, value))])

    def _is_one(self, key: bytes) -> bool:
        digest = hashlib.sha256(key).digest()
        return any([hmac.compare_digest(digest, one) for one in self._digests])  # all of them, whichever it is


def _key(name: bytes, value: bytes) -> bytes:
    if name == b"x-api-key":
        return value.strip()
    scheme, _, key = value.strip().partition(b" ")
    return key.strip() if name == b"authorization" and scheme.lower() == b"bearer" else b""


def check_exposure(host: str, keys: bool, open_to_all: bool) -> None:
    """Refuses to listen without keys where other machines could call, unless that is asked for.

    Args:
      keys: there are some; open_to_all: it is known that there are none.
    """
    if keys and open_to_all:
        raise UserError("--api-keys and --no-api-keys contradict each other: give one of them")
    if not keys and not open_to_all and not is_loopback(host):
        raise UserError(
            f"--host {host} lets other machines in: give --api-keys FILE, or --no-api-keys where it is guarded"
        )


def is_loopback(host: str) -> bool:
    """Whether a name or address leads to this machine alone.

    Raises:
      UserError: it leads nowhere.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no such address: {error}") from None
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def names_loopback(header: str) -> bool:
    """Whether a `Host` header names this machine alone, without asking anybody what a name means.

    A page of the web can have its own name lead to this machine, and a browser then takes the service for a part of
    it; what it cannot do is call it `localhost`.
    """
    try:
        name = urllib.parse.urlsplit(f"//{header}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
