"""Cost of MAE's encoder by the share of hidden patches: operations counted, and CPU seconds.

python benchmarks/mae.py [--model vit_small_patch16_224] [--depth 2] [--batch 2] [--rounds 5]
                         [--smoke]

Forward and backward pass of the encoder, cut to a few equal blocks, embedding of all patches
included, as compiled for this machine. Seconds are of the process, all cores together, the least of
the rounds, which take the shares in turn. The table is in docs/pretrain.md.
"""

import argparse
import time

import jax
import jax.numpy as jnp

from vitswin_jax import create_model

RATIOS = (0.0, 0.5, 0.75, 0.9)


def compile_encoder(model, batch: int, visible: int):
    """Returns the compiled gradient on `visible` patches, and its arguments."""
    images = jnp.ones((batch, model.img_size, model.img_size, 3))
    places = jnp.broadcast_to(jnp.arange(visible), (batch, visible))

    def encode(module, images, places):
        return module.encode_visible(module.embed_patches(images), places, train=False)

    def loss(variables, images, places):
        return (model.apply(variables, images, places, method=encode) ** 2).mean()

    variables = jax.jit(lambda key: model.init(key, images, places, method=encode))(
        jax.random.key(0)
    )
    arguments = variables, images, places
    return jax.jit(jax.grad(loss)).lower(*arguments).compile(), arguments


def main() -> None:
    """Prints a row for each share that is hidden."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="once, with one small block")
    args = parser.parse_args()
    if args.smoke:
        args.model, args.depth, args.batch, args.rounds = "vit_tiny_patch16_224", 1, 1, 1
    ratios = (RATIOS[0], RATIOS[-1]) if args.smoke else RATIOS
    model = create_model(args.model, num_classes=0, depth=args.depth)
    patches = model.grid[0] * model.grid[1]
    tokens = [int(patches * (1 - ratio)) for ratio in ratios]
    programs = [compile_encoder(model, args.batch, visible) for visible in tokens]
    seconds = [float("inf")] * len(ratios)
    for _ in range(args.rounds):
        for i, (program, arguments) in enumerate(programs):
            begun = time.process_time()
            jax.block_until_ready(program(*arguments))
            seconds[i] = min(seconds[i], time.process_time() - begun)
    flops = [program.cost_analysis()["flops"] for program, _ in programs]
    print("| hidden | visible tokens | of all | operations | CPU time |\n" + "| --- " * 5 + "|")
    for ratio, visible, work, spent in zip(ratios, tokens, flops, seconds, strict=True):
        share = (visible + 1) / (patches + 1)
        print(
            f"| {ratio} | {visible} + 1 | {share:.3f} | {work / flops[0]:.3f} | "
            f"{spent / seconds[0]:.3f} |"
        )
    size = f"{args.model}, {args.depth} blocks, batch {args.batch}"
    print(f"{size}: {flops[0] / 1e9:.1f} G, {seconds[0]:.2f} s for all")


if __name__ == "__main__":
    main()
