"""Configuration: frozen dataclasses, read from TOML, overridden from the command line, saved as JSON.

A run is described by one `Config`. Its sections are `data`, `model`, `loss`, `optimiser`, `mesh`, `run` and
`evaluate`. An unknown key, or a value of the wrong type, is a `UserError` that names the nearest valid key.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import itertools
import json
import math
import pathlib
import tomllib
import types
import typing

from synergen_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which log is read, how it is split, and what one batch of it holds."""

    log: str = "ml-100k"  # name of a prepared log, or its folder
    # Or "leave-one-out-by-task" (searches and recommendations, each), "time", "last-days", "by-user" (users whom
    # training does not meet), "given": the parts that the data say, or "none": all events train, and nothing is
    # validated or tested.
    split: str = "leave-one-out"
    validation_from: float = 0.8  # split="time": a share of all events in (0, 1), or Unix seconds from 1990 on
    test_from: float = 0.9  # split="time": likewise
    validation_days: float = 7.0  # split="last-days": days before those of the test
    test_days: float = 7.0  # split="last-days": days before the last event of the log
    held_users: float = 0.1  # split="by-user": share of the users that validates, and as large a one that tests
    max_history: int = 200  # L: events in one window
    stride: int = 0  # events between two windows of a long user; 0: only the last window is trained on
    crop: bool = False  # windows before a user's last one are moved at random, to either side by half a stride at most
    batch: int = 64  # B: windows in one global step
    negatives: int = 0  # N: uniform negatives, shared by the whole batch
    # Training puts several short windows into one row; B then counts rows. "auto": where windows leave most slots empty.
    pack: bool | typing.Literal["auto"] = False
    rank_events: int = 4  # events a window at which candidates are ranked
    rank_candidates: int = 8  # K: candidates a ranked event, the true one included
    workers: int = 0  # feed processes; 0 reads in threads of this process
    drop_query: float = 0.0  # share of searches that training asks without their query, as recommendations
    lend_query: float = 0.0  # and of recommendations with a query that led somebody to their item, as searches
    cold_items: float = 0.0  # share of items that training never meets, to measure what becomes of new ones
    target_actions: str = ""  # comma-separated: events of these actions alone are evaluated, and ranked; "": of all
    filter_seen: bool = (
        True  # items that the user already had are left out: of evaluation, serving, and sampled candidates
    )
    seed: int = 0

    @property
    def measured(self) -> bool:
        """Whether the split holds events back, to validate and to test."""
        return self.split != "none"

    @property
    def drawn(self) -> bool:
        """Whether what is held back depends on `seed`."""
        return bool(self.cold_items) or self.split == "by-user"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of the Transformer."""

    width: int = 64  # D
    depth: int = 2
    heads: int = 2  # H
    mlp_ratio: int = 4
    dropout: float = 0.2
    block: str = (
        "transformer"  # or "hstu": pointwise attention behind a gate, in place of softmax and feed-forward layer
    )
    rope: str = "split"  # "time", "order", "split" (half of the rotary planes each) or "none"
    min_wavelength: int = 60  # seconds, of the fastest time plane
    max_wavelength: int = 315_360_000  # seconds (ten years), of the slowest time plane
    time_bias: bool = False  # attention has a learned bias by elapsed time, beside the rotary planes
    request_time: bool = True  # readers know when they are asked; otherwise the time of the last event that they see
    request_date: bool = False  # and readers' tokens tell the date of that: what is bought changes over the years
    matrices: bool = True  # use the log's semantic matrices
    leave_out: str = ""  # comma-separated: names of semantic matrices that are not used
    item_ids: bool = True  # learn a collaborative vector for each item, beside the semantic matrices
    query_ids: bool = True  # likewise for each query
    id_dropout: float = 0.0  # share of the ids whose learned vector a training step leaves out, for new items' sake
    context_query: bool = True  # events in the context tell the query that led to them
    context_action: bool = True  # and their action, such as the rating
    query_match: int = (
        0  # numbers of a second part of vectors, by which queries, and nothing else, are matched with items
    )
    normalise: bool = True  # score items by cosine similarity in place of the inner product
    dtype: str = "float32"  # of the computation; parameters are always float32
    attention: str = "auto"  # backend: "auto" (by device and dtype), "xla", "cudnn", "tokamax" or "splash"
    remat: bool = False  # recompute a block's activations in the backward pass

    def uses(self, matrix: str) -> bool:
        """Whether the semantic matrix of that name is a part of items' and queries' vectors."""
        return self.matrices and matrix not in self.left_out

    @property
    def left_out(self) -> list[str]:
        """The names in `leave_out`."""
        return [name.strip() for name in self.leave_out.split(",") if name.strip()]

    @property
    def mlp_hidden(self) -> int:
        """Hidden features of the gated feed-forward layer: two thirds, so that it has as many parameters as an ungated one."""
        return self.width * self.mlp_ratio * 2 // 3 // 8 * 8 or 8


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights and parts of the objective."""

    retrieval_weight: float = 1.0
    pointwise_weight: float = 0.1
    pairwise_weight: float = 0.1
    listwise_weight: float = 0.0
    label_weight: float = 1.0  # in all three, of each known label after the first, such as "like": few are known
    rank_after: int = 0  # steps before the ranking losses count
    search_weight: float = 1.0  # of readers with a query, in every part
    recommendation_weight: float = 1.0  # of readers without one
    hard_candidates: int = 0  # candidates a ranked event that the model itself retrieves at that moment
    full_softmax: bool = False  # InfoNCE against the whole catalogue, in place of sampled negatives
    in_batch: int = 256  # positives of the global batch that serve every reader as negatives
    log_q: bool = True  # correct sampled logits by the log of their sampling probability
    temperature: float = 0.05

    @property
    def ranks(self) -> bool:
        """Whether any ranking loss counts."""
        return bool(self.pointwise_weight or self.pairwise_weight or self.listwise_weight)


