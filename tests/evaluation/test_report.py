"""Reports: alignment, rounding, what is marked as best, what is drawn, and a page that needs nothing but itself."""

import html.parser
import json
import subprocess
import sys

import numpy as np
import pytest

from synergen_jax.errors import UserError
from synergen_jax.evaluation import report

ROWS = [
    {"model": "SynerGen", "hr@10": 0.25123, "loss": 0.5, "users": 943},
    {"model": "popularity", "hr@10": 0.05, "loss": 0.75, "users": 12},
]


def test_table_by_hand():
    assert report.table(ROWS) == "\n".join(
        [
            "model        hr@10    loss  users",
            "----------  ------  ------  -----",
            "SynerGen    0.2512  0.5000    943",
            "popularity  0.0500  0.7500     12",
        ]
    )


def test_the_best_values_are_marked():
    assert report.table(ROWS, ["model", "hr@10", "loss"], ["hr@10", "-loss"]) == "\n".join(
        [
            "model         hr@10     loss",
            "----------  -------  -------",
            "SynerGen    0.2512*  0.5000*",
            "popularity  0.0500   0.7500",
        ]
    )
    assert report.table([{"x": float("nan")}, {"x": 1}, {"x": 1}, {}], highlight="x").split()[2:] == ["nan", "1*", "1*"]
    with pytest.raises(UserError, match="column 'hr@5': the columns are model"):
        report.table(ROWS, highlight="hr@5")


def test_markdown_table_by_hand():
    rows = [{"name": "a|b", "x": 1.5}, {"name": "c\nd"}]
    assert report.markdown_table(rows, highlight="x") == "\n".join(
        ["| name | x |", "| --- | ---: |", r"| a\|b | **1.5000** |", "| c d |  |"]
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1995, "1995"),
        (np.int32(7), "7"),
        (np.float32(0.5), "0.5000"),
        (15422.31, "15422"),
        (0.0, "0.0000"),
        (-2.5e-7, "-2.5e-07"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (True, "yes"),
        (None, ""),
        ({"mean": 0.12345, "low": 0.1, "high": 0.15}, "0.1235 [0.1000, 0.1500]"),
        ({"mean": 0.5}, "0.5000"),
        ("two\nlines", "two lines"),
    ],
)
def test_cells(value, text):
    assert report.markdown_table([{"x": value}]).splitlines()[-1] == f"| {text} |"


def test_tables_without_rows():
    assert report.table([]) == report.markdown_table([]) == "(no rows)"
    assert report.table([], columns=["a", "b"]) == "a  b\n-  -"


def write(path, *entries, end=""):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + end)
    return path


def test_read_metrics_sorts_overwrites_and_tolerates_a_cut_line(tmp_path):
    path = write(
        tmp_path / "metrics.jsonl",
        {"step": 20, "loss": 2.0},
        {"step": 10, "loss": 3.0, "note": "text"},
        {"step": 20, "loss": 1.0, "validation/ndcg@10": 0.1},
        end='{"step": 30, "lo',
    )
    assert report.read_metrics(path) == {"loss": ([10, 20], [3.0, 1.0]), "validation/ndcg@10": ([20], [0.1])}


def test_wrong_metrics_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        report.plot_curves(tmp_path / "none.jsonl", tmp_path / "x.png")
    path = write(tmp_path / "metrics.jsonl", {"loss": 1.0}, {"step": 1, "loss": 1.0})
    with pytest.raises(UserError, match=r"metrics.jsonl:1: not a JSON object"):
        report.plot_curves(path, tmp_path / "x.png")
    path = write(tmp_path / "metrics.jsonl", {"step": 1, "learning_rate": 1.0})
    with pytest.raises(UserError, match="nothing to draw"):
        report.plot_curves(path, tmp_path / "x.png")
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def drawn(monkeypatch):
    """Collects what each panel shows: title -> {legend or "": (steps, values)}."""
    panels = {}
    draw = report._draw

    def spy(axes, title, unit, parts, log):
        draw(axes, title, unit, parts, log)
        lines = [line for line in axes.lines if line.get_alpha() is None]
        panels[title] = (axes, {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines})

    monkeypatch.setattr(report, "_draw", spy)
    return panels


