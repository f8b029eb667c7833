"""From an answer to the next model: what was shown and chosen becomes the next version of the log, and is learned."""

import csv
import json
import time

import pytest
import small_shop

import synergen_jax as sg
from data_pipelines.event_log.event_log import EventLog
from data_pipelines.sources.prepare import locate
from synergen_jax.runs import serve, serve_log
from synergen_jax.serving.asking import Ask
from synergen_jax.serving.engine import Settings
from synergen_jax.serving.history.store import Event
from synergen_jax.serving.shown import ShownLog, read

SMALL = Settings(slots=16, host_bytes=0, most=50)


def serving(shop, workdir, **more):
    """A warm engine over the store of a workdir."""
    engine = serve.open_engine(workdir, data_dir=shop.data, settings=SMALL, **more)
    while not engine.ready:
        time.sleep(0.01)
    return engine


def test_the_loop_closes(tmp_path, capsys):
    shop = small_shop.Shop(tmp_path).trained()
    engine = serving(shop, shop.workdir)
    now = int(time.time()) - 1000
    for n, user in enumerate(("u1", "u2", "stranger")):
        answer = engine.ask(Ask(user, "red dress" if n == 1 else "", k=5), request=f"r{n}")
        choice = answer.items[n].item
        engine.add([Event(user, choice, "buy", now + n, "", f"r{n}", f"click-{n}")])
    engine.add([Event("u1", "i3", "buy", now + 500, "", "unlogged", "click-9")])
    # Beside the running service, by its command.
    out = tmp_path / "events.csv"
    assert shop.call("serve-log", "export", shop.workdir, "--out", out) == 0
    assert "4 events of 3 users, 3 lists" in capsys.readouterr().out
    rows = list(csv.DictReader(out.open()))
    assert [len(row["shown"].split("|")) for row in rows if row["request"].startswith("r")] == [5, 5, 5]
    assert [row["query"] for row in rows if row["user"] == "u2"] == ["red dress"]
    engine.close()
    assert shop.call("data", "append", "shop", out) == 0
    log = EventLog.load(locate("shop", shop.data))
    record = log[log.find_user("u2")]
    assert len(record["shown_item"]) == 5 and record["shown_action"].tolist().count(0) == 4
    assert log.queries[record["query"][-1]] == "red dress"
    further = ("train", shop.root / "shop.toml", "--workdir", tmp_path / "further", "--init-from", shop.workdir)
    assert shop.call(*further) == 0
    # The next service answers with the next model, from the same store; what the log was given counts once.
    engine = serving(shop, tmp_path / "further", store=shop.workdir / serve_log.STORE)
    try:
        assert engine.name.startswith("shop@2, step")
        answer = engine.ask(Ask("u1", k=3))
        assert answer.version > 0 and 6 < answer.events <= 8
        assert engine.ask(Ask("stranger", k=3)).events == 1
    finally:
        engine.close()
    again = shop.call("data", "append", "shop", out, "--drop", "duplicates")
    assert again == 0 and locate("shop", shop.data).name == "shop@2"


def test_shown_lists_of_a_share_and_of_cut_off_lines(tmp_path):
    log, half = ShownLog(tmp_path / "all"), ShownLog(tmp_path / "half", 0.5)
    answer = type("Answer", (), {"items": [], "model": "m"})()
    for n in range(400):
        for one in (log, half):
            one.write(f"r{n}", Ask("u"), answer)
    log.close()
    half.close()
    ids = {f"r{n}" for n in range(400)}
    assert len(read(tmp_path / "all", ids)) == 400 and 120 < len(read(tmp_path / "half", ids)) < 280
    (file,) = (tmp_path / "all").glob("*.jsonl")
    file.write_text(file.read_text()[:-20] + "\n" + json.dumps({"request": 1}) + "\nno json\n")
    assert len(read(tmp_path / "all", ids)) == 399
    assert read(tmp_path / "all", ()) == {}


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(sg.UserError, match="cannot be written"):
        ShownLog(tmp_path / "file/shown")
    with pytest.raises(sg.UserError, match="lies within 0 and 1"):
        ShownLog(tmp_path / "shown", 2.0)
    with pytest.raises(sg.UserError, match=r"ends in \.csv"):
        serve_log.export(tmp_path, tmp_path / "events.parquet")
