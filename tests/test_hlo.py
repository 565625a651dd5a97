"""bench/hlo.py counts a program by its rules."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

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
        ("half", 1, ARRAY * 3 // 2),
        ("gemm", 1, 2 * (8 * 16 + 16 * 32 + 8 * 32)),  # no scratch space
        ("negate.1", 5, 2 * ARRAY),  # a loop of five
    ],
)
def test_bytes_are_counted_by_the_rule(name, times, count):
    costs = {cost.operation.name: cost for cost in hlo.Program(PROGRAM).costs}
    assert set(costs) == {"add_fusion", "update_fusion", "half", "gemm", "negate.1"}  # the others move nothing
    assert (costs[name].times, costs[name].bytes) == (times, count)


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
