"""bench/hlo.py counts a program by its rules."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import hlo

PROGRAM = """HloModule jit_step

%fused_add (p.0: f32[8,16], p.1: f32[100,16]) -> f32[8,16] {
  %p.0 = f32[8,16]{1,0} parameter(0)
  %p.1 = f32[100,16]{1,0} parameter(1)
  %slice.1 = f32[8,16]{1,0} slice(%p.1), slice={[0:8], [0:16]}
  ROOT %add.1 = f32[8,16]{1,0} add(%p.0, %slice.1)
}

%fused_update (p.2: f32[100,16], p.3: f32[8,16], p.4: s32[]) -> f32[100,16] {
  %p.2 = f32[100,16]{1,0} parameter(0)
  %p.3 = f32[8,16]{1,0} parameter(1)
  %p.4 = s32[] parameter(2)
  ROOT %update.1 = f32[100,16]{1,0} dynamic-update-slice(%p.2, %p.3, %p.4, %p.4)
}

%fused_scale (p.5: f32[100,16], p.6: f32[]) -> f32[8,16] {
  %p.5 = f32[100,16]{1,0} parameter(0)
  %p.6 = f32[] parameter(1)
  %p.7 = f32[100,16]{1,0} broadcast(%p.6), dimensions={}
  %scaled = f32[100,16]{1,0} multiply(%p.5, %p.7)
  ROOT %slice.2 = f32[8,16]{1,0} slice(%scaled), slice={[0:8], [0:16]}
}

%body (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %state = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%state), index=1
  %negate.1 = f32[8,16]{1,0} negate(%x)
  ROOT %tuple.1 = (s32[], f32[8,16]{1,0}) tuple(%i, %negate.1)
}

ENTRY %main (a: f32[8,16], b: f32[100,16], w: f16[16,32], i: s32[]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[100,16]{1,0} parameter(1)
  %w = f16[16,32]{1,0} parameter(2)
  %i.1 = s32[] parameter(3)
  %add_fusion = f32[8,16]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused_add, metadata={op_name="jit(step)/add"}
  %update_fusion = f32[100,16]{1,0} fusion(%b, %a, %i.1), kind=kLoop, calls=%fused_update
  %factor = f32[] constant(2)
  %scale_fusion = f32[8,16]{1,0} fusion(%b, %factor), kind=kLoop, calls=%fused_scale
  %half = f16[8,16]{1,0} convert(%add_fusion)
  %gemm = (f16[8,32]{1,0}, s8[4194304]{0}) custom-call(%half, %w), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"x":[]}}}
  %state.1 = (s32[], f32[8,16]{1,0}) tuple(%i.1, %a)
  %while.1 = (s32[], f32[8,16]{1,0}) while(%state.1), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[8,16]{1,0} get-tuple-element(%while.1), index=1
}
"""
ARRAY = 8 * 16 * 4  # bytes of a


@pytest.mark.parametrize(
    "name, times, count",
    [
        ("add_fusion", 1, 3 * ARRAY),  # of b, what is sliced
        ("update_fusion", 1, 2 * ARRAY + 4),  # in place: the update is read and written, and its place is read
        ("scale_fusion", 1, 2 * ARRAY + 4),  # what is sliced after it is scaled
        ("half", 1, ARRAY * 3 // 2),
        ("gemm", 1, 2 * (8 * 16 + 16 * 32 + 8 * 32)),  # no scratch space
        ("negate.1", 5, 2 * ARRAY),  # a loop of five
    ],
)
def test_bytes_are_counted_by_the_rule(name, times, count):
    costs = {cost.operation.name: cost for cost in hlo.Program(PROGRAM).costs}
    assert set(costs) == {
        "add_fusion",
        "update_fusion",
        "scale_fusion",
        "half",
        "gemm",
        "negate.1",
    }  # the others move nothing
    assert (costs[name].times, costs[name].bytes) == (times, count)


def test_a_loop_whose_number_is_not_noted_runs_as_often_as_its_condition_says():
    condition = """
