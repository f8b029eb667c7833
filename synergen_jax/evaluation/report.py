"""What people read: text and Markdown tables, training curves, and one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import json
import math
import os
import pathlib
import tempfile
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence

from synergen_jax.errors import UserError

Row = Mapping[str, typing.Any]
Columns = Sequence[str] | None
Highlight = str | Sequence[str] | None


class Html(str):
    """Text that is HTML already: `html_page` does not escape it."""


# --- tables ---------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], columns: Columns = None, highlight: Highlight = None) -> str:
    """An aligned plain-text table.

    Args:
      rows: a dict a line. A number is set right; a float has 4 decimals (a large one none); an interval
        `{"mean": .., "low": .., "high": ..}` reads "0.1234 [0.1100, 0.1300]"; what is missing stays empty.
      columns: which keys, in which order; None: all keys, in the order in which they come up.
      highlight: columns whose largest value is starred; "-loss" stars the smallest value of "loss".

    Returns:
      Lines without a final newline; "(no rows)" if there is neither a row nor a column.
    """
    names, cells, right = _cells(rows, columns, highlight, lambda text: text + "*")
    if not names:
        return "(no rows)"
    # Where a column holds a star, the other numbers leave its place free, so that decimals stay aligned.
    for column in range(len(names)):
        if right[column] and any(line[column].endswith("*") for line in cells):
            for line in cells:
                line[column] += "" if line[column].endswith("*") else " "
    widths = [max(len(line[column]) for line in [names, *cells]) for column in range(len(names))]
    pad = lambda text, column: text.rjust(widths[column]) if right[column] else text.ljust(widths[column])
    lines = [names, ["-" * width for width in widths], *cells]
    return "\n".join("  ".join(pad(text, column) for column, text in enumerate(line)).rstrip() for line in lines)


def markdown_table(rows: Sequence[Row], columns: Columns = None, highlight: Highlight = None) -> str:
    """The same as a Markdown table, the best values in bold."""
    names, cells, right = _cells(rows, columns, highlight, lambda text: f"**{text}**")
    if not names:
        return "(no rows)"
    escape = lambda text: text.replace("|", r"\|")
    lines = [names, ["---:" if r else "---" for r in right], *cells]
    return "\n".join("| " + " | ".join(map(escape, line)) + " |" for line in lines)


def html_table(rows: Sequence[Row], columns: Columns = None, highlight: Highlight = None) -> Html:
    """The same as an HTML table, for `html_page`; all text is escaped."""
    bold = lambda text: Html(f"<b>{html.escape(text)}</b>")
    names, cells, right = _cells(rows, columns, highlight, bold)
    if not names:
        return Html("<p>(no rows)</p>")

    def line(texts: Iterable[str], tag: str) -> str:
        parts = [f"<{tag}{' class=number' if r else ''}>{_escaped(text)}</{tag}>" for text, r in zip(texts, right)]
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(line(texts, "td") for texts in cells)
    return Html(f"<div class=wide><table>\n<thead>{line(names, 'th')}</thead>\n<tbody>\n{body}\n</tbody></table></div>")


def _cells(
    rows: Sequence[Row], columns: Columns, highlight: Highlight, mark: Callable[[str], str]
) -> tuple[list[str], list[list[str]], list[bool]]:
    """Column names, the text of each cell, and whether a column is set right."""
    names = list(dict.fromkeys(key for row in rows for key in row) if columns is None else columns)
    values = [[row.get(name) for name in names] for row in rows]
    cells = [[_text(value) for value in line] for line in values]
    right = [
        any(_number(line[c]) is not None for line in values)
        and all(line[c] is None or _number(line[c]) is not None for line in values)
        for c in range(len(names))
    ]
    wanted = [highlight] if isinstance(highlight, str) else highlight or []
    for name in wanted:
        sign, name = (-1, name[1:]) if name not in names and name.startswith("-") else (1, name)
        if name not in names:
            raise UserError(f"cannot highlight column {name!r}: the columns are {', '.join(names)}")
        column = names.index(name)
        scores = [_number(line[column]) for line in values]
        scores = [-math.inf if score is None or math.isnan(score) else sign * score for score in scores]
        for line, score in zip(cells, scores):
            if score == max(scores) > -math.inf:
                line[column] = mark(line[column])
    return names, cells, right


def _number(value: typing.Any) -> float | None:
    """What a cell counts as among numbers; None for what is no number."""
    if isinstance(value, Mapping):
        return _number(value.get("mean"))
    if isinstance(value, bool | str) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _text(value: typing.Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping) and "mean" in value:
        if "low" not in value:
            return _text(value["mean"])
        return f"{_text(value['mean'])} [{_text(value['low'])}, {_text(value['high'])}]"
    number = _number(value)
    if number is None or isinstance(value, int):
        return " ".join(str(value).split())  # a line break would tear the table
    if not math.isfinite(number):
        return str(number)
    dtype = getattr(value, "dtype", None)
    if dtype is not None and dtype.kind in "iu":
        return str(int(number))
    if abs(number) >= 1000:
        return f"{number:.0f}"
    return f"{number:.4f}" if number == 0 or abs(number) >= 5e-5 else f"{number:.1e}"


# --- curves ---------------------------------------------------------------------------------------------------

# Okabe and Ito's colours, told apart by the colour-blind too; the yellow one is too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_VALIDATION = ("ndcg@10", "hr@10", "mrr", "ndcg@50", "hr@50", "hr@1")
_SMOOTH_FROM = 60  # points from which a running mean is drawn over the raw curve


def read_metrics(path: str | pathlib.Path) -> dict[str, tuple[list[int], list[float]]]:
    """The curves of a metrics.jsonl: name -> (steps, values), by step; a step written twice counts as last written.

    Raises:
      UserError: the file is missing, or a line but the last is no JSON object with a "step".
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    curves: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = int(entry.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == len(lines):
                break  # being written, or cut off when the run was killed
            raise UserError(f'{path}:{number}: not a JSON object with a "step"') from None
        for name, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                curves.setdefault(name, {})[step] = float(value)
    return {name: (sorted(points), [points[step] for step in sorted(points)]) for name, points in curves.items()}


def plot_curves(path: str | pathlib.Path, out: str | pathlib.Path) -> pathlib.Path:
    """Draws the losses, validation metrics and throughput of a run over its steps into one PNG.

    Args:
      path: the run's metrics.jsonl.
      out: the PNG; its folder is made.

    Returns:
      `out`.

    Raises:
      UserError: the file cannot be read, or holds nothing to draw.
    """
    curves = read_metrics(path)
    losses = {
        name: curves[name] for name in ("loss", *sorted(c for c in curves if c.startswith("loss/"))) if name in curves
    }
    validation = {name.removeprefix("validation/"): c for name, c in curves.items() if name.startswith("validation/")}
    validation = {name: validation[name] for name in _VALIDATION if name in validation} or dict(
        list(validation.items())[:6]
    )
    speed = {name: curves[name] for name in curves if name == "events_per_second"}
    panels = [
        (title, unit, parts, log)
        for title, unit, parts, log in (
            ("Training loss", "loss (nats, log scale)", losses, True),
            ("Validation", "metric value", validation, False),
            ("Throughput", "events per second", speed, False),
        )
        if parts
    ]
    if not panels:
        raise UserError(f"{path}: nothing to draw: neither losses nor validation metrics nor events_per_second")

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=(5.2 * len(panels), 3.9), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, unit, parts, log) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        _draw(axes, title, unit, parts, log)
    out = pathlib.Path(out)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png")
    return out


