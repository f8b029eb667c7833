"""Metrics of a run: JSON lines for programs, TensorBoard for people."""

from __future__ import annotations

import json
import pathlib

FILE = "metrics.jsonl"


class MetricLog:
    """Appends metrics to `workdir/metrics.jsonl` and to TensorBoard events in `workdir/tensorboard`.

    A run that resumes at `step` first drops the lines after it: they belong to steps that are computed again. Without a
    workdir nothing is written: one process of several writes for all.
    """

    def __init__(self, workdir: pathlib.Path | None, step: int = 0):
        self._file = None
        if workdir is None:
            return
        from tensorboardX import SummaryWriter

        path = workdir / FILE
        kept = []
        if path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError, TypeError):
                    pass  # no line of ours, as the one at which the process was killed
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes one line, and flushes it."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step} | metrics) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *_):
        if self._file is not None:
            self._file.close()
            self._board.close()