@dataclasses.dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with linear warm-up, then cosine decay to `final` times the peak."""

    learning_rate: float = 1e-3
    warmup: int = 100  # steps
    final: float = 0.1
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.98
    clip: float = 1.0  # global norm of the gradient; 0 turns clipping off
    average: float = (
        0.0  # decay of the moving average of parameters that is validated and served; 0: the newest ones are
    )
    accumulate: int = 0  # micro-batches a step; 0: as many as suit the platform (`device_mesh.micro_batches`)
    table: str = "auto"  # item and query rows: "dense", the whole table; "adam" (lazy) or "adagrad", the batch's rows


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 takes all that are left."""

    data: int = -1
    model: int = 1


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How long a run lasts, and what it writes when."""

    steps: int = 1000
    log_every: int = 10
    eval_every: int = 100  # steps between validations; 0 validates at the end alone
    patience: int = 5  # validations without a better one before the run stops; 0 never stops early
    # Validation metric that tells which is better: ndcg@10, that of one task (ndcg@10/search, ndcg@10/recommendation) or of
    # both (ndcg@10/both, their geometric mean), hr@10, shown_mrr, auc/LABEL.
    select: str = "ndcg@10"
    checkpoint_every: int = 100
    keep: int = 2  # newest checkpoints that are kept beside the best one
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What an evaluation computes."""

    batch: int = 128  # users a call
    rank_candidates: int = 100  # candidates a target, the true one included, for the ranking metrics
    bootstrap: int = 1000  # resamples of the users behind each 95% interval
    rerank: int = 100  # items retrieved first that the ranking head orders; 0: none
    baselines: bool = True  # what else there is for such a log, beside popularity
    neighbours: int = 100  # users that user-kNN adds up, among the baselines; 0: neither that nor item-kNN
    scann: bool = True  # approximate search beside the exact one, where ScaNN is installed
    k: tuple[int, ...] = ()  # cut-offs of HR@k and NDCG@k that are reported, as in 1,5,20; none: the usual ones


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that determines a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    mesh: MeshConfig = MeshConfig()
    run: RunConfig = RunConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


def shipped(families: bool = False) -> dict[str, pathlib.Path]:
    """The configs, or the families of configs, that come with the package, by name."""
    here = pathlib.Path(__file__).resolve().parent
    for folder in (here / "experiments", here.parent / "experiments"):  # installed, or a checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted((folder / "families" if families else folder).glob("*.toml"))}
    return {}