def _draw(axes, title: str, unit: str, parts: dict, log: bool) -> None:
    from matplotlib import ticker

    for colour, (name, (steps, values)) in zip(COLOURS, parts.items()):
        label = {"loss": "total", "events_per_second": None}.get(name, name.removeprefix("loss/"))
        style = {"color": colour, "marker": "o" if len(steps) <= 30 else None, "markersize": 3.5, "linewidth": 1.6}
        if len(steps) >= _SMOOTH_FROM:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            values = _running_mean(values, len(values) // 30)
        axes.plot(steps, values, label=label, **style)
    shown = [value for _, values in parts.values() for value in values if math.isfinite(value)]
    if log and shown and max(shown) >= 10 * min(shown) > 0:
        axes.set_yscale("log")
        if max(shown) < 100 * min(shown):  # two powers of ten at most: name what lies between, too
            axes.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    else:
        unit = unit.replace(", log scale", "")
        axes.set_ylim(0, 1.08 * max(shown) if shown and max(shown) > 0 else None)
        if shown and max(shown) >= 10_000:
            axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=6, integer=True))
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    if labels:  # in the order in which the curves end, from the top
        ends = sorted(zip(handles, labels), key=lambda pair: -pair[0].get_ydata()[-1])
        axes.legend(*zip(*ends), frameon=False, fontsize=9, ncols=2 if len(ends) > 4 else 1)


