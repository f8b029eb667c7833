"""Metrics of a run: JSON lines for programs, TensorBoard for people."""

from __future__ import annotations

import json
import pathlib
import socket
import struct
import time

from synergen_jax.errors import writing

FILE = "metrics.jsonl"


class MetricLog:
    """Appends metrics to `workdir/metrics.jsonl` and to TensorBoard events in `workdir/tensorboard`.

    A run that resumes at `step` first drops the lines after it: they belong to steps that are computed again. Without a
    workdir nothing is written: one process of several writes for all.

    Raises:
      UserError: a file cannot be written, as on a full disk; also when writing and closing.
    """

    def __init__(self, workdir: pathlib.Path | None, step: int = 0):
        self._file = None
        if workdir is None:
            return
        self._path = workdir / FILE
        kept = []
        if self._path.exists():
            for line in self._path.read_bytes().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    pass  # no line of ours, as the one at which the process was killed
        with writing(self._path):
            temporary = self._path.with_suffix(".tmp")
            temporary.write_bytes(b"".join(line + b"\n" for line in kept))
            temporary.replace(self._path)
        self._file = _Appended(self._path)
        self._board = _Board(workdir / "tensorboard", step)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes one line, and its events, at once."""
        if self._file is not None:
            self._file.write((json.dumps({"step": step} | metrics) + "\n").encode())
            self._board.write(step, metrics)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *_):
        if self._file is not None:
            self._file.close()
            self._board.close()


class _Appended:
    """A file whose every write is on its way to the disk when it returns: nothing is left that could fail at the end."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        with writing(path):
            self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        with writing(self._path):
            while data:
                data = data[self._file.write(data) :]

    def close(self) -> None:
        self._file.close()


class _Board:
    """A file of TensorBoard events: TFRecords of `Event`s.

    tensorboardX's own writer hands them to a thread, which a full disk ends with a traceback, and another one at exit.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        from tensorboardX import record_writer, summary
        from tensorboardX.proto import event_pb2, summary_pb2

        self._crc, self._scalar = record_writer.masked_crc32c, summary.scalar
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]  # protobuf makes them at run time
        with writing(folder):
            folder.mkdir(exist_ok=True)
        self._file = _Appended(folder / f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}")
        self._put(file_version="brain.Event:2")
        if step:  # what TensorBoard has of later steps is computed again
            session = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]  # protobuf makes them at run time
            self._put(step=step + 1, session_log=session(status=session.START))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        values = [value for name, number in metrics.items() for value in self._scalar(name, number).value]
        self._put(step=step, summary=self._summary(value=values))

    def _put(self, **content) -> None:
        data = self._event(wall_time=time.time(), **content).SerializeToString()
        size = struct.pack("<Q", len(data))
        crc = lambda part: struct.pack("<I", self._crc(part))
        self._file.write(size + crc(size) + data + crc(data))

    def close(self) -> None:
        self._file.close()
