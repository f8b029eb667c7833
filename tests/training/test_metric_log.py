"""Metrics of a run: what a resumed run keeps of them."""

import json
import pathlib
import struct

import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from synergen_jax.errors import UserError
from synergen_jax.training import metric_log
from synergen_jax.training.metric_log import FILE, MetricLog


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_lines_and_events_for_tensorboard(tmp_path):
    with MetricLog(tmp_path) as log:
        log.write(1, {"loss": 0.5, "validation/ndcg@10": 0.25})
        assert lines(tmp_path) == [{"step": 1, "loss": 0.5, "validation/ndcg@10": 0.25}], "flushed at once"
        log.write(2, {"loss": 0.25})
    assert lines(tmp_path)[1:] == [{"step": 2, "loss": 0.25}]
    files = list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    assert len(files) == 1
    content = files[0].read_bytes()
    assert b"loss" in content and b"validation/ndcg" in content
    assert scalars(files[0]) == [(1, "loss", 0.5), (1, "validation/ndcg_10", 0.25), (2, "loss", 0.25)]


def scalars(file):
    """(step, tag, value) of a file of TFRecords: a length, its checksum, the event, its checksum."""
    data, found = file.read_bytes(), []
    while data:
        size, check = struct.unpack("<QI", data[:12])
        event, data = data[12 : 12 + size], data[16 + size :]
        assert check == masked_crc32c(struct.pack("<Q", size)) and len(event) == size
        event = event_pb2.Event.FromString(event)
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return found


def test_a_full_disk_is_told_by_the_file():
    full = pathlib.Path("/dev/full")
    if not full.exists():
        pytest.skip("no such device")
    file = metric_log._Appended(full)
    with pytest.raises(UserError, match=r"^/dev/full: cannot be written: No space left on device; once that is mended"):
        file.write(b"x")
    file.close()


@pytest.mark.parametrize("step", [0, 3, 5, 9])
def test_a_resumed_run_drops_what_it_computes_again(tmp_path, step):
    with MetricLog(tmp_path) as log:
        for at in range(1, 6):
            log.write(at, {"loss": 1 / at})
            log.write(at, {"validation/mrr": at / 10})
    with MetricLog(tmp_path, step) as log:
        assert [line["step"] for line in lines(tmp_path)] == [at for at in range(1, min(step, 5) + 1) for _ in "ab"]
        log.write(step + 1, {"loss": 7.0})
    found = lines(tmp_path)
    assert found[-1] == {"step": step + 1, "loss": 7.0}
    assert found[:-1] == [
        line for at in range(1, min(step, 5) + 1) for line in ({"step": at, "loss": 1 / at}, found[2 * at - 1])
    ]
    assert not (tmp_path / FILE).with_suffix(".tmp").exists()


@pytest.mark.parametrize("rest", ['{"step": 2, "lo', '{"step"', "{}", "[]", "7", "null", '{"step": null}', "\x00\x00"])
def test_half_a_line_is_dropped(tmp_path, rest):
    (tmp_path / FILE).write_text('{"step": 1, "loss": 0.5}\n' + rest)
    with MetricLog(tmp_path, 5) as log:
        log.write(6, {"loss": 0.1})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 6, "loss": 0.1}]


def test_bytes_that_are_no_text_are_dropped(tmp_path):
    (tmp_path / FILE).write_bytes(b'{"step": 1, "loss": 0.5}\n{"step": 2, "l\xff\xfe')
    with MetricLog(tmp_path, 5):
        pass
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]
