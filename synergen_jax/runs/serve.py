"""A trained run as an engine that serves: what `synergen serve` starts."""

from __future__ import annotations

import pathlib

import numpy as np

from synergen_jax.errors import UserError
from synergen_jax.runs import serve_log
from synergen_jax.runs.run import Opened, open_run
from synergen_jax.serving.deployed import Deployed, Past
from synergen_jax.serving.engine import Engine, Settings
from synergen_jax.serving.history.opening import open_store
from synergen_jax.serving.shown import ShownLog

Place = str | pathlib.Path


def deployed(opened: Opened) -> Deployed:
    """What is served of a run that is open."""
    run = opened.run
    log, numbers = run.log, {user: i for i, user in enumerate(run.log.user_ids)}
    log[0]  # opens the records now: the first request need not wait for that
    encoder = log.text_encoder() if "text" in log.query_matrices else None

    def past(user: str) -> Past | None:
        number = numbers.get(user)
        if number is None:
            return None
        record = log[number]
        return Past(record["time"].astype(np.int64), *(record[name] for name in ("item", "action", "query")))

    return Deployed(
        name=f"{log.name}@{log.version}, step {opened.step} of {opened.folder.name}",
        model=run.model,
        params=opened.params,
        catalogue=run.catalogue,
        items=log.item_ids,
        actions=log.actions,
        queries=log.queries,
        encode=None if encoder is None else encoder.encode,
        past=past,
        max_history=run.config.data.max_history,
        filter_seen=run.config.data.filter_seen,
        uses_query_text=run.config.model.uses("text"),
    )


def open_engine(
    workdir: Place,
    store: str | pathlib.Path | None = None,
    *,
    data_dir: Place | None = None,
    log: Place | None = None,
    settings: Settings | None = None,
    shown: str | pathlib.Path | None = None,
    share: float = 1.0,
) -> Engine:
    """An engine over a run and a store of histories; it becomes ready in the background. The caller closes it.

    Args:
      workdir: of a trained run.
      store: a file of SQLite or `postgresql://...`; None: `serving.sqlite` in the workdir.
      log: a version that goes on from the run's, such as `shop@3`; None: the newest one.
      shown: folder of the log of answers; None: `shown` in the workdir. share: of the answers that are logged; 0: none.

    Raises:
      UserError: the run or the store cannot be opened, or settings do not go together.
    """
    workdir = pathlib.Path(workdir)
    opened = open_run(workdir, [], data_dir, log=log, newest=True)
    if opened.run.log.candidate_features:
        raise UserError(f"{workdir}: a run on shown lists with features of candidates is not served")
    histories = open_store(workdir / serve_log.STORE if store is None else store, opened.run.log.name)
    try:
        lists = ShownLog(pathlib.Path(shown) if shown else workdir / serve_log.SHOWN, share) if share else None
        return Engine(deployed(opened), histories, settings, lists)
    except BaseException:
        histories.close()
        raise
