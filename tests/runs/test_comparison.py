"""How far the first variant leads: means over seeds target by target, intervals over users, each task by itself."""

import numpy as np
import pytest

from synergen_jax.evaluation import metrics, slices
from synergen_jax.runs import comparison

USERS = np.repeat(np.arange(50), 2)
SEARCH = np.tile([False, True], 50)


def each(value, lookup=0.1, **more):
    """An evaluation of 100 targets: the model's NDCG@10, and that of a lookup, which answers searches alone."""
    masks = {"all": np.ones(100, bool), "search": SEARCH, "recommendation": ~SEARCH, "shortest": SEARCH}
    return {
        "user": USERS,
        **{f"slice/{name}": mask for name, mask in masks.items()},
        "ndcg@10/model": np.broadcast_to(value, 100).astype(float),
        "ndcg@10/query_lookup": np.where(SEARCH, lookup, np.nan),
        **more,
    }


def row(rows, of, over, metric="ndcg@10"):
    found = [one for one in rows if (one["of"], one["over"], one["metric"]) == (of, over, metric)]
    assert len(found) <= 1
    return found[0] if found else None


def test_a_lead_is_that_of_the_means_over_seeds():
    rng = np.random.default_rng(0)
    joint, alone = rng.random((2, 3, 100))
    rows = comparison.leads({"joint": [each(x) for x in joint], "alone": [each(x) for x in alone]})
    for where, mask in (("all", SEARCH | ~SEARCH), ("search", SEARCH), ("recommendation", ~SEARCH)):
        found = row(rows, where, "alone: model")
        gain = (joint - alone)[:, mask]
        assert found["lead"] == pytest.approx(metrics.summary({"x": gain.mean(0)}, USERS[mask])["x"])
        assert found["system"] == "joint: model"
        assert found["seeds"].split() == [f"{value:+.4f}" for value in gain.mean(1)]
    assert row(rows, "shortest", "alone: model") is None


def test_baselines_are_those_of_the_first_variant_where_they_say_something():
    rows = comparison.leads({"joint": [each(0.3), each(0.5)], "alone": [each(0.2, lookup=0.9)] * 2})
    assert row(rows, "search", "query_lookup")["lead"]["mean"] == pytest.approx(0.3)
    assert row(rows, "recommendation", "query_lookup") is None and row(rows, "all", "query_lookup") is None


def test_a_baseline_that_the_first_seed_alone_has_is_that_of_all():
    later = {name: value for name, value in each(0.5).items() if not name.endswith("query_lookup")}
    found = row(comparison.leads({"joint": [each(0.3), later]}), "search", "query_lookup")
    assert found["lead"]["mean"] == pytest.approx(0.3) and found["seeds"] == "+0.2000 +0.4000"


def test_second_stages_are_compared_with_each_other_and_with_their_models():
    second = {"ndcg@10/model_second_stage": np.full(100, 0.6)}
    rows = comparison.leads({"joint": [each(0.3, **second)], "alone": [each(0.2, **second)], "third": [each(0.1)]})
    assert row(rows, "all", "alone: model_second_stage")["lead"]["mean"] == pytest.approx(0)
    assert row(rows, "all", "model_second_stage")["lead"]["mean"] == pytest.approx(-0.3)
    assert row(rows, "all", "third: model_second_stage") is None
    assert row(rows, "all", "third: model")["lead"]["mean"] == pytest.approx(0.2)


def test_lists_that_were_shown():
    lists = {"list_user": np.arange(4), "list_mrr/model": np.array([1.0, 0.5, np.nan, 1.0])}
    lists |= {"list_mrr/shown_order": np.array([0.5, 0.5, np.nan, 0.5])}
    rows = comparison.leads({"joint": [each(0.3, **lists)]})
    assert row(rows, "lists", "shown_order", "list_mrr")["lead"]["mean"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "other",
    [{}, each(0.2) | {"user": USERS + 1}, {name: value[:50] for name, value in each(0.2).items()}],
    ids=["nothing", "others", "fewer"],
)
def test_variants_of_other_targets_are_left_out(other):
    rows = comparison.leads({"joint": [each(0.3)], "alone": [other]})
    assert {one["over"] for one in rows} == {"query_lookup"}


def test_nothing_is_known_of_the_first_variant():
    assert comparison.leads({"joint": [{}], "alone": [each(0.2)]}) == []


def test_the_slices_are_those_of_an_evaluation():
    assert slices.NEW_PAIRS in comparison.SLICES


def test_a_seed_without_a_result_is_left_out_on_both_sides():
    """Not the second seed of one beside the third of the other."""
    rows = comparison.leads({"joint": [each(0.3), {}, each(0.5)], "alone": [{}, each(0.9), each(0.1)]})
    found = row(rows, "all", "alone: model")
    assert found["lead"]["mean"] == pytest.approx(0.4) and found["seeds"] == "+0.4000"
