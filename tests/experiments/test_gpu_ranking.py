"""Ranking over cached events (experiments/gpu/ranking.py), at sizes that a test can afford."""

import json
import types

import numpy as np
import pytest
import ranking


@pytest.mark.parametrize(("users", "dtype"), [(1, "float32"), (3, "float32"), (2, "bfloat16")])
def test_joining_the_cache_answers_as_encoding_over_again_does(users, dtype):
    said = []
    setting = types.SimpleNamespace(small=True, rounds=2, say=said.append)
    found = ranking.cached(setting, users, dtype)
    assert json.loads(json.dumps(found)) == found
    sides = {ranking.CACHED, ranking.AGAIN, ranking.READ}
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == dict.fromkeys(sides, 2)
    assert set(found["requests_per_second"]) == set(found["peak_memory_bytes"]) == sides
    assert set(found["ratios"]) == {"all over again over cached", "cached over read alone"}
    assert all(list(spread) == ["median", "low", "high"] for spread in found["ratios"].values())
    assert found["shape"]["users"] == users and found["shape"]["cached"] == 56
    assert found["largest_difference"] < found["tolerance"] < found["difference_without_new_events"]
    assert dtype == "bfloat16" or found["largest_difference"] < 1e-4, "on a CPU float32 has all of its bits"
    assert len(said) == 1


def test_sides_that_differ_are_told():
    logits = np.linspace(-1, 1, 20, dtype=np.float32)
    found = ranking.compare(logits + 0.5, logits, logits, "bfloat16")
    assert found["largest_difference"] == pytest.approx(0.5) and not found["holds"]
    assert ranking.compare(logits, logits, logits, "bfloat16")["holds"]
