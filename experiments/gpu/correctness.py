"""Does the device compute what it should? Each measurement gives its errors beside what its dtype allows, and `holds`."""

from __future__ import annotations

import itertools
import shutil
import typing

import jax
import jax.numpy as jnp
import numpy as np
from batches import Source
from made_up import CycleLog, open_log, parameters
from setting import Setting, Skip

from synergen_jax import config as configs
from synergen_jax.bench.setting import Trainer
from synergen_jax.config import Config
from synergen_jax.errors import UserError
from synergen_jax.evaluation import protocol
from synergen_jax.model import attention, attention_xla, oracle, synergen
from synergen_jax.model.attention import Causal, Prefix
from synergen_jax.model.synergen import SynerGen
from synergen_jax.planning.synthetic import SyntheticLog
from synergen_jax.sharding.table import place_catalogue
from synergen_jax.training import train_step
from synergen_jax.training.checkpoint import Checkpoints

# The largest error by the largest value. Products of float32 run as TF32 on NVIDIA, with ten bits after the point.
TOLERANCE = {"highest": 2e-5, "float32": 3e-3, "bfloat16": 3e-2}
USERS, HEADS = 2, 2

TINY = {
    "data": {"max_history": 24, "batch": 8, "negatives": 16, "rank_events": 4, "rank_candidates": 4},
    "model": {"width": 32, "depth": 2, "heads": 2},
    "loss": {"in_batch": 16},
    "optimiser": {"warmup": 2, "learning_rate": 1e-2},
    "run": {"steps": 8},
    "mesh": {"data": 1},
}


def _compared(found: typing.Any, wanted: typing.Any) -> float:
    """The largest difference of two trees, by the largest value of each leaf."""
    errors = jax.tree.map(
        lambda x, y: jnp.max(jnp.abs(jnp.asarray(x, jnp.float32) - y)) / jnp.maximum(jnp.max(jnp.abs(y)), 1e-6),
        found,
        wanted,
    )
    return float(np.max(jax.tree.leaves(jax.device_get(errors))))  # NaN if any is


def _verdict(errors: dict[str, float], tolerance: float) -> dict[str, typing.Any]:
    holds = all(np.isfinite(error) and error <= tolerance for error in errors.values())
    return {"errors": errors, "tolerance": tolerance, "holds": holds}


# --- the model --------------------------------------------------------------------------------------------------


def factorised(setting: Setting) -> dict[str, typing.Any]:
    """Encoding once and reading against the masked Transformer: hidden states, and gradients of all parameters."""
    config = configs.from_dict(TINY | {"model": TINY["model"] | {"depth": setting.by_size(2, 1)}})
    log = SyntheticLog(200, 32, 26)
    catalogue, feed = open_log(config, log)
    batch = next(feed(0))
    model = train_step.make_model(config, log.spec)
    params = parameters(model)
    readers = batch.retrieval

    def tokens(params):
        return *synergen.token_vectors(model, params, catalogue, batch.events), *synergen.token_vectors(
            model, params, catalogue, readers
        )

    def twice(params):
        items, queries, mine, asked = tokens(params)
        pure = lambda method: synergen.pure(model, params["model"], method)
        cache = pure(SynerGen.encode)(batch.events, items, queries)
        return pure(SynerGen.read)(cache, readers, mine, asked, per_event=1)

    def once(params):
        items, queries, mine, asked = tokens(params)
        return synergen.pure(model, params["model"], oracle.forward)(
            batch.events, items, queries, readers, mine, asked
        )[1]

    weight = jax.random.normal(jax.random.key(1), (*batch.target.shape, config.model.width))
    weight *= batch.target[..., None] > 0
    score = lambda f: jax.jit(jax.value_and_grad(lambda params: jnp.sum(weight * f(params))))
    with jax.default_matmul_precision("highest"):
        seen = batch.target[..., None] > 0
        hidden = _compared(jax.jit(twice)(params) * seen, jax.jit(once)(params) * seen)
        (_, found), (_, wanted) = score(twice)(params), score(once)(params)
    return _verdict({"hidden states": hidden, "gradients": _compared(found, wanted)}, 10 * TOLERANCE["highest"])


# --- attention --------------------------------------------------------------------------------------------------


class _Case(typing.NamedTuple):
    """An attention to be checked: shapes, and which of its masks."""

    length: int
    head: int  # features of one
    packed: bool  # rows hold several segments
    readers: int  # tokens an event; 0: the context itself


CASES = (
    _Case(200, 64, False, 0),
    _Case(384, 128, False, 0),
    _Case(384, 128, True, 0),
    _Case(384, 32, False, 1),
    _Case(384, 64, True, 1),
    _Case(200, 128, True, 3),
)