def load(name: str | pathlib.Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Reads a config: a TOML file, or the name of a shipped one, then applies `overrides`.

    Args:
      name: path of a `.toml` (or a saved `.json`) file, or a name out of `shipped()`.
      overrides: command-line words, `["--model.width", "128", "--run.steps=5"]`.

    Raises:
      UserError: there is no such config, it does not parse, or a key or value is wrong.
    """
    path = pathlib.Path(name)
    if not path.is_file():
        path = shipped().get(str(name).removesuffix(".toml"), path)
    if not path.is_file():
        near = nearest(str(name), shipped())
        raise UserError(f"no config file {str(name)!r}{near}; shipped configs: {', '.join(shipped()) or 'none'}")
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a config: {error}") from None
    config = from_dict(tree, where=str(path))
    return override(config, overrides)


def from_dict(tree: typing.Mapping[str, typing.Any], where: str = "config") -> Config:
    """Builds a checked `Config` from `{section: {key: value}}`; what is not named keeps its default."""
    if not isinstance(tree, typing.Mapping):
        raise UserError(f"{where}: a config is a table of sections, not {type(tree).__name__}")
    sections = {field.name: field for field in dataclasses.fields(Config)}
    config = Config()
    for section, values in tree.items():
        if section not in sections:
            raise UserError(f"{where}: unknown section [{section}]{nearest(section, sections)}")
        if not isinstance(values, typing.Mapping):
            raise UserError(f"{where}: [{section}] must be a table of keys, not {values!r}")
        for key, value in values.items():
            config = _replace(config, section, key, value, where)
    return _checked(config, where)


def override(config: Config, words: typing.Sequence[str]) -> Config:
    """Applies command-line words `--section.key value` or `--section.key=value` to a config."""
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or "." not in word:
            raise UserError(
                f"unknown argument {word!r}: settings are given as --section.key VALUE, as in --model.width 128"
            )
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not words:
                raise UserError(f"--{name} needs a value")
            text = words.pop(0)
        section, _, key = name.partition(".")
        if section not in (sections := {field.name for field in dataclasses.fields(Config)}):
            raise UserError(f"--{name}: unknown section {section!r}{nearest(section, sections)}")
        config = _replace(config, section, key, text, f"--{name}", parse=True)
    return _checked(config, "command line")


def to_dict(config: Config) -> dict[str, dict[str, typing.Any]]:
    """The config as plain nested dicts, ready for JSON, in which tuples are lists."""

    def plain(pairs: list[tuple[str, typing.Any]]) -> dict[str, typing.Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}

    return dataclasses.asdict(config, dict_factory=plain)


def seeded(config: Config, seed: int) -> Config:
    """The config with `seed` for both data and run.

    Raises:
      UserError: the seed is no uint32.
    """
    data, run = dataclasses.replace(config.data, seed=seed), dataclasses.replace(config.run, seed=seed)
    return _checked(dataclasses.replace(config, data=data, run=run), f"seed {seed}")


def differences(old: Config, new: Config) -> dict[str, tuple[typing.Any, typing.Any]]:
    """The settings that differ, `{"section.key": (old, new)}`."""
    pairs = ((s, k, o, to_dict(new)[s][k]) for s, values in to_dict(old).items() for k, o in values.items())
    return {f"{section}.{key}": (was, now) for section, key, was, now in pairs if was != now}


def _replace(config: Config, section: str, key: str, value: typing.Any, where: str, parse: bool = False) -> Config:
    part = getattr(config, section)
    hints = typing.get_type_hints(type(part))
    if key not in hints:
        raise UserError(f"{where}: unknown key {section}.{key}{nearest(key, hints)}")
    if value is False and f"{section}.{key}" in _WERE_SWITCHES:
        value = 0
    value = _typed(value, hints[key], f"{where}: {section}.{key}", parse)
    return dataclasses.replace(config, **{section: dataclasses.replace(part, **{key: value})})


def _typed(value: typing.Any, kind: typing.Any, where: str, parse: bool) -> typing.Any:
    """`value` as `kind`, or an error; `parse` reads it from text."""
    if kind == _NUMBERS:
        return _numbers(value, where, parse)
    if kind == _AUTO:
        if value == "auto":
            return value
        kind, named = bool, "true, false or auto"
    else:
        named = _KINDS[kind]
    if parse:
        try:
            value = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise UserError(f"{where} must be {named}, not {value!r}") from None
    if kind is float and type(value) is int and abs(value) < 2**63:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UserError(f"{where} must be {named}, not {value!r}")
    return value


def _numbers(value: typing.Any, where: str, parse: bool) -> tuple[int, ...]:
    """Whole numbers from a list of a file, or from the text `1,5,20`, which may be empty."""
    found = value
    if parse:
        try:
            found = [int(part) for part in value.split(",")] if value.strip() else []
        except ValueError:
            found = None
    if not isinstance(found, list | tuple) or any(type(part) is not int for part in found):
        named = "whole numbers set apart by commas, as in 1,5,20" if parse else "a list of whole numbers"
        raise UserError(f"{where} must be {named}, not {value!r}")
    return tuple(found)


_WERE_SWITCHES = ("model.query_match",)  # and are numbers now: in the configs of runs of before off is false
_NUMBERS = tuple[int, ...]
_AUTO = bool | typing.Literal["auto"]
_KINDS: collections.abc.Mapping[type, str] = types.MappingProxyType(
    {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
)
_CHOICES = {
    "data.split": ("leave-one-out", "leave-one-out-by-task", "time", "last-days", "by-user", "given", "none"),
    "model.block": ("transformer", "hstu"),
    "model.rope": ("time", "order", "split", "none"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", "xla", "cudnn", "tokamax", "splash"),
    "optimiser.table": ("auto", "dense", "adam", "adagrad"),
}
_SELECT = ("ndcg@10", "ndcg@10/search", "ndcg@10/recommendation", "ndcg@10/both", "hr@10", "shown_mrr")
_AT_LEAST = {
    "data.max_history": 2,  # in a window of one event nobody sees anything
    "data.stride": 0,
    "data.batch": 1,
    "data.negatives": 0,
    "data.rank_events": 0,
    "data.rank_candidates": 1,
    "data.workers": 0,
    "model.width": 1,
    "model.depth": 1,
    "model.heads": 1,
    "model.mlp_ratio": 1,
    "model.dropout": 0,
    "model.min_wavelength": 2,
    "model.max_wavelength": 2,
    "loss.retrieval_weight": 0,
    "loss.pointwise_weight": 0,
    "loss.pairwise_weight": 0,
    "loss.listwise_weight": 0,
    "loss.label_weight": 0,
    "loss.rank_after": 0,
    "loss.in_batch": 0,
    "loss.search_weight": 0,
    "loss.recommendation_weight": 0,
    "loss.hard_candidates": 0,
    "data.drop_query": 0,
    "data.lend_query": 0,
    "data.cold_items": 0,
    "model.id_dropout": 0,
    "model.query_match": 0,
    "optimiser.learning_rate": 0,
    "optimiser.warmup": 0,
    "optimiser.final": 0,
    "optimiser.weight_decay": 0,
    "optimiser.b1": 0,
    "optimiser.b2": 0,
    "optimiser.clip": 0,
    "optimiser.average": 0,
    "optimiser.accumulate": 0,
    "run.steps": 1,
    "run.log_every": 1,
    "run.eval_every": 0,
    "run.patience": 0,
    "run.checkpoint_every": 1,
    "run.keep": 1,
    "evaluate.batch": 1,
    "evaluate.rank_candidates": 2,
    "evaluate.bootstrap": 0,
    "evaluate.rerank": 0,
    "evaluate.neighbours": 0,
    "data.seed": 0,
    "run.seed": 0,
}
_ABOVE = {"data.validation_days": 0, "data.test_days": 0, "data.held_users": 0, "loss.temperature": 0}
_BELOW = {
    "data.held_users": 0.5,  # as many validate as test, and somebody trains
    "model.dropout": 1,
    "model.id_dropout": 1,
    "data.cold_items": 1,
    "optimiser.b1": 1,
    "optimiser.b2": 1,
    "optimiser.average": 1,
    "data.seed": 2**32,
    "run.seed": 2**32,
}


def _checked(config: Config, where: str) -> Config:
    """The config itself, if its values can go together."""
    values = {f"{s}.{k}": v for s, part in to_dict(config).items() for k, v in part.items()}
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            near = nearest(values[name], choices)
            raise UserError(f"{where}: {name} must be one of {', '.join(choices)}, not {values[name]!r}{near}")
    for name, least in _AT_LEAST.items():
        if not values[name] >= least:  # also refuses NaN
            raise UserError(f"{where}: {name} must be at least {least}, not {values[name]}")
    for name, bound in _ABOVE.items():
        if not values[name] > bound:
            raise UserError(f"{where}: {name} must be above {bound}, not {values[name]}")
    for name, bound in _BELOW.items():
        if not values[name] < bound:
            raise UserError(f"{where}: {name} must be below {bound}, not {values[name]}")
    m, loss, data = config.model, config.loss, config.data
    if config.run.select not in _SELECT and not config.run.select.startswith("auc/"):
        raise UserError(
            f"{where}: run.select must be one of {', '.join(_SELECT)}, or auc/ and a label, not {config.run.select!r}"
            f"{nearest(config.run.select, _SELECT)}"
        )
    if not (m.matrices or m.item_ids):
        raise UserError(f"{where}: model.matrices and model.item_ids are both false: items have no vectors")
    if data.stride > data.max_history:
        raise UserError(
            f"{where}: data.stride {data.stride} is above data.max_history {data.max_history}: events between two windows "
            "would never be learned from; set both"
        )
    if data.crop and not data.stride:
        raise UserError(f"{where}: data.crop moves windows by half of data.stride, which is 0: set data.stride")
    for name, share in (("drop_query", data.drop_query), ("lend_query", data.lend_query)):
        if share > 1:
            raise UserError(f"{where}: data.{name} must be at most 1, not {share}")
    if not loss.search_weight + loss.recommendation_weight > 0:
        raise UserError(f"{where}: loss.search_weight and loss.recommendation_weight are both 0: nothing is learned")
    if m.width % m.heads or (m.width // m.heads) % 2:
        raise UserError(f"{where}: model.width {m.width} must be an even multiple of model.heads {m.heads}")
    if m.rope == "split" and (m.width // m.heads) % 4:
        raise UserError(
            f"{where}: model.rope 'split' needs model.width / model.heads divisible by 4, not {m.width // m.heads}"
        )
    if m.min_wavelength > m.max_wavelength or m.max_wavelength >= 2**31:
        raise UserError(f"{where}: model.min_wavelength <= model.max_wavelength < 2^31 seconds is needed")
    if loss.hard_candidates and data.rank_candidates < 2:
        raise UserError(
            f"{where}: data.rank_candidates {data.rank_candidates} leaves no room for a sampled candidate, which "
            "loss.hard_candidates are weighed by: set it to 2 or more"
        )
    pooled = loss.retrieval_weight or loss.hard_candidates
    if pooled and not loss.full_softmax and not (loss.in_batch or data.negatives):
        raise UserError(f"{where}: InfoNCE has no negatives: set loss.in_batch, data.negatives or loss.full_softmax")
    if loss.full_softmax and config.optimiser.table in ("adam", "adagrad"):
        raise UserError(
            f"{where}: optimiser.table {config.optimiser.table!r} moves the rows of a batch, and loss.full_softmax all of "
            "them: set optimiser.table to 'auto' or 'dense'"
        )
    if data.split == "time" and not data.validation_from < data.test_from:
        raise UserError(f"{where}: data.validation_from must lie before data.test_from")
    if data.cold_items and not data.measured:
        raise UserError(
            f"{where}: data.cold_items holds items back to measure them, and data.split 'none' measures nothing: set "
            "data.cold_items to 0, or another split"
        )
    if (k := config.evaluate.k) and (k[0] < 1 or any(low >= high for low, high in itertools.pairwise(k))):
        listed = ",".join(map(str, k))
        raise UserError(
            f"{where}: evaluate.k must be cut-offs from 1 up, each larger than the one before, not {listed}"
        )
    if config.optimiser.accumulate and data.batch % config.optimiser.accumulate:
        raise UserError(
            f"{where}: data.batch {data.batch} must be a multiple of optimiser.accumulate {config.optimiser.accumulate}"
        )
    return config