%c (state: (s32[], f32[8,16])) -> pred[] {
  %state.2 = (s32[], f32[8,16]{1,0}) parameter(0)
  %limit = s32[] constant(LIMIT)
  %i.2 = s32[] get-tuple-element(%state.2), index=0
  ROOT %less = pred[] compare(%i.2, %limit), direction=LT
}
"""
    unnoted = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    assert unnoted != PROGRAM
    for limit, times in (("7", 7), ("", 1)):  # a number, and one that is not there before it runs
        text = condition.replace("constant(LIMIT)", f"constant({limit})" if limit else "get-tuple-element(%state.2)")
        costs = {cost.operation.name: cost for cost in hlo.Program(text + unnoted).costs}
        assert costs["negate.1"].times == times


def test_a_librarys_product_has_its_types_and_operations():
    (gemm,) = [cost for cost in hlo.Program(PROGRAM).costs if cost.product]
    assert gemm.product == ("f16", "f16", "f16")
    assert gemm.flops == 2 * 8 * 16 * 32


def test_the_source_is_jaxs_name():
    assert hlo.Program(PROGRAM).costs[0].operation.source == "jit(step)/add"


def test_a_program_as_this_jax_writes_it_is_read():
    x = jnp.ones((64, 32))
    text = jax.jit(lambda x: jnp.sin(x) @ x.T).lower(x).compile().as_text()
    costs = hlo.Program(text).costs
    assert sum(cost.flops for cost in costs) == 2 * 64 * 64 * 32
    assert sum(cost.bytes for cost in costs) >= (64 * 32 + 64 * 64) * 4


# Collectives: of programs for four simulated devices, and in the words of the compilers for GPUs and TPUs.

EXCHANGES = {
    "all-reduce": lambda x: jax.lax.psum(x, "x"),
    "all-gather": lambda x: jax.lax.all_gather(x, "x", tiled=True),
    "reduce-scatter": lambda x: jax.lax.psum_scatter(x, "x", tiled=True),
    "all-to-all": lambda x: jax.lax.all_to_all(x, "x", 0, 0, tiled=True),
    "collective-permute": lambda x: jax.lax.ppermute(x, "x", [(i, (i + 1) % 4) for i in range(4)]),
}
PART = 8 * 16 * 4  # bytes of a device's operand


def collectives(function, shape=(4,), names=("x",)) -> list[hlo.Collective]:
    """Of `function` of an array (8, 16) of each device, compiled for four devices."""
    mesh = jax.make_mesh(shape, names, devices=jax.devices()[:4])
    shared = jax.shard_map(function, mesh=mesh, in_specs=P(names), out_specs=P(names), check_vma=False)
    x = jax.ShapeDtypeStruct((32, 16), jnp.float32, sharding=NamedSharding(mesh, P(names)))
    return hlo.Program(jax.jit(shared).lower(x).compile().as_text()).collectives


@pytest.mark.parametrize(
    "kind, sent",
    [
        ("all-reduce", 2 * 3 / 4 * PART),  # a quarter at a time: three are sent to be added up, three are passed on
        ("all-gather", 3 * PART),
        ("reduce-scatter", 3 / 4 * PART),
        ("all-to-all", 3 / 4 * PART),
        ("collective-permute", PART),
    ],
)
def test_an_exchange_among_devices_is_counted(kind, sent):
    (found,) = collectives(EXCHANGES[kind])
    assert (found.kind, found.times, found.devices, found.bytes) == (kind, 1, 4, PART)
    assert found.sent == sent


def test_an_exchange_in_a_loop_is_counted_as_often_as_it_runs():
    (found,) = collectives(lambda x: jax.lax.fori_loop(0, 5, lambda _, x: jnp.sin(jax.lax.psum(x, "x")), x))
    assert (found.times, found.bytes) == (5, PART)


def test_an_exchange_along_one_axis_of_a_mesh_is_within_its_groups():
    found = collectives(lambda x: jax.lax.psum(x, "x") + jax.lax.all_gather(x, "y", tiled=True)[:8], (2, 2), ("x", "y"))
    assert sorted((one.kind, one.devices, one.sent) for one in found) == [
        ("all-gather", 2, PART),
        ("all-reduce", 2, PART),
    ]


def test_a_program_of_one_device_exchanges_nothing():
    assert hlo.Program(PROGRAM).collectives == []


ELSEWHERE = """HloModule jit_step, is_scheduled=true, num_partitions=8