def test_curves_show_what_the_run_logged(tmp_path, monkeypatch):
    panels = drawn(monkeypatch)
    lines = [{"step": s, "loss": 40 / s, "loss/retrieval": 30 / s, "events_per_second": 2e4} for s in range(10, 60, 10)]
    lines += [{"step": s, "validation/ndcg@10": s / 100, "validation/hr@10": s / 50} for s in (20, 40)]
    out = report.plot_curves(write(tmp_path / "metrics.jsonl", *lines), tmp_path / "new" / "curves.png")
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and len(list(out.parent.iterdir())) == 1
    assert list(panels) == ["Training loss", "Validation", "Throughput"]
    assert panels["Training loss"][1]["total"] == ([10, 20, 30, 40, 50], [40 / s for s in range(10, 60, 10)])
    assert set(panels["Training loss"][1]) == {"total", "retrieval"}
    assert panels["Validation"][1] == {"ndcg@10": ([20, 40], [0.2, 0.4]), "hr@10": ([20, 40], [0.4, 0.8])}
    assert panels["Throughput"][0].get_ylabel() == "events per second"
    legend = [text.get_text() for text in panels["Validation"][0].get_legend().get_texts()]
    assert legend == ["hr@10", "ndcg@10"]  # as the curves end, from the top


def test_panels_without_data_are_left_out_and_only_a_wide_range_is_logarithmic(tmp_path, monkeypatch):
    panels = drawn(monkeypatch)
    report.plot_curves(write(tmp_path / "a", {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}), tmp_path / "a.png")
    assert list(panels) == ["Training loss"]
    assert panels["Training loss"][0].get_yscale() == "linear"
    assert panels["Training loss"][0].get_ylabel() == "loss (nats)"
    report.plot_curves(write(tmp_path / "a", {"step": 1, "loss": 20.0}, {"step": 2, "loss": 1.0}), tmp_path / "a.png")
    assert panels["Training loss"][0].get_yscale() == "log"


def test_long_curves_are_smoothed_and_nan_is_a_gap(tmp_path, monkeypatch):
    panels = drawn(monkeypatch)
    lines = [{"step": s, "loss": 1.0 + s % 2, "validation/mrr": float("nan")} for s in range(300)]
    report.plot_curves(write(tmp_path / "a", *lines), tmp_path / "a.png")
    middle = panels["Training loss"][1]["total"][1][50:-50]
    assert len(middle) == 200 and max(abs(value - 1.5) for value in middle) < 0.03


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_page_is_self_contained_and_escaped(tmp_path):
    png = report.plot_curves(write(tmp_path / "m", {"step": 1, "loss": 2.0}), tmp_path / "curves.png")
    sections = [
        ("Metrics <all>", report.html_table([{"<i>model": "a & <b>", "x": 0.5}, {"x": 0.25}], highlight="x")),
        ("As a path", png),
        ("As a name", str(png)),
        ("Config", "<script>alert(1)</script>\nwidth = 64"),
    ]
    out = report.html_page("Évaluation <1>", sections, tmp_path / "deep" / "report.html")
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert page.addresses[0] == page.addresses[1] and page.addresses[0].startswith("data:image/png;base64,iVBORw0KGgo")
    assert len(page.addresses) == 2 and "url(" not in text and "http" not in text
    assert not {"script", "link", "i"} & set(page.tags) and page.tags.count("b") == 1
    for words in (
        "Évaluation <1>",
        "Metrics <all>",
        "<i>model",
        "a & <b>",
        "0.5000",
        "<script>alert(1)</script>\nwidth",
    ):
        assert words in page.text
    assert "prefers-color-scheme: dark" in text
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_a_page_that_fails_leaves_the_old_one(tmp_path):
    out = report.html_page("old", [], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"none\.png: cannot be read as an image"):
        report.html_page("new", [("Curves", "none.png")], out)
    assert "old" in out.read_text() and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UnicodeEncodeError):
        report.html_page("\ud800", [], out)
    assert "old" in out.read_text() and len(list(tmp_path.iterdir())) == 1


def test_matplotlib_and_scann_load_only_where_they_are_used():
    code = "import sys, synergen_jax.evaluation.report, synergen_jax.retrieval.index; print({'matplotlib', 'scann'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