def backend(setting: Setting, backend: str, dtype: str) -> dict[str, typing.Any]:
    """One backend's attention and its gradients against the masked softmax in float32, over lengths, heads and masks."""
    rounded = {"model": {"attention": backend, "dtype": dtype, "width": 128, "heads": 2}}
    try:
        attention.check(configs.from_dict(rounded))
    except UserError as why:
        raise Skip(str(why)) from None
    cases = setting.by_size(CASES, (_Case(40, 8, False, 0), _Case(40, 8, True, 1)))
    errors = {}
    for case in cases:
        name = f"L {case.length}, Dh {case.head}{', packed' * case.packed}, {case.readers or 'no'} readers an event"
        errors[name] = _attention_error(case, backend, dtype)
    found = _verdict(errors, TOLERANCE[dtype])
    return found | {"worst": list(errors)[int(np.argmax(list(errors.values())))]}  # NaN counts as the largest


def _attention_error(case: _Case, backend: str, dtype: str) -> float:
    count = case.length * max(case.readers, 1)
    shape = lambda length: (USERS, HEADS, length, case.head)
    keys = jax.random.split(jax.random.key(case.length + case.head), 6)
    sizes = (count, count, count, count, case.length, case.length)
    weight, *inputs = (jax.random.normal(key, shape(n)).astype(dtype) for key, n in zip(keys, sizes))
    place = jnp.broadcast_to(jnp.arange(case.length), (USERS, case.length))
    first = (place // 64) * 64 if case.packed else None
    visible = None if not case.readers else jnp.repeat(place, case.readers, axis=1)
    started = None if first is None or not case.readers else jnp.repeat(first, case.readers, axis=1)

    def ours(q, k, v, keys, values):
        over = Causal(first) if visible is None else Prefix(keys, values, visible, started, case.readers)
        return attention.attend(q, k, v, over, backend)

    def masked(q, k, v, keys, values):
        if visible is None:
            whole, mask = (k, v), oracle.mask(case.length, place[:, :0], first)
        else:
            whole = jnp.concatenate([keys, k], 2), jnp.concatenate([values, v], 2)
            mask = oracle.mask(case.length, visible, first, started)[:, case.length :]
        return attention_xla.masked(q, *whole, mask[:, None])

    def both(f, inputs):
        out, back = jax.vjp(f, *inputs)
        return out, back(weight.astype(out.dtype))

    found = jax.jit(lambda *inputs: both(ours, inputs))(*inputs)
    with jax.default_matmul_precision("highest"):
        wide = [x.astype(jnp.float32) for x in inputs]
        wanted = jax.jit(lambda *inputs: both(masked, inputs))(*wide)
    return _compared(found, wanted)


# --- training ---------------------------------------------------------------------------------------------------


class _Run:
    """A tiny training, with its state."""

    def __init__(self, config: Config, log: SyntheticLog):
        self.catalogue, feed = open_log(config, log)
        self.trainer = Trainer(config, log.spec, self.catalogue)
        self.batches = [self.trainer.place(batch) for batch in itertools.islice(feed(0), config.run.steps)]

    def steps(self, start: int, stop: int) -> synergen.Params:
        """Takes steps start .. stop - 1; the parameters after them."""
        for batch in self.batches[start:stop]:
            self.trainer(batch)
        return jax.device_get(self.trainer.state.params)


def resume(setting: Setting) -> dict[str, typing.Any]:
    """Eight steps, eight again, and four after a checkpoint of the first four: the parameters, to the bit."""
    config, log = configs.from_dict(TINY | {"model": TINY["model"] | {"depth": 1}}), SyntheticLog(200, 64, 26)
    folder = setting.scratch / "resume"
    shutil.rmtree(folder, ignore_errors=True)
    first = _Run(config, log)
    first.steps(0, 4)
    with Checkpoints(folder, keep=1, say=setting.say) as checkpoints:
        checkpoints.save(4, first.trainer.state, {}, best=4)
        checkpoints.wait()
        once = first.steps(4, 8)
        again = _Run(config, log).steps(0, 8)
        other = _Run(config, log)
        found = checkpoints.restore(other.trainer.state, fits=lambda info: None)
    assert found is not None, "the checkpoint was written"
    other.trainer.state = found[0]
    resumed = other.steps(4, 8)
    same = lambda params: all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(once), jax.tree.leaves(params)))
    return {
        "repeated": {"same to the bit": same(again), "largest difference": _compared(again, once)},
        "resumed": {"same to the bit": same(resumed), "largest difference": _compared(resumed, once)},
        "holds": same(resumed) or not same(again),  # what does not repeat cannot be resumed to the bit either
    }


def tiny_run(setting: Setting) -> dict[str, typing.Any]:
    """Users walk through the items in order: a trained model finds the next one."""
    steps, items = setting.by_size((300, 100), (80, 40))
    loss, optimiser = {"full_softmax": True}, {"warmup": 10, "learning_rate": 1e-2}
    config = configs.from_dict(TINY | {"run": {"steps": steps}, "loss": loss, "optimiser": optimiser})
    log = CycleLog(items, 128, 26)
    run, source = _Run(config, log), Source(log, config)
    run.steps(0, steps)
    catalogue = place_catalogue(run.catalogue, run.trainer.mesh)
    targets = [source.test.batch(number) for number in range(len(source.test))]
    found = protocol.validator(run.trainer.model, catalogue, targets)(run.trainer.state.served)
    return {"metrics": found, "holds": found["hr@10"] > 0.9}