def _running_mean(values: list[float], half: int) -> list[float]:
    """Mean over the `half` neighbours on either side, fewer at the ends."""
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


# --- page -----------------------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --faint: #5c6670; --line: #d8dee4; --code: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e7eb; --back: #14171a; --faint: #9aa4ae; --line: #343b42; --code: #1d2227; }
}
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide, pre { overflow-x: auto; }
pre { padding: .8rem 1rem; background: var(--code); border-radius: 6px; font-size: .85rem; line-height: 1.4; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--faint); font-weight: 600; } .number { text-align: right; }
img { max-width: 100%; background: #ffffff; border-radius: 6px; }
""".strip()


def html_page(title: str, sections: Sequence[tuple[str, str | pathlib.Path]], out: str | pathlib.Path) -> pathlib.Path:
    """Writes one HTML page that needs nothing but itself: no script, no font, no link to the outside.

    Args:
      title: of the page.
      sections: (heading, content). Content is `Html` (as of `html_table`) and goes in as it is; or an image, a Path or
        a str that ends in .png, which is embedded; or any other text, escaped and set in fixed width.
      out: the file; its folder is made. It appears whole or not at all.

    Returns:
      `out`.

    Raises:
      UserError: an image is missing.
    """
    parts = [
        f"<section><h2>{html.escape(heading)}</h2>\n{_content(heading, content)}</section>"
        for heading, content in sections
    ]
    head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>'
    body = f"<h1>{html.escape(title)}</h1>\n" + "\n".join(parts)
    out = pathlib.Path(out)
    with replacing(out) as temporary:
        temporary.write_text(
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n',
            encoding="utf-8",
        )
    return out


def _content(heading: str, content: str | pathlib.Path) -> str:
    if isinstance(content, Html):
        return content + "\n"
    if isinstance(content, pathlib.Path) or (content.endswith(".png") and "\n" not in content):
        try:
            data = base64.b64encode(pathlib.Path(content).read_bytes()).decode()
        except OSError as error:
            raise UserError(f"{content}: cannot be read as an image: {error.strerror}") from None
        return f'<img alt="{html.escape(heading)}" src="data:image/png;base64,{data}">\n'
    return f"<pre>{html.escape(content)}</pre>\n"


def _escaped(text: str) -> str:
    return text if isinstance(text, Html) else html.escape(text)


class replacing:
    """A temporary path that replaces `path` if all goes well, and is removed if it does not."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __enter__(self) -> pathlib.Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        os.close(handle)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # temporary files are private; a report is as readable as any other file
        self._temporary = pathlib.Path(name)
        return self._temporary

    def __exit__(self, kind, *_):
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)
