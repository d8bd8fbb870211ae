"""Counts of whole programs against closed forms, on 8 simulated devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxgeom.planning.collectives import _groups
from jaxgeom.planning.counting import count_program
from jaxgeom.planning.hlo import read_module

SIZES = {"data": 2, "fsdp": 4}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh(tuple(SIZES.values()), tuple(SIZES), axis_types=(AxisType.Auto,) * 2)


def counted(function, *shapes, sizes=None):
    arrays = [s if isinstance(s, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return count_program(jax.jit(function).lower(*arrays).compile().as_text(), sizes or {})


def test_a_scan_counts_once_a_turn():
    def chain(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    found = counted(lambda x, w: jnp.sum(chain(x, w)), (6, 32), (5, 32, 32))
    assert found.flops == 5 * 2 * 6 * 32 * 32
    # With gradients of weights and input: a product forward, two backward, for every layer.
    both = jax.grad(lambda x, w: jnp.sum(chain(x, w)), argnums=(0, 1))
    assert counted(both, (6, 32), (5, 32, 32)).flops == 3 * 5 * 2 * 6 * 32 * 32


def test_loops_in_loops_and_loops_that_may_stop_early():
    def nested(x, w):
        inner = lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.tanh(y @ w), x)  # noqa: E731
        return jax.lax.scan(lambda x, _: (inner(x), None), x, None, length=4)[0]

    assert counted(nested, (6, 32), (32, 32)).flops == 12 * 2 * 6 * 32 * 32

    def until(x, w):
        """As sampling: from step 1 to 9, or until all are done."""
        go_on = lambda state: (state[0] < 9) & jnp.any(state[1] > 0)  # noqa: E731
        return jax.lax.while_loop(go_on, lambda state: (state[0] + 1, jnp.tanh(state[1] @ w)), (jnp.int32(1), x))

    found = counted(until, (6, 32), (32, 32))
    assert (found.flops, found.notes) == (8 * 2 * 6 * 32 * 32, [])


def test_a_loop_without_an_end_is_said():
    def search(x, w):
        return jax.lax.while_loop(lambda x: jnp.max(x) > 0.5, lambda x: jnp.tanh(x @ w), x)

    found = counted(search, (6, 32), (32, 32))
    assert found.flops == 2 * 6 * 32 * 32
    assert len(found.notes) == 1 and "unknown: counted once" in found.notes[0]


@pytest.mark.parametrize(
    "options",
    [
        dict(window_strides=(1,), padding=[(3, 2)]),
        dict(window_strides=(2,), padding=[(1, 4)], rhs_dilation=(2,)),
        dict(window_strides=(1,), padding=[(2, 2)], lhs_dilation=(3,)),
    ],
)
def test_a_convolution_counts_the_products_that_are_none_with_padding(options):
    """As the compiler of TPUs writes matrix products; against a count by hand of what a window of ones sees."""
    x, w = (2, 3, 10), (5, 3, 4)
    convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, **options)  # noqa: E731
    seen = convolve(np.ones(x, np.float32), np.ones(w, np.float32))
    found = counted(convolve, x, w)
    assert found.flops == 2 * float(np.sum(seen))


def test_collectives_by_kind_and_axis_as_often_as_they_run(mesh):
    def step(carry, _):
        gathered = jax.lax.all_gather(carry, "fsdp", tiled=True)  # [16, 32]
        scattered = jax.lax.psum_scatter(gathered, "fsdp", tiled=True)  # [4, 32]
        summed = jax.lax.psum(scattered, ("data", "fsdp"))
        moved = jax.lax.ppermute(summed, "data", [(0, 1), (1, 0)])
        turned = jax.lax.all_to_all(moved, "fsdp", 0, 1, tiled=True)  # [1, 128]
        return turned.reshape(4, 32) * 0.5, None

    def run(x):
        return jax.lax.scan(step, x, None, length=7)[0]

    spec = PartitionSpec(("data", "fsdp"))
    sharded = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    shape = jax.ShapeDtypeStruct((32, 32), jnp.float32, sharding=NamedSharding(mesh, spec))
    found = {(one.kind, one.axes): one for one in counted(sharded, shape, sizes=SIZES).collectives}
    own = 4 * 32 * 4  # bytes of a device's part
    assert found["all-gather", ("fsdp",)][2:] == (7 * 4 * own, 7 * 3 * own)
    assert found["reduce-scatter", ("fsdp",)][2:] == (7 * 4 * own, 7 * 3 * own)
    assert found["all-reduce", ("data", "fsdp")][2:] == (7 * own, 7 * own * 2 * 7 / 8)
    assert found["collective-permute", ("data",)][2:] == (7 * own, 7 * own)
    assert found["all-to-all", ("fsdp",)][2:] == (7 * own, 7 * own * 3 / 4)
    assert len(found) == 5


def test_of_branches_the_dearest_counts_with_its_own_collectives(mesh):
    def multiplied(x, y):
        return jax.lax.psum(x @ y, ("data", "fsdp"))  # [8, 8]

    def widened(x, y):
        return jax.lax.psum(x, ("data", "fsdp"))[:, :8]  # [8, 64]

    def run(which, x, y):
        return jax.lax.cond(which, multiplied, widened, x, y)

    whole = PartitionSpec()
    either = jax.shard_map(run, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    given = [jax.ShapeDtypeStruct(*one, sharding=NamedSharding(mesh, whole)) for one in (
        ((), bool), ((8, 64), jnp.float32), ((64, 8), jnp.float32)
    )]  # fmt: skip
    found = counted(either, *given, sizes=SIZES)
    assert found.flops == 2 * 8 * 64 * 8
    assert [one.payload for one in found.collectives] == [8 * 8 * 4]


def test_what_a_sharded_layer_gathers(mesh):
    """Parameters split over fsdp, a batch over both axes: every device gathers each layer, and does its rows' work."""
    weights = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    rows = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))

    def loss(w, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])

    found = counted(loss, weights, rows, sizes=SIZES)
    assert found.flops == 5 * 2 * 2 * 64 * 64
    gathered = {one.axes: one for one in found.collectives if one.kind == "all-gather"}
    assert gathered["fsdp",][2:] == (5 * 64 * 64 * 4, 5 * 64 * 64 * 4 * 3 / 4)


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a','b'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ],
)
def test_groups_of_devices_in_all_their_forms(written, groups):
    assert (
        sorted(sorted(group) for group in _groups(f", channel_id=1, {written}, dimensions={{0}}", 4).tolist()) == groups
    )


