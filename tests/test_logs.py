"""Metrics of a run: what a resumed run keeps of them."""

import json

import pytest

from synergen_jax.logs import FILE, MetricLog


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
