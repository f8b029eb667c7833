"""The ladder's pictures. Each function draws one PNG, and says whether there was anything to draw."""

from __future__ import annotations

import itertools
import pathlib
import statistics

import results

from synergen_jax.evaluation.report import COLOURS, replacing

METRIC = "ndcg@10"
LINES = ("-", "--", ":", "-.")
AXES = {
    "history": "events of the history that the model sees",
    "activity": "training events of the user",
    "popularity": "thirds of all training events, by item",
}


def curves(found: results.Ladder, path: pathlib.Path) -> bool:
    """Validation by step: of each variant the mean over seeds, at the steps that all of them reached, and their range."""
    figure, (axes,) = _figure(1, (7.6, 4.4))
    styles = itertools.cycle((colour, line) for line in LINES for colour in COLOURS)
    for (name, seeds), (colour, line) in zip(found.variants.items(), styles):
        runs = [{point["step"]: point[METRIC] for point in run["validation"]} for run in seeds.values()]
        steps = sorted(set.intersection(*map(set, runs)))
        values = [[run[step] for run in runs] for step in steps]
        axes.plot(steps, list(map(statistics.fmean, values)), line, color=colour, label=name, linewidth=1.5)
        if len(runs) > 1:
            axes.fill_between(
                steps, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.15, linewidth=0
            )
    axes.set_xlabel("step")
    axes.set_ylabel("validation NDCG@10")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right")
    return _save(figure, path)


def ladder(found: results.Ladder, path: pathlib.Path) -> bool:
    """How far each variant is from the recipe on the test split, seed by seed."""
    gains = {name: found.gains(name, METRIC) for name in list(found.variants)[1:]}
    gains = {name: values for name, values in gains.items() if values}
    if not gains:
        return False
    figure, (axes,) = _figure(1, (7.6, 1.2 + 0.36 * len(gains)))
    places = range(len(gains))
    means = [statistics.fmean(values) for values in gains.values()]
    errors = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in gains.values()]
    colours = [COLOURS[0] if mean >= 0 else COLOURS[1] for mean in means]
    axes.barh(places, means, xerr=errors, color=colours, alpha=0.75, height=0.6, capsize=3, ecolor="#444444")
    for place, values in zip(places, gains.values()):
        axes.plot(values, [place] * len(values), "o", color="#000000", markersize=2.5, linestyle="none")
    axes.axvline(0, color="#000000", linewidth=0.8)
    axes.set_yticks(places, gains)
    axes.invert_yaxis()
    axes.set_xlabel("test NDCG@10 less the recipe's, same seed")
    return _save(figure, path)


def slices(found: results.Ladder, path: pathlib.Path) -> bool:
    """The recipe on the test split by history, activity and popularity."""
    kinds = results.slices(found.recipe)
    if not kinds:
        return False
    figure, panels = _figure(len(kinds), (3.6 * len(kinds), 3.6))
    for axes, (kind, parts) in zip(panels, kinds.items()):
        values = [[run[METRIC] for run in runs] for runs in parts.values()]
        errors = [statistics.stdev(part) if len(part) > 1 else 0.0 for part in values]
        axes.bar(range(len(parts)), list(map(statistics.fmean, values)), yerr=errors, color=COLOURS[0], capsize=3)
        names = [_short(name) for name in parts]
        axes.set_xticks(range(len(parts)), names, rotation=30, ha="right", fontsize=8)
        axes.set_xlabel(AXES[kind], fontsize=8)
        axes.set_title(kind, loc="left", fontweight="bold", fontsize=11)
    panels[0].set_ylabel("test NDCG@10")
    return _save(figure, path)


def _short(name: str) -> str:
    """The part of a slice's name that tells it from the others of its kind."""
    name = name.removeprefix("users with ").removesuffix(" training events").removesuffix(" events")
    return name.split(", ")[0].removesuffix(" items") if "items" in name else name.split(", ")[-1]


def _figure(panels: int, size: tuple[float, float]):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    figure = Figure(figsize=size, dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for one in axes:
        one.grid(True, color="#dddddd", linewidth=0.6)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure, path: pathlib.Path) -> bool:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})  # the same bytes from the same numbers
    return True
