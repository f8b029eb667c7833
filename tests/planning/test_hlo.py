"""Reading compiled programs."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from synergen_jax.config import MeshConfig
from synergen_jax.planning import hlo
from synergen_jax.sharding import device_mesh


def compiled(f, *shapes):
    """The text of `f`, compiled for arrays that are split along their first axis over eight devices."""
    split = NamedSharding(device_mesh.make_mesh(MeshConfig(8, 1)), PartitionSpec("data"))
    args = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split) for shape in shapes]
    return jax.jit(f).lower(*args).compile().as_text()


def test_collectives_by_hand():
    mesh = device_mesh.make_mesh(MeshConfig(8, 1))

    def program(x):
        gathered = jax.lax.all_gather(x, "data", tiled=True)  # (16, 3) on every device
        turned = jax.lax.all_to_all(x[:, None].repeat(8, 1), "data", 1, 1)  # (2, 8, 3)
        total = jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.psum(y * 0.5, "data"), x)
        return gathered.sum() + turned.sum() + total.sum()[None]

    wrapped = jax.shard_map(
        program, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec("data"), check_vma=False
    )
    found = hlo.collectives(compiled(wrapped, (16, 3)))
    by_kind = {c.kind: c for c in found}
    assert len(found) == 3
    assert by_kind["all-gather"][1:] == (16 * 3 * 4, (16, 3), False)
    assert by_kind["all-to-all"].bytes == 2 * 8 * 3 * 4 and not by_kind["all-to-all"].in_loop
    assert by_kind["all-reduce"][1:] == (2 * 3 * 4, (2, 3), True)


def test_a_program_without_collectives():
    assert hlo.collectives(compiled(lambda x: x * 2, (16, 3))) == []


def test_instructions_have_kinds_and_shapes():
    found = hlo.instructions(compiled(lambda x: jnp.sin(x) + 1, (16, 3)))
    assert {"sine", "add", "parameter"} <= {part.kind for part in found}
    assert all(part.shapes == ((2, 3),) for part in found if part.kind in ("sine", "add"))
    assert all(part.bytes == 24 for part in found if part.kind == "sine")


def test_sizes_of_odd_types_and_halves():
    text = """
HloModule m

ENTRY %main (p: bf16[4,2]) -> bf16[8,2] {
  %p = bf16[4,2]{1,0} parameter(0)
  %ag = (bf16[4,2]{1,0}, bf16[8,2]{1,0}) all-gather-start(%p), dimensions={0}
  ROOT %done = bf16[8,2]{1,0} all-gather-done(%ag)
}
"""
    assert hlo.collectives(text) == [hlo.Collective("all-gather", 32, (8, 2), False)]


def test_payload_counts_trips_and_leaves_out_groups_of_one():
    mesh = device_mesh.make_mesh(MeshConfig(4, 2))

    def program(x):
        once = jax.lax.all_gather(x, "data", tiled=True)  # (16, 3)
        again, _ = jax.lax.scan(lambda y, _: (jax.lax.psum(y * 0.5, "model"), None), x, length=5)
        return once.sum() + again

    spec = PartitionSpec("data")
    wrapped = jax.shard_map(program, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = jax.ShapeDtypeStruct((16, 3), jnp.float32, sharding=NamedSharding(mesh, spec))
    text = jax.jit(wrapped).lower(x).compile().as_text()
    assert hlo.payload(text) == {"all-gather": 16 * 3 * 4, "all-reduce": 5 * 4 * 3 * 4}
    assert hlo.payload(compiled(lambda x: x * 2, (16, 3))) == {}


def test_payload_by_hand():
    text = """
HloModule m

ENTRY %main (p: f32[4,2]) -> f32[2,2] {
  %p = f32[4,2]{1,0} parameter(0)
  %alone = f32[4,2]{1,0} all-reduce(%p), replica_groups={{0},{1}}, to_apply=%add
  %gs = (f32[4,2]{1,0}, f32[8,2]{1,0}) all-gather-start(%alone), replica_groups=[1,2]<=[2], dimensions={0}
  %gd = f32[8,2]{1,0} all-gather-done(%gs)
  ROOT %rs = f32[2,2]{1,0} reduce-scatter(%gd), replica_groups=mesh['a'=4,'b'=2] {'a'}, to_apply=%add
}
"""
    assert hlo.payload(text) == {"all-gather": 8 * 2 * 4, "reduce-scatter": 4 * 2 * 2 * 4}
