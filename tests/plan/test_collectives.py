"""The traffic of programs whose collectives were written by hand, and of text as TPUs have it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vitswin_jax.plan.collectives import Traffic, collectives

ROWS, COLUMNS = 16, 4  # of a device's float32 array
SIZE = ROWS * COLUMNS * 4

BY_HAND = {  # what one device does with its array -> what that is called, and its bytes
    "all-reduce": (lambda x: jax.lax.psum(x, "i"), SIZE),
    "all-gather": (lambda x: jax.lax.all_gather(x, "i").sum(0), 8 * SIZE),
    "reduce-scatter": (lambda x: jnp.tile(jax.lax.psum_scatter(x, "i", tiled=True), (8, 1)), SIZE),
    "all-to-all": (lambda x: jax.lax.all_to_all(x, "i", 0, 0, tiled=True), SIZE),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "i", [(k, (k + 1) % 8) for k in range(8)]),
        SIZE,
    ),
}


def compiled(body):
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(body, mesh=mesh, in_specs=P("i"), out_specs=P("i"), check_vma=False)
    return jax.jit(mapped).lower(jnp.zeros((8 * ROWS, COLUMNS))).compile().as_text()


@pytest.mark.xla_behaviour
@pytest.mark.parametrize("kind", BY_HAND)
def test_each_kind_and_its_bytes(kind):
    body, nbytes = BY_HAND[kind]
    assert collectives(compiled(body)) == {kind: Traffic(1, nbytes)}


@pytest.mark.xla_behaviour
def test_a_loop_counts_once_per_turn():
    body, nbytes = BY_HAND["collective-permute"]

    def three(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(body(x)), None), x, None, length=3)[0]

    def six(x):
        return jax.lax.scan(lambda x, _: (three(x), None), body(x), None, length=2)[0]

    assert collectives(compiled(three)) == {"collective-permute": Traffic(3, 3 * nbytes)}
    assert collectives(compiled(six)) == {"collective-permute": Traffic(7, 7 * nbytes)}


def test_a_program_of_one_device_sends_nothing():
    assert collectives(compiled(jnp.sin)) == {}


# As libtpu prints programs: layouts with tiles and memory spaces, tuples, starts whose results
# have what was given in them, and loops that only their conditions bound.
TPU = """
HloModule jit_step, is_scheduled=true

%body (p: (u32[], bf16[8,128])) -> (u32[], bf16[8,128]) {
  %p = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %start = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %done = bf16[8,128]{1,0:T(8,128)(2,1)} collective-permute-done(%start)
  ROOT %t = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%i, %done)
}

%condition (p.1: (u32[], bf16[8,128])) -> pred[] {
  %n = u32[]{:T(128)} constant(LIMIT), metadata={op_name="a(b)"}
  %p.1 = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %n), direction=DIRECTION, metadata={op_name="a/b"}
}

ENTRY %main (a: bf16[8,128], b: f32[3]) -> bf16[8,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[3]{0:T(128)} parameter(1)
  %zero = u32[]{:T(128)} constant(0)
  %init = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%zero, %a)
  %loop = (u32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) while(%init), condition=%condition, body=%body
  %gather = (bf16[8,128]{1,0}, bf16[32,128]{1,0:T(8,128)(2,1)}) all-gather-start(%a), channel_id=1, dimensions={0}
  %gathered = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather-done(%gather)
  %sums = (f32[3]{0:T(128)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)}) all-reduce(%b, %a), channel_id=3, to_apply=%add
  ROOT %out = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""  # noqa: E501
HALF = 8 * 128 * 2


def test_text_as_tpus_have_it():
    text = TPU.replace("LIMIT", "5").replace("DIRECTION", "LT")
    assert collectives(text) == {
        "all-reduce": Traffic(1, 3 * 4 + HALF),
        "all-gather": Traffic(1, 4 * HALF),
        "collective-permute": Traffic(5, 5 * HALF),
    }


def test_a_loop_of_unknown_turns_is_not_guessed():
    text = TPU.replace("LIMIT", "5").replace("DIRECTION", "NE")
    with pytest.raises(ValueError, match="does not show the turns of loop"):
        collectives(text)