%all-reduce-scatter.1 (in: f32[8,16]) -> f32[4,16] {
  %in = f32[8,16]{1,0:T(8,128)} parameter(0)
  %inner = f32[8,16]{1,0:T(8,128)} all-reduce(%in), channel_id=1, replica_groups={{0,2},{4,6},{1,3},{5,7}}
  ROOT %part = f32[4,16]{1,0:T(8,128)} slice(%inner), slice={[0:4], [0:16]}
}

%begin (a.1: f32[8,16]) -> f32[16,16] {
  %a.1 = f32[8,16]{1,0:T(8,128)} parameter(0)
  ROOT %gather.1 = f32[16,16]{1,0} all-gather(%a.1), replica_groups=[4,2]<=[8], frontend_attributes={chain_id="7"}
}

%end (a.2: f32[8,16]) -> f32[16,16] {
  %a.2 = f32[8,16]{1,0:T(8,128)} parameter(0)
  ROOT %gather.2 = f32[16,16]{1,0} all-gather(%a.2), replica_groups=[4,2]<=[8], frontend_attributes={chain_id="7"}
}

%product (b.1: bf16[8,6,128,64], b.2: bf16[8,6,256,64]) -> f32[8,6,128,256] {
  %b.1 = bf16[8,6,128,64]{3,2,1,0} parameter(0)
  %b.2 = bf16[8,6,256,64]{3,2,1,0} parameter(1)
  ROOT %scores = f32[8,6,128,256]{3,2,1,0} convolution(%b.1, %b.2), window={size=8x6 stride=7x5 lhs_dilate=8x6}, \
dim_labels=01bf_01oi->01bf
}

ENTRY %main (a: f32[8,16], q: bf16[8,6,128,64], k: bf16[8,6,256,64]) -> f32[8,16] {
  %a = f32[8,16]{1,0:T(8,128)} parameter(0)
  %q = bf16[8,6,128,64]{3,2,1,0} parameter(1)
  %k = bf16[8,6,256,64]{3,2,1,0} parameter(2)
  %near = f32[8,16]{1,0:T(8,128)S(1)} negate(%a)
  %scattered = f32[4,16]{1,0:T(8,128)} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
  %gathering = f32[16,16]{1,0} fusion(%a), kind=kCustom, calls=%begin
  %gathered = f32[16,16]{1,0} fusion(%a), kind=kCustom, calls=%end
  %attention = f32[8,6,128,256]{3,2,1,0} fusion(%q, %k), kind=kOutput, calls=%product
  %reduce-start = f32[8,16]{1,0} all-reduce-start(%a), replica_groups=mesh['data'=4,'tensor'=2] {'data'}, to_apply=%add
  ROOT %reduce-done = f32[8,16]{1,0} all-reduce-done(%reduce-start)
}
"""


def test_exchanges_are_read_as_the_compilers_for_gpus_and_tpus_write_them():
    found = [(one.kind, one.devices, one.bytes) for one in hlo.Program(ELSEWHERE).collectives]
    # Of the two parts of a chain, one; the reduction that keeps a part is a reduce-scatter.
    assert found == [("reduce-scatter", 2, ARRAY), ("all-gather", 2, ARRAY), ("all-reduce", 4, ARRAY)]


def test_what_has_a_start_and_an_end_is_counted_once():
    costs = {cost.operation.name: cost.bytes for cost in hlo.Program(ELSEWHERE).costs}
    assert costs["reduce-start"] + costs["reduce-done"] == 2 * ARRAY


def test_an_array_on_the_chip_moves_nothing():
    assert {cost.operation.name: cost.bytes for cost in hlo.Program(ELSEWHERE).costs}[
        "near"
    ] == ARRAY  # read, not written


def test_a_product_that_a_tpu_has_as_a_convolution_has_its_operations():
    (product,) = [cost for cost in hlo.Program(ELSEWHERE).costs if cost.product]
    assert product.flops == 2 * 8 * 6 * 128 * 256 * 64
    assert product.product == ("bf16", "bf16", "f32")