def test_what_runs_beside_products_counts_once():
    """The compiler of TPUs writes a running collective into every fusion that it runs beside."""
    text = """HloModule m, num_partitions=4

%beside (p: f32[8,8]) -> f32[32,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %g = f32[32,8]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (x: f32[8,8]) -> (f32[32,8], f32[32,8]) {
  %x = f32[8,8]{1,0:S(1)} parameter(0)
  %one = f32[32,8]{1,0} fusion(%x), kind=kCustom, calls=%beside
  %two = f32[32,8]{1,0} fusion(%x), kind=kCustom, calls=%beside
  ROOT %both = (f32[32,8]{1,0}, f32[32,8]{1,0}) tuple(%one, %two)
}
"""
    found = count_program(text, {"fsdp": 4})
    assert [(one.kind, one.payload, one.sent) for one in found.collectives] == [("all-gather", 1024.0, 768.0)]
    assert found.bytes == 2 * 1024  # what lies in the scratchpad is not read from memory


def test_a_sum_of_which_a_slice_is_kept_is_a_reduce_scatter():
    """As the compiler of TPUs writes it: one fusion, which moves half of what an all-reduce does."""
    text = """HloModule m, num_partitions=4

%all-reduce-scatter.1 (p: f32[32,8]) -> f32[8,8] {
  %p = f32[32,8]{1,0} parameter(0)
  %sum = f32[32,8]{1,0} all-reduce(%p), channel_id=3, replica_groups=[1,4]<=[4], to_apply=%add
  %first = s32[] constant(8)
  %zero = s32[] constant(0)
  ROOT %kept = f32[8,8]{1,0} dynamic-slice(%sum, %first, %zero), dynamic_slice_sizes={8,8}
}

ENTRY %main (x: f32[32,8]) -> f32[8,8] {
  %x = f32[32,8]{1,0} parameter(0)
  ROOT %one = f32[8,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    (found,) = count_program(text, {"fsdp": 4}).collectives
    assert (found.kind, found.payload, found.sent) == ("reduce-scatter", 1024.0, 768.0)


def test_bytes_of_a_product_and_of_a_slice():
    assert counted(lambda x, w: x @ w, (64, 128), (128, 32)).bytes == 4 * (64 * 128 + 128 * 32 + 64 * 32)
    # Of a stack that a scan walks over, each turn reads its layer alone.
    walk = lambda stack: jax.lax.scan(lambda s, x: (s + jnp.sum(x), None), jnp.float32(0), stack)[0]  # noqa: E731
    found = counted(walk, (50, 4096)).bytes
    assert 50 * 4096 * 4 <= found <= 3.1 * 50 * 4096 * 4  # read, written and read again where it is not fused


def test_what_a_fusion_within_a_fusion_reads_is_the_slice():
    """A layer cut out of a stack, turned by a bitcast, beside an update of one row in place."""
    text = """HloModule m

