"""The traffic of programs whose collectives were written by hand, and of text as TPUs have it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from vitswin_jax.plan.collectives import Traffic, between_slices, collectives

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


def test_a_turn_that_is_taken_out_of_a_loop_is_not_counted_twice():
    text = TPU.replace("LIMIT", "5").replace("DIRECTION", "LT")
    text = text.replace("%zero = u32[]{:T(128)} constant(0)", "%one = u32[]{:T(128)} constant(1)")
    text = text.replace("tuple(%zero,", "tuple(%begin,")
    text = text.replace("  %init", "  %begin = u32[]{:T(128)} copy(%one)\n  %init")
    assert collectives(text)["collective-permute"] == Traffic(4, 4 * HALF)


# A gather that overlaps two products, and a sum that leaves each device its part: fusions of TPUs.
FUSED = """
%start (p.0: bf16[4,8]) -> bf16[8,8] {
  %p.0 = bf16[4,8]{1,0} parameter(0)
  ROOT %g.0 = bf16[8,8]{1,0} all-gather(%p.0), channel_id=3, replica_groups={{0,1}}, dimensions={0}
}

%done (p.1: bf16[4,8]) -> bf16[8,8] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  ROOT %g.1 = bf16[8,8]{1,0} all-gather(%p.1), channel_id=3, replica_groups={{0,1}}, dimensions={0}
}

%all-reduce-scatter.7 (p.2: f32[8,8]) -> f32[4,8] {
  %p.2 = f32[8,8]{1,0} parameter(0)
  %s = f32[8,8]{1,0} all-reduce(%p.2), channel_id=4, replica_groups={{0,1}}, to_apply=%add
  ROOT %part = f32[4,8]{1,0} dynamic-slice(%s), dynamic_slice_sizes={4,8}
}

ENTRY %main (a: bf16[4,8], b: f32[8,8]) -> f32[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %f.0 = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%start
  %f.1 = bf16[8,8]{1,0} fusion(%a), kind=kCustom, calls=%done
  ROOT %f.2 = f32[4,8]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.7
}
"""


def test_a_collective_that_overlaps_products_is_one():
    assert collectives(FUSED) == {
        "all-gather": Traffic(1, 8 * 8 * 2),
        "reduce-scatter": Traffic(1, 8 * 8 * 4),
    }


TWO = (0, 0, 0, 0, 1, 1, 1, 1)  # slices of four devices
GROUPS = {  # as programs show them -> whether they join devices of both slices
    "replica_groups={{0,1,2,3},{4,5,6,7}}": False,
    "replica_groups={{0,1,2,3,4,5,6,7}}": True,
    "replica_groups={}": True,
    "replica_groups={{0,4},{1,5},{2,6},{3,7}}": True,
    "source_target_pairs={{0,1},{1,0},{6,7}}": False,
    "source_target_pairs={{0,7},{7,0}}": True,
    "replica_groups=[2,4]<=[8]": False,
    "replica_groups=[4,2]<=[8]": False,
    "replica_groups=[4,2]<=[2,4]T(1,0)": True,
    "replica_groups=[4,2]<=[2,2,2]T(0,2,1)": False,
    "replica_groups=mesh['a'=2,'b'=4] {'b'}": False,
    "replica_groups=mesh['a'=2,'b'=4] {'a'}": True,
    "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}": True,
    "replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}": False,
    "replica_groups=mesh['a'=8] {'a':(1)2}": True,
    "replica_groups=mesh['a'=8] {'a':(2)4}": False,
}


@pytest.mark.parametrize("groups", GROUPS)
def test_what_leaves_a_slice_is_told_apart(groups):
    """`GROUPS` was written by hand; the numbers of devices are in the program's order."""
    text = FUSED.replace("channel_id=4, replica_groups={{0,1}}", f"channel_id=4, {groups}")
    rest = {"all-gather": Traffic(1, 8 * 8 * 2)}
    summed = {"reduce-scatter": Traffic(1, 8 * 8 * 4)}
    assert collectives(text) == rest | summed
    assert between_slices(text, TWO) == (summed if GROUPS[groups] else {})
    assert collectives(text, slices=TWO) == (rest if GROUPS[groups] else rest | summed)


def test_groups_that_the_text_does_not_show_are_not_guessed():
    text = FUSED.replace("replica_groups={{0,1}}, to_apply", "to_apply")
    with pytest.raises(ValueError, match="does not show the groups of s"):
        between_slices(text, TWO)


def test_a_tpu_sends_to_other_slices_by_its_host():
    """As libtpu prints it: two slices have one program, whose groups count inside a slice."""
    sent = (
        "  %after = token[] after-all()\n"
        "  %send.1 = (f32[8,8]{1,0}, u32[], token[]) send(%b, %after), channel_id=9, "
        'is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",'
        '_xla_megascale_transfer_type="KIND"}\n'
        "  %sent.1 = token[] send-done(%send.1), channel_id=9, is_host_transfer=true\n"
        "  %f.0"
    )
    text = FUSED.replace("  %f.0", sent)
    for name, kind in (("ALL_REDUCE", "all-reduce"), ("ONE_TO_ONE", "collective-permute")):
        found = between_slices(text.replace("KIND", name), TWO)
        assert found == {kind: Traffic(1, 8 * 8 * 4)}


def test_a_loop_of_unknown_turns_is_not_guessed():
    text = TPU.replace("LIMIT", "5").replace("DIRECTION", "NE")
    with pytest.raises(ValueError, match="does not show the turns of loop"):
        collectives(text)
