"""Every attention backend against a softmax written out over an explicit mask; what cannot run here is lowered."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from synergen_jax.config import Config, DataConfig, MeshConfig, ModelConfig
from synergen_jax.errors import UserError
from synergen_jax.model import attention, attention_kernels, attention_xla
from synergen_jax.model.attention import Causal, Grown, Masked, Prefix, attend
from synergen_jax.model.attention_xla import SOFTMAX, Form
from synergen_jax.sharding import device_mesh

B, H, L, D = 2, 2, 300, 8  # three spans of a block each


def arrays(seed, count, length=L, width=D, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(B, H, length, width)), dtype) for _ in range(count)]


def segments(seed, length=L, count=4):
    """Where the segment of each place begins, (B, length)."""
    rng = np.random.default_rng(seed)
    starts = [np.append(0, np.sort(rng.choice(np.arange(1, length), count, replace=False))) for _ in range(B)]
    first = [s[np.searchsorted(s, np.arange(length), "right") - 1] for s in starts]
    return jnp.asarray(np.stack(first), jnp.int32)


def causal_oracle(q, k, v, first, time=None, form=SOFTMAX):
    place = jnp.arange(q.shape[2])[None, None]
    mask = jnp.tri(q.shape[2], dtype=bool)[None].repeat(B, 0)
    if first is not None:
        mask &= place >= first[:, :, None]
    return attend(q, k, v, Masked(mask, time), form=form)


def prefix_oracle(q, k, v, keys, values, visible, first, time=None, key_time=None, form=SOFTMAX):
    """Context keys and own keys in one sequence under the mask of `oracle.mask`."""
    place = jnp.arange(keys.shape[2])[None, None]
    seen = place < visible[:, :, None]
    if first is not None:
        seen &= place >= first[:, :, None]
    mask = jnp.concatenate([seen, jnp.eye(q.shape[2], dtype=bool)[None].repeat(B, 0)], 2)[:, None]
    whole = jnp.concatenate([keys, k], 2), jnp.concatenate([values, v], 2)
    if time is None:
        return attention_xla.masked(q, *whole, mask, form=form)
    # Context tokens come first, and their rows are left out again.
    mask = jnp.concatenate([jnp.ones((B, 1, keys.shape[2], mask.shape[3]), bool), mask], 2)
    both = jnp.concatenate([keys, q], 2), *whole, mask, jnp.concatenate([key_time, time], 1), form
    return attention_xla.masked(*both)[:, :, keys.shape[2] :]


def grads(f, *inputs):
    """The value of f at inputs of floats, and its gradient against a fixed random cotangent."""
    out, pull = jax.vjp(f, *inputs)
    return out, pull(jnp.asarray(np.random.default_rng(9).normal(size=out.shape), out.dtype))


def assert_same(ours, theirs, *inputs, atol=1e-5, rtol=0.0):
    """Two functions agree in value and gradients."""
    for a, b in zip(
        *(jax.tree.leaves(jax.jit(functools.partial(grads, f))(*inputs)) for f in (ours, theirs)), strict=True
    ):
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol, atol)


def readers(seed, count, length, first=None, ordered=False):
    """`visible` of readers, zeros among them; with `first` of a context, their own `first` too."""
    rng = np.random.default_rng(seed)
    if ordered:
        at = np.arange(count) // (count // length)
        visible = np.maximum(at - rng.integers(0, 3, (B, count)), 0)
        return jnp.asarray(visible if first is None else np.maximum(visible, first[:, at]), jnp.int32), (
            None if first is None else first[:, at]
        )
    visible = rng.integers(0, length + 1, (B, count))
    visible[:, :3] = 0
    if first is None:
        return jnp.asarray(visible, jnp.int32), None
    begin = np.take_along_axis(np.asarray(first), np.minimum(visible, length - 1), 1)
    visible[:, 3:6] = begin[:, 3:6]
    return jnp.asarray(visible, jnp.int32), jnp.asarray(begin, jnp.int32)


# --- XLA ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["one block a span", "several blocks a span"])
def blocks(request, monkeypatch):
    if request.param != "one block a span":
        monkeypatch.setattr(attention_xla, "BLOCK", 16)
        monkeypatch.setattr(attention_xla, "SPANS", 4)


@pytest.mark.parametrize("packed", [False, True])
def test_xla_context_in_blocks_equals_the_oracle(packed, blocks):
    first = segments(0) if packed else None
    assert_same(lambda *x: attend(*x, Causal(first)), lambda *x: causal_oracle(*x, first), *arrays(1, 3))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_xla_readers_in_blocks_equal_the_oracle(packed, ordered, blocks):
    count, length = 300, 150
    first = segments(2, length) if packed else None
    visible, begin = readers(3, count, length, first, ordered)
    q, k, v = arrays(4, 3, count)
    assert_same(
        lambda q, k, v, *kv: attend(q, k, v, Prefix(*kv, visible, begin, 2 if ordered else 0)),
        lambda *x: prefix_oracle(*x, visible, begin),
        *(q, k, v, *arrays(5, 2, length)),
    )


@pytest.mark.parametrize("pointwise", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_xla_other_forms_equal_the_oracle(packed, pointwise, blocks):
    """A bias by elapsed time, and pointwise weights, their gradients included."""
    count, length = 300, 150
    rng = np.random.default_rng(6)
    times = lambda n: jnp.asarray(np.sort(rng.integers(0, 10**8, (B, n)), axis=1), jnp.int32)
    bias = jnp.asarray(rng.normal(size=(H, attention_xla.BUCKETS)), jnp.float32)
    time, first = times(L), segments(0) if packed else None
    form = lambda bias: Form(pointwise, bias)
    assert_same(
        lambda *x: attend(*x[:3], Causal(first, time), form=form(x[3])),
        lambda *x: causal_oracle(*x[:3], first, time, form(x[3])),
        *(*arrays(1, 3), bias),
        rtol=1e-5,  # the bias has a gradient from thousands of pairs
    )
    first = segments(2, length) if packed else None
    visible, begin = readers(3, count, length, first, True)
    time, key_time = times(count), times(length)
    assert_same(
        lambda q, k, v, *x: attend(q, k, v, Prefix(*x[:2], visible, begin, 2, time, key_time), form=form(x[2])),
        lambda *x: prefix_oracle(*x[:5], visible, begin, time, key_time, form(x[5])),
        *(*arrays(4, 3, count), *arrays(5, 2, length), bias),
        rtol=1e-5,
    )


@pytest.mark.parametrize("form", [SOFTMAX, Form(True), "biased"], ids=str)
def test_xla_tokens_that_join_cached_keys_equal_the_oracle(form, blocks):
    """As the last tokens of a causal call over all; rows of two lengths, a token of padding in one."""
    count, length = 150, 200
    before, gained = np.array([[20], [50]]), np.array([[150], [149]])
    rng = np.random.default_rng(7)
    time = jnp.asarray(np.sort(rng.integers(0, 10**8, (B, length)), axis=1), jnp.int32)
    if form == "biased":
        form = Form(False, jnp.asarray(rng.normal(size=(H, attention_xla.BUCKETS)), jnp.float32))
    place = before + np.arange(count)  # of the tokens; that of the padding is the last slot of all
    source = np.arange(length)[None] - before
    source = jnp.asarray(np.where((source >= 0) & (source < gained), source, -1), jnp.int32)
    pick = lambda x: jnp.take_along_axis(x, jnp.asarray(place)[:, None, :, None], 2)
    cached = jnp.asarray(np.arange(length) < before)[:, None, :, None]
    real = jnp.asarray(np.arange(count) < gained)[:, None, :, None]
    visible, asked = jnp.asarray(place, jnp.int32), jnp.take_along_axis(time, jnp.asarray(place), 1)

    def ours(q, k, v):
        keys, values = (jnp.where(cached, x, 7.0) for x in (k, v))  # what lies in free slots is not seen
        over = Grown(keys, values, source, visible, asked, time)
        return jnp.where(real, attend(*map(pick, (q, k, v)), over, form=form), 0)

    theirs = lambda *x: jnp.where(real, pick(causal_oracle(*x, None, time, form)), 0)
    assert_same(ours, theirs, *arrays(13, 3, length))


@pytest.mark.parametrize("backend", ["cudnn", "splash", "tokamax"])
def test_kernels_leave_tokens_that_join_to_xla(backend):
    q, k, v = arrays(14, 3, 4)
    source = jnp.asarray([[-1, -1, 0, 1, 2, 3]] * B)
    over = Grown(*arrays(15, 2, 6), source, jnp.asarray([[2, 3, 4, 5]] * B))
    np.testing.assert_array_equal(attend(q, k, v, over, backend), attend(q, k, v, over))


def test_buckets_of_elapsed_time():
    seconds = np.array([-5, 0, 1, 2, 60, 86_400, 160_000_000, 2**31 - 1])
    np.testing.assert_array_equal(attention_xla.bucket(jnp.asarray(seconds, jnp.int32)), [0, 0, 0, 2, 13, 37, 62, 63])


def test_xla_in_bfloat16_is_as_near_as_bfloat16_is():
    exact = causal_oracle(*arrays(1, 3), None)
    ours = attend(*arrays(1, 3, dtype=jnp.bfloat16), Causal())
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(ours), exact, atol=0.03)


def compiled(f, length):
    """The gradient of the sum of attention over `length` tokens of one user, one head."""
    shape = jax.ShapeDtypeStruct((1, 1, length, 8), jnp.float32)
    loss = lambda *x: jnp.sum(f(*x))
    return jax.jit(jax.grad(loss, tuple(range(5)))).lower(*[shape] * 5).compile()


def test_early_queries_take_no_late_keys():
    """Of a thousand queries in eight spans of a block each, little more than half of all logits are computed."""
    both = lambda causal: (
        lambda q, k, v, keys, values: (
            causal(q, k, v) + attend(q, k, v, Prefix(keys, values, jnp.arange(1000)[None], None, 1))
        )
    )
    ours = compiled(both(lambda *x: attend(*x, Causal())), 1000)
    mask = jnp.tri(1000, dtype=bool)[None]
    whole = compiled(
        lambda q, k, v, keys, values: (
            attend(q, k, v, Masked(mask)) + attend(q, k, v, Prefix(keys, values, jnp.arange(1000)[None]))
        ),
        1000,
    )
    assert ours.cost_analysis()["flops"] < 0.65 * whole.cost_analysis()["flops"]


def test_memory_grows_with_the_length_and_not_with_its_square():
    ours = [compiled(lambda q, k, v, *_: attend(q, k, v, Causal()), n).memory_analysis() for n in (4096, 8192)]
    short, long = (memory.temp_size_in_bytes for memory in ours)
    assert long < 2.5 * short
    assert long < 8192**2


# --- kernels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_splash_interpreted_equals_the_oracle(packed):
    """Of a length that is no multiple of the lanes."""
    length = 150
    first = segments(6, length) if packed else None
    assert_same(
        lambda *x: attention_kernels.splash_causal(*x, first, interpret=True),
        lambda *x: causal_oracle(*x, first),
        *arrays(7, 3, length),
    )


@pytest.fixture
def interpreted(monkeypatch):
    """Tokamax's Triton kernel, interpreted: its arithmetic and masks, on any platform.

    The interpreter does not know `program_id` inside of loops, so it is asked for at the start of each kernel.
    """
    tokamax = pytest.importorskip("tokamax", reason="the extra [tokamax] is not installed")
    from jax.experimental import pallas

    call, program_id, known = pallas.pallas_call, pallas.program_id, {}

    def pallas_call(kernel, *arguments, grid_spec, **more):
        def start(*refs):
            known.clear()
            known.update({axis: program_id(axis) for axis in range(len(grid_spec.grid))})
            return kernel(*refs)

        return call(start, *arguments, grid_spec=grid_spec, interpret=True, **more)

    def program_id_at_start(axis):
        if axis not in known:
            raise ValueError(axis)
        return known[axis]

    attention_kernels._tokamax()  # settles the flags
    monkeypatch.setattr(pallas, "pallas_call", pallas_call)
    monkeypatch.setattr(pallas, "program_id", program_id_at_start)
    with tokamax.config.cross_compile(True), jax.numpy_rank_promotion("allow"):  # Tokamax promotes
        yield


@pytest.mark.parametrize("packed", [False, True])
def test_tokamax_interpreted_equals_the_oracle(packed, interpreted):
    """The mask, the merge of own keys and the backward pass of the merge; readers that see nothing are among them."""
    length, count, width = 64, 128, 16  # whole tiles: the interpreter reads no part of a mask's
    first = segments(8, length) if packed else None
    visible, begin = readers(10, count, length, first)
    assert_same(
        lambda *x: attend(*x, Causal(first), "tokamax"),
        lambda *x: causal_oracle(*x, first),
        *arrays(9, 3, length, width),
    )
    assert_same(
        lambda q, k, v, *kv: attend(q, k, v, Prefix(*kv, visible, begin), "tokamax"),
        lambda *x: prefix_oracle(*x, visible, begin),
        *(*arrays(11, 3, count, width), *arrays(12, 2, length, width)),
    )


def lowered(f, platform, *shapes):
    """The program of the value and gradient of the sum of `f` for a platform that is not here."""
    floats = tuple(i for i, shape in enumerate(shapes) if jnp.issubdtype(shape.dtype, jnp.floating))
    total = lambda *x: jnp.sum(f(*x).astype(jnp.float32))
    return jax.jit(jax.value_and_grad(total, floats)).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


def shapes(length=200, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((B, H, length, 64), dtype)


PLACES = jax.ShapeDtypeStruct((B, 200), jnp.int32)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_splash_is_lowered_for_tpus(dtype):
    text = lowered(lambda q, k, v, f: attend(q, k, v, Causal(f), "splash"), "tpu", *[shapes(dtype=dtype)] * 3, PLACES)
    assert text.count("tpu_custom_call") >= 3  # forward, and backward for queries and for keys


def test_cudnn_is_lowered_for_gpus_and_leaves_packed_rows_to_xla(monkeypatch):
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    # What jax would ask of a device that is not here.
    for name, answer in (("check_cudnn_version", 91000), ("check_compute_capability", True)):
        monkeypatch.setattr(cudnn, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda *_: False, raising=False)
    text = lowered(lambda *x: attend(*x, Causal(), "cudnn"), "cuda", *[shapes()] * 3)
    assert "__cudnn$fmhaSoftmax" in text and "__cudnn$fmhaSoftmaxBackward" in text
    text = lowered(lambda q, k, v, f: attend(q, k, v, Causal(f), "cudnn"), "cuda", *[shapes()] * 3, PLACES)
    assert "__cudnn" not in text


def test_tokamax_is_lowered_for_gpus():
    tokamax = pytest.importorskip("tokamax", reason="the extra [tokamax] is not installed")
    attention_kernels._tokamax()  # settles the flags
    with tokamax.config.cross_compile(True), jax.numpy_rank_promotion("allow"):
        read = lambda q, k, v, *x: attend(q, k, v, Prefix(*x), "tokamax")
        text = lowered(read, "cuda", *[shapes()] * 5, PLACES, PLACES)
    assert "__gpu$xla.gpu.triton" in text


# --- the choice -----------------------------------------------------------------------------------------------


def config(attention="auto", pack=False, **model):
    return Config(model=ModelConfig(attention=attention, **model), data=DataConfig(pack=pack))


@pytest.fixture
def device(monkeypatch):
    """Makes the default device look like another one."""

    def be(platform, capability="9.0", version="cuda 12"):
        client = types.SimpleNamespace(platform_version=version)
        kind = f"a {platform}"
        monkeypatch.setattr(
            attention.jax,
            "devices",
            lambda: [
                types.SimpleNamespace(platform=platform, compute_capability=capability, client=client, device_kind=kind)
            ],
        )

    return be


def test_auto_takes_what_the_device_and_the_dtype_allow(device):
    bf16 = {"dtype": "bfloat16", "width": 128}
    choose = lambda **model: attention.choose(config(**model).model)
    assert choose(**bf16) == "xla"
    device("tpu")
    assert choose() == choose(**bf16) == "splash"
    device("gpu")
    assert choose() == "xla" and choose(**bf16) == "cudnn"
    assert choose(dtype="bfloat16", width=1024, heads=2) == "xla", "heads that wide cuDNN does not take"
    device("gpu", "7.5")
    assert choose(**bf16) == "xla"
    device("gpu", "gfx90a", "rocm 6")
    assert choose(**bf16) == "xla"


def test_a_backend_that_cannot_run_is_refused_and_says_what_to_set(device, monkeypatch):
    for backend in ("cudnn", "tokamax", "splash"):
        with pytest.raises(UserError, match=r"set model\.attention to auto"):
            attention.check(config(backend))
    for backend in ("auto", "xla"):
        attention.check(config(backend, pack=True))
    device("gpu")
    attention.check(config("cudnn", dtype="bfloat16"))
    with pytest.raises(UserError, match=r"'cudnn' computes in bfloat16, and model.dtype is float32"):
        attention.check(config("cudnn"))
    with pytest.raises(UserError, match=r"cannot keep the segments of packed rows \(data.pack\) apart"):
        attention.check(config("cudnn", pack=True, dtype="bfloat16"))
    with pytest.raises(UserError, match="heads of up to 128 features, a multiple of 8"):
        attention.check(config("cudnn", dtype="bfloat16", width=24, heads=2))
    monkeypatch.setattr(attention_kernels, "has_tokamax", lambda: False)
    with pytest.raises(UserError, match=r"synergen-jax\[tokamax\]"):
        attention.check(config("tokamax"))


def test_under_a_mesh_each_device_runs_its_own_users_and_heads():
    """No kernel is split by the compiler, which would gather its inputs instead."""
    mesh = device_mesh.make_mesh(MeshConfig(2, 2), jax.devices()[:4])
    inputs = jax.device_put(arrays(13, 3, 130), NamedSharding(mesh, PartitionSpec("data", "model")))

    def fused(*x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return attention_kernels.splash_causal(*x, None, interpret=True)

    ours = jax.jit(fused).lower(*inputs).compile()
    np.testing.assert_allclose(ours(*inputs), causal_oracle(*inputs, None), atol=1e-5)
    assert "all-gather" not in ours.as_text() and "all-reduce" not in ours.as_text()