%cut (p: bf16[36,64,128], n: s32[]) -> bf16[1,64,128] {
  %p = bf16[36,64,128]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %s = bf16[1,64,128]{2,1,0} dynamic-slice(%p, %n, %z, %z), dynamic_slice_sizes={1,64,128}
}

%turned (p: bf16[36,64,128]) -> bf16[36,8192] {
  %p = bf16[36,64,128]{2,1,0} parameter(0)
  ROOT %b = bf16[36,8192]{1,0} bitcast(%p)
}

%written (p: f32[50,128], u: f32[1,128], n: s32[]) -> f32[50,128] {
  %p = f32[50,128]{1,0} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %d = f32[50,128]{1,0} dynamic-update-slice(%p, %u, %n, %z)
}

%outer (a: bf16[36,64,128], n: s32[], b: bf16[36,64,128], c: f32[50,128], u: f32[1,128]) -> (bf16[64], f32[50,128]) {
  %a = bf16[36,64,128]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %b = bf16[36,64,128]{2,1,0} parameter(2)
  %c = f32[50,128]{1,0} parameter(3)
  %u = f32[1,128]{1,0} parameter(4)
  %z = s32[] constant(0)
  %layer = bf16[1,64,128]{2,1,0} fusion(%a, %n), kind=kLoop, calls=%cut
  %flat = bf16[36,8192]{1,0} fusion(%b), kind=kLoop, calls=%turned
  %part = bf16[1,8192]{1,0} dynamic-slice(%flat, %n, %z), dynamic_slice_sizes={1,8192}
  %sum = bf16[64]{0} custom-call(%layer, %part), custom_call_target="x"
  %row = f32[50,128]{1,0} fusion(%c, %u, %n), kind=kLoop, calls=%written
  ROOT %both = (bf16[64]{0}, f32[50,128]{1,0}) tuple(%sum, %row)
}

ENTRY %main (a: bf16[36,64,128], n: s32[], b: bf16[36,64,128], c: f32[50,128]) -> (bf16[64], f32[50,128]) {
  %a = bf16[36,64,128]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %b = bf16[36,64,128]{2,1,0} parameter(2)
  %c = f32[50,128]{1,0} parameter(3)
  %u = f32[1,128]{1,0} parameter(4)
  ROOT %one = (bf16[64]{0}, f32[50,128]{1,0}) fusion(%a, %n, %b, %c, %u), kind=kLoop, calls=%outer
}
"""
    layer, row = 64 * 128 * 2, 128 * 4
    # Both layers, what says which (of 4 bytes), the row once read and once written, the sums.
    assert count_program(text, {}).bytes == 2 * layer + 4 + 2 * row + 64 * 2


def test_a_line_that_metadata_breaks_is_one():
    text = (
        "HloModule m\n\nENTRY %main (x: f32[2]) -> f32[2] {\n  %x = f32[2]{0} parameter(0)\n"
        '  ROOT %k = f32[2]{0} custom-call(%x), custom_call_target="tpu_custom_call", attributes={kernel={\n'
        '"note":"two"\n}}, metadata={op_name="f"}\n}\n'
    )
    (computation,) = read_module(text).computations.values()
    assert computation.root == "k" and 'op_name="f"' in computation.instructions["k"].attributes
    assert "not counted" in count_program(text, {}).notes[0]


def test_ragged_products_of_the_kernel_of_tpus():
    """Rows with the matrix of their group, whichever that is; and what only says which rows are whose."""
    text = """HloModule m

ENTRY %main (x: bf16[640,32], w: bf16[5,32,48], n: s32[5]) -> bf16[640,48] {
  %x = bf16[640,32]{1,0} parameter(0)
  %w = bf16[5,32,48]{2,1,0} parameter(1)
  %n = s32[5]{0} parameter(2)
  %ragged-dot-metadata = s32[6]{0} custom-call(%n), custom_call_target="tpu_custom_call"
  ROOT %ragged-dot-none.1 = bf16[640,48]{1,0} custom-call(%n, %x, %w), custom_call_target="tpu_custom_call"
}
"""
    found = count_program(text, {})
    assert (found.flops, found.notes) == (2 * 640 * 32 * 48, [])
