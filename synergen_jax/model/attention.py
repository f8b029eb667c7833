"""Attention of context tokens, of readers over a context, and its dense masked form.

What the tokens of one call may see is a small pytree, and `attend` is the one function that all callers use:

- `Causal()`: token i sees tokens 0 .. i.                                              (encode)
- `Prefix(keys, values, visible)`: token r sees the first `visible[r]` cached keys,
  and itself.                                                                          (read)
- `Grown(keys, values, source, visible)`: token i joins the cached keys and sees the
  first `visible[i]` of them, and itself.                                              (append)
- `Masked(mask)`: token i sees token j where `mask[i, j]`.                             (the oracle)

`time` is that of the tokens, in seconds, and `key_time` that of the cached keys; only a bias by elapsed time needs them. In
packed rows `first` tells each token where its own segment begins: nothing before it is seen. Padding follows the
events of a window, so no token that counts ever sees it: no padding mask is needed. Shapes are (B, H, L, Dh); the
softmax is computed in float32 whatever the dtype of the inputs.

`model.attention` names the backend that computes it (`choose`, `check`). A backend takes the masks that it can express;
the others go to XLA, so that every choice computes the same.
"""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int

from synergen_jax.batch import AnyArray
from synergen_jax.config import Config, ModelConfig
from synergen_jax.errors import UserError
from synergen_jax.model import attention_kernels, attention_xla
from synergen_jax.model.attention_xla import SOFTMAX, Form


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Causal:
    """Token i sees tokens `first[:, i]` .. i of the same call; without `first`, 0 .. i."""

    first: Int[AnyArray, "b l"] | None = None
    time: Int[AnyArray, "b l"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Token r sees the first `visible[:, r]` of the cached keys, and itself; no other token of the call.

    With `first`, it sees of them those from `first[:, r]` on. `per_event` n > 0 promises that there are n tokens an
    event, in the order of events, each asking no later than at its own: `visible[:, r] <= r // n`. That halves the work.
    """

    keys: Float[Array, "b h l dh"]
    values: Float[Array, "b h l dh"]
    visible: Int[AnyArray, "b r"]
    first: Int[AnyArray, "b r"] | None = None
    per_event: int = dataclasses.field(default=0, metadata={"static": True})
    time: Int[AnyArray, "b r"] | None = None
    key_time: Int[AnyArray, "b l"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grown:
    """The tokens of the call join the cached keys; token i then sees the first `visible[:, i]` of them, and the next: its own.

    `source` names the token that lies in each slot, -1 where the cached key stays. The first `visible[:, 0]` stay.
    """

    keys: Float[Array, "b h l dh"]
    values: Float[Array, "b h l dh"]
    source: Int[AnyArray, "b l"]
    visible: Int[AnyArray, "b n"]
    time: Int[AnyArray, "b n"] | None = None
    key_time: Int[AnyArray, "b l"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Masked:
    """Token i sees token j of the same call where `mask[:, i, j]`."""

    mask: Bool[Array, "b l l"]
    time: Int[AnyArray, "b l"] | None = None


Over = Causal | Prefix | Grown | Masked


def attend(
    q: Float[Array, "b h l dh"],
    k: Float[Array, "b h l dh"],
    v: Float[Array, "b h l dh"],
    over: Over,
    backend: str = "xla",
    form: Form = SOFTMAX,
) -> Float[Array, "b h l dh"]:
    """Scaled dot-product attention (Vaswani et al. 2017) over what `over` lets each token see.

    Args:
      backend: "xla", "cudnn", "tokamax" or "splash", see `choose`.
      form: other weights than the softmax of q k alone: "xla" only. A bias by elapsed time needs the times in `over`.
    """
    if isinstance(over, Masked):
        return attention_xla.masked(q, k, v, over.mask[:, None], over.time, form)
    if isinstance(over, Grown):
        if q.shape[2] > 1:
            return attention_xla.grown(q, k, v, over, form)
        # One token has none of the call before it: a reader, which needs no keys moved.
        over = Prefix(over.keys, over.values, over.visible, time=over.time, key_time=over.key_time)
    if isinstance(over, Prefix):
        if backend == "tokamax":
            return attention_kernels.tokamax_prefix(q, k, v, over.keys, over.values, over.visible, over.first)
        return attention_xla.prefix(q, k, v, over, form)
    if backend == "tokamax":
        return attention_kernels.tokamax_causal(q, k, v, over.first)
    if backend == "splash":
        return attention_kernels.splash_causal(q, k, v, over.first)
    if backend == "cudnn" and over.first is None:
        return attention_kernels.cudnn_causal(q, k, v)
    return attention_xla.causal(q, k, v, over.first, over.time, form)


def choose(config: ModelConfig) -> str:
    """The backend that `config.attention` means on this machine's default device.

    "auto" is splash on a TPU; cuDNN on an NVIDIA GPU that has it, in bfloat16 and for the widths of a head that it takes;
    and XLA everywhere else. Tokamax has to be asked for.
    """
    if config.attention != "auto":
        return config.attention
    for backend in ("splash", "cudnn"):
        if not _hindrance(backend, config):
            return backend
    return "xla"


def check(config: Config) -> None:
    """Refuses a backend that cannot run on this machine, in this dtype, or under the mask of packed rows.

    Raises:
      UserError: says what hinders, and what to set.
    """
    asked = config.model.attention
    why = _hindrance(asked, config.model)
    if asked == "cudnn" and config.data.pack is True:
        why = "cannot keep the segments of packed rows (data.pack) apart"
    if why:
        raise UserError(f"model.attention {asked!r} {why}: set model.attention to auto")


def _hindrance(backend: str, config: ModelConfig) -> str:
    """Why a backend cannot run here; empty if it can."""
    if backend not in ("auto", "xla") and (config.time_bias or config.block == "hstu"):
        return f"computes a plain softmax, without model.{'time_bias' if config.time_bias else 'block hstu'}"
    device = jax.devices()[0]
    nvidia = device.platform == "gpu" and "rocm" not in device.client.platform_version.lower()
    head = config.width // config.heads
    match backend:
        case "splash" if device.platform != "tpu":
            return f"runs on TPUs, and the default device is {device.device_kind}"
        case "cudnn" | "tokamax" if not nvidia or float(device.compute_capability) < 8:
            return f"runs on NVIDIA GPUs from Ampere on, and the default device is {device.device_kind}"
        case "cudnn" if config.dtype != "bfloat16":
            return f"computes in bfloat16, and model.dtype is {config.dtype}"
        case "cudnn" if head % 8 or head > 128:
            return f"takes heads of up to 128 features, a multiple of 8, and model.width / model.heads is {head}"
        case "tokamax" if not attention_kernels.has_tokamax():
            return "needs a package that is not installed (pip install 'synergen-jax[tokamax]')"
    return ""
