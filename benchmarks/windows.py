"""Cost of windows on a TPU, from the compiler's programs: nothing is run.

python benchmarks/windows.py [--model swin_tiny_patch4_window7_224] [--topology v5e:1x1] > table.md
                             [--smoke]

Needs the extra `tpu` and no TPU. A row is the attention of a shifted block, with its projections,
as wide and on as large a map as the model has it in a stage, in bfloat16; the forward pass alone,
or also the backward pass. "bytes" are those that its operations read and write, "cycles" the sum of
the compiler's own estimates.
"""

from __future__ import annotations

import argparse
import functools
import re
from typing import Any

from vitswin_jax.plan.topology import open_topology

MIB = 2**20
HEADER = ("stage", "passes", "attention", "temporaries, MiB", "bytes, MiB", "cycles, millions")


def attention_of(model: Any, stage: int) -> Any:
    """Returns the attention of the shifted blocks of a Swin's stage, on maps."""
    import flax.linen as nn

    from vitswin_jax.models.swin_block import SwinBlock, WindowAttention
    from vitswin_jax.nn.block import BlockOptions
    from vitswin_jax.nn.mlp import Mlp
    from vitswin_jax.nn.windows import Cut, fit_window

    class Attention(SwinBlock):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return self.mix_windows(x, train=True)

    window, shift = fit_window(
        model.resolutions[stage], model.window_sizes[stage], window_clip=model.window_clip
    )
    options = BlockOptions.of(model)
    attention = functools.partial(
        WindowAttention, num_heads=model.num_heads[stage], options=options, window_size=window
    )
    return Attention(options, attention, Mlp, Cut(window, shift, model.pad_before_roll))


def programs(model: Any, stage: int, batch_size: int, device: Any) -> dict[str, Any]:
    """Compiles the attention of a stage on shapes alone; returns the programs by their passes."""
    import jax
    from jax.sharding import SingleDeviceSharding

    attention = attention_of(model, stage)
    laid = functools.partial(jax.ShapeDtypeStruct, sharding=SingleDeviceSharding(device))
    x = laid((batch_size, *model.resolutions[stage], model.embed_dim * 2**stage), model.dtype)
    shapes = jax.eval_shape(attention.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: laid(leaf.shape, leaf.dtype), shapes)

    def both(variables: Any, x: Any, cotangent: Any) -> Any:
        out, back = jax.vjp(attention.apply, variables, x)
        return out, back(cotangent)

    return {
        "forward": jax.jit(attention.apply).lower(variables, x).compile(),
        "both": jax.jit(both).lower(variables, x, x).compile(),
    }


def row(stage: int, passes: str, implementation: str, program: Any) -> tuple[str, ...]:
    """Returns a program as the cells below `HEADER`."""
    entry = program.as_text().partition("\nENTRY")[2]
    cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', entry)))
    return (
        f"{stage}",
        passes,
        f"`{implementation}`",
        f"{program.memory_analysis().temp_size_in_bytes / MIB:.0f}",
        f"{program.cost_analysis()['bytes accessed'] / MIB:.0f}",
        f"{cycles / 1e6:.2f}",
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="swin_tiny_patch4_window7_224", help="a Swin's name")
    parser.add_argument("--stage", nargs="+", type=int, help="default: all")
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--smoke", action="store_true", help="a small stage, on this machine")
    args = parser.parse_args()
    import jax

    from vitswin_jax.models.registry import create_model

    if args.smoke:
        args.stage, args.batch_size = [3], 1
    device = jax.devices()[0] if args.smoke else open_topology(args.topology).devices[0]

    print(f"| {' | '.join(HEADER)} |", f"|{' --- |' * len(HEADER)}", sep="\n")
    model = create_model(args.model, dtype="bfloat16")
    for stage in range(len(model.depths)) if args.stage is None else args.stage:
        for implementation in ("xla", "pairs"):
            variant = model.clone(attn_impl=implementation)
            compiled = programs(variant, stage, args.batch_size, device)
            for passes, program in compiled.items():
                print(f"| {' | '.join(row(stage, passes, implementation, program))} |", flush=True)


if __name__ == "__main__":
    main()
