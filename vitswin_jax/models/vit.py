"""Vision Transformer (arXiv:2010.11929) and its descendants: DeiT, DeiT-3, DINOv2, SigLIP, CLIP.

Axes: b batch, h w image, i j patch grid, n tokens, c embed_dim, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vitswin_jax.core.choices import Faults, divisors, near_multiples, wrong_choice
from vitswin_jax.core.types import Params, UserError
from vitswin_jax.models.geometry import BlockGeometry, Geometry, Pooling
from vitswin_jax.models.resnet import Numerics, ResNet, total_stride
from vitswin_jax.models.vit_block import AttentionPool, Block
from vitswin_jax.nn.block import BlockOptions
from vitswin_jax.nn.execution import FOR_SEQUENCES
from vitswin_jax.nn.layers import LayerNorm, PatchEmbed, create_head, pair
from vitswin_jax.nn.posemb import POS_EMBED_PLACES, POS_EMBEDS, create_positions
from vitswin_jax.nn.scan import apply_blocks, drop_path_schedule
from vitswin_jax.nn.windows import Size

GLOBAL_POOLS = ("token", "avg", "token_avg", "map")


class ViT(nn.Module):
    """Vision Transformer: patches, positions, pre-norm blocks, pooling, head (ViT, fig. 1).

    Sizes are in `variants.py`. Fields that descendants differ in: `global_pool` ("token", "avg",
    "token_avg": class token and mean side by side, "map": attention pooling); `fc_norm` pools, then
    norms; `pos_embed` (`posemb.POS_EMBEDS`) and where it stands, `pos_embed_at` ("input", "every"
    block its own, "shared" by all blocks); `no_embed_class` gives prefix tokens no position;
    `dist_token` adds DeiT's token and, with `dist_head`, its head, without which the class token
    alone is read; `reg_tokens` registers; `pre_logits` the width of a dense + tanh before the head;
    `pre_norm` a norm before the blocks; `init_values` LayerScale. The prefix is class,
    distillation, registers, in this order.

    An image's sides must be multiples of `patch_size`, unless `crop_to_patches` is set: then the
    model leaves out the pixels at the right and at the bottom that fill no patch, as the strided
    convolution of every original does (SigLIP's SO400M/14 at 384).

    A hybrid has `resnet_layers`, the depths of the ResNet's stages, and `patch_size` is then of
    patches of its map; `group_norm_eps`, `weight_var_eps` and `weight_std_eps` (the last two of
    `resnet.StdConv`) are timm's, and Google's are 1e-6, 0 and 1e-5.
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    act: str = "gelu"
    norm_eps: float = 1e-6
    class_token: bool = True
    dist_token: bool = False
    dist_head: bool = True
    reg_tokens: int = 0
    no_embed_class: bool = False
    pos_embed: str = "learned"
    pos_embed_at: str = "input"
    resnet_layers: tuple[int, ...] | None = None
    group_norm_eps: float = 1e-5
    weight_var_eps: float = 1e-8
    weight_std_eps: float = 0.0
    crop_to_patches: bool = False
    patch_bias: bool = True
    patch_norm: bool = False
    pre_norm: bool = False
    init_values: float | None = None
    global_pool: str = "token"
    fc_norm: bool = False
    pre_logits: int | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    attn_impl: str = "auto"
    remat: bool | str = "none"
    scan: bool = False
    dtype: DTypeLike = jnp.float32

    def check(self) -> None:
        """Raises UserError that lists every field that does not fit the others."""
        faults = Faults()
        (h, w), (p, q) = self._map_size, pair(self.patch_size)
        remainder = (h % p or w % q) and not self.crop_to_patches
        if remainder or h < p or w < q:
            what = "img_size" if self.resnet_layers is None else "the ResNet's map"
            near = near_multiples((h, w), (p, q))
            faults.append(f"{what}={h}x{w} is no multiple of patch_size={p}x{q}, as {near} are")
        if self.embed_dim % self.num_heads:
            faults.append(
                f"embed_dim={self.embed_dim} is no multiple of num_heads={self.num_heads}, which "
                f"can be {divisors(self.embed_dim)}"
            )
        choices = {
            "attn_impl": FOR_SEQUENCES,
            "pos_embed": POS_EMBEDS,
            "pos_embed_at": POS_EMBED_PLACES,
            "global_pool": GLOBAL_POOLS,
        }
        for field, known in choices.items():
            faults += wrong_choice(field, getattr(self, field), known)
        if self.pos_embed == "relative" and self.pos_embed_at == "input":
            faults.append("pos_embed='relative' needs pos_embed_at='every' or 'shared'")
        if "token" in self.global_pool and not self.class_token:
            faults.append(f"global_pool={self.global_pool!r} needs class_token=True")
        if self.dist_token and self.global_pool != "token":
            faults.append("dist_token=True needs global_pool='token'")
        faults.check()

    @property
    def grid(self) -> tuple[int, int]:
        """The patch grid, (height, width) in tokens."""
        (h, w), (p, q) = self._map_size, pair(self.patch_size)
        return h // p, w // q

    @property
    def _map_size(self) -> tuple[int, int]:
        """(height, width) of what is cut into patches: the image or the ResNet's map."""
        stride = 1 if self.resnet_layers is None else total_stride(self.resnet_layers)
        h, w = pair(self.img_size)
        return -(-h // stride), -(-w // stride)

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens stand before the patches."""
        return self.class_token + self.dist_token + self.reg_tokens

    @property
    def _heads(self) -> int:
        """How many tokens have a head of their own: with `dist_token` and `dist_head` two."""
        return 2 if self.dist_token and self.dist_head else 1

    @property
    def _options(self) -> BlockOptions:
        return BlockOptions.of(self)

    def setup(self) -> None:
        """Creates the submodules and parameters; runs `check` first."""
        self.check()
        c, eps, dtype = self.embed_dim, self.norm_eps, self.dtype
        if self.resnet_layers is not None:
            numerics = Numerics(
                self.group_norm_eps, self.weight_var_eps, self.weight_std_eps, dtype
            )
            self.backbone = ResNet(self.resnet_layers, numerics)
        self.patch_embed = PatchEmbed(
            pair(self.patch_size), c, eps if self.patch_norm else None, self.patch_bias, dtype
        )
        zeros, normal = nn.initializers.zeros_init(), nn.initializers.normal(0.02)
        if self.class_token:
            self.cls_token = self.param("cls_token", zeros, (1, 1, c), jnp.float32)
        if self.dist_token:
            self.dist = self.param("dist_token", zeros, (1, 1, c), jnp.float32)
        if self.reg_tokens:
            self.reg = self.param("reg_token", normal, (1, self.reg_tokens, c), jnp.float32)
        positions = self._create_positions
        every = self.pos_embed_at == "every" and self.pos_embed != "none"
        self.positions = None if every or self.pos_embed == "none" else positions(self.param)
        self.embed_drop = nn.Dropout(self.drop_rate)
        if self.pre_norm:
            self.norm_pre = LayerNorm(eps, dtype)
        blocks = [
            Block(
                self._options,
                self.num_heads,
                round(c * self.mlp_ratio),
                self.init_values,
                relative=self.pos_embed == "relative",
                create_positions=positions if every else None,
            )
            for _ in range(1 if self.scan else self.depth)
        ]
        if self.scan:
            (self.blocks,) = blocks
        else:
            self.block = blocks
        self._setup_head()

    def _setup_head(self) -> None:
        eps, dtype = self.norm_eps, self.dtype
        if self.fc_norm:
            self.fc_norm_layer = LayerNorm(eps, dtype, name="fc_norm")
        else:
            self.norm = LayerNorm(eps, dtype)
        if self.global_pool == "map":
            width = round(self.embed_dim * self.mlp_ratio)
            self.attn_pool = AttentionPool(self.num_heads, width, self._options)
        if self.pre_logits is not None:
            self.pre_logits_layer = nn.Dense(self.pre_logits, dtype=dtype, name="pre_logits")
        if self.num_classes:
            self.head = create_head(self.num_classes)
            if self._heads == 2:
                self.head_dist = create_head(self.num_classes)

    def __call__(
        self, images: Float[Array, "b h w channels"], *, train: bool = False
    ) -> Float[Array, "b k"]:
        """Classifies normalised images: float32 logits, or `features` where num_classes is 0.

        Raises UserError for images of another size than `img_size`.
        """
        return self.heads(images, train=train).mean(1)

    def heads(
        self, images: Float[Array, "b h w channels"], *, train: bool = False
    ) -> Float[Array, "b heads k"]:
        """Returns the logits of each head: the class token's and, where there is one, the other's.

        They are what distillation trains one by one (DeiT, section 4); `__call__` is their mean.
        """
        pooled = self._pool(self._tokens(images, train=train)[0], train=train)
        if not self.num_classes:
            return pooled
        if self._heads == 2:
            return jnp.stack([self.head(pooled[:, 0]), self.head_dist(pooled[:, 1])], axis=1)
        return self.head(pooled)

    def features(
        self, images: Float[Array, "b h w channels"], *, train: bool = False
    ) -> Float[Array, "b d"]:
        """Returns what the head reads, float32; where two heads read, the mean of their tokens."""
        return self._pool(self._tokens(images, train=train)[0], train=train).mean(1)

    def feature_maps(
        self,
        images: Float[Array, "b h w channels"],
        *,
        train: bool = False,
        blocks: tuple[int, ...] | None = None,
    ) -> tuple[Float[Array, "b i j c"], ...]:
        """Returns un-normed outputs of `blocks` (default: all) on the patch grid, no prefix."""
        outputs = self._tokens(images, train=train, keep_all=True)[1]
        chosen = range(self.depth) if blocks is None else blocks
        patches = (outputs[block][:, self.num_prefix_tokens :] for block in chosen)
        return tuple(x.reshape(x.shape[0], *self.grid, -1) for x in patches)

    def _tokens(self, images: Array, *, train: bool, keep_all: bool = False) -> tuple[Array, Any]:
        """Returns the last block's un-normed tokens (b, n, c), and every block's (`keep_all`)."""
        x = self.embed_patches(images)
        x = self._embed(x.reshape(x.shape[0], -1, self.embed_dim), self.positions)
        return self._blocks(x, train=train, keep_all=keep_all)

    def embed_patches(self, images: Float[Array, "b h w channels"]) -> Float[Array, "b i j c"]:
        """Returns the grid of embedded patches, without prefix and positions."""
        if images.shape[1:3] != pair(self.img_size):
            (h, w), (height, width) = images.shape[1:3], pair(self.img_size)
            raise UserError(
                f"the images are {h}x{w}, the model takes {height}x{width}; resize them, or create "
                f"or load the model with img_size=({h}, {w})."
            )
        return self.patch_embed(images if self.resnet_layers is None else self.backbone(images))

    def encode_map(self, x: Float[Array, "b i j c"], *, train: bool) -> Float[Array, "b i j c"]:
        """Returns the normed last map of embedded patches, no prefix."""
        b, i, j, c = x.shape
        x = self._embed(x.reshape(b, -1, c), self.positions)
        x = self.norm(self._blocks(x, train=train)[0])
        return x[:, self.num_prefix_tokens :].reshape(b, i, j, c)

    def encode_visible(
        self, x: Float[Array, "b i j c"], visible: Int[Array, "b v"], *, train: bool
    ) -> Float[Array, "b m c"]:
        """Returns the normed tokens of the prefix and of some patches of each image alone.

        `visible` are their places in the grid, row-major. Positions are not trained.
        """
        positions = jax.lax.stop_gradient(self.positions)
        x = self._embed(x.reshape(x.shape[0], -1, self.embed_dim), positions)
        prefix, patches = jnp.split(x, [self.num_prefix_tokens], axis=1)
        patches = jnp.take_along_axis(patches, visible[..., None], axis=1)
        x = jnp.concatenate([prefix, patches], axis=1)
        return self.norm(self._blocks(x, train=train)[0])

    def _blocks(
        self, x: Float[Array, "b n c"], *, train: bool, keep_all: bool = False
    ) -> tuple[Array, Sequence[Array] | Array | None]:
        x = self.embed_drop(x, deterministic=not train)
        if self.pre_norm:
            x = self.norm_pre(x)
        relative = self.pos_embed == "relative"
        sequences = self._options.sequences(self, x, self.num_heads, biased=relative, train=train)
        shared: dict[str, Any] = {"sequences": sequences}
        if self.pos_embed_at == "shared":
            shared["positions"] = self.positions
        x, outputs = apply_blocks(
            self.blocks if self.scan else self.block,
            sequences.pad(x),
            drop_path_schedule(self.drop_path_rate, self.depth),
            train=train,
            remat=self.remat,
            keep_all=keep_all,
            shared=shared,
        )
        return sequences.cut(x), jax.tree.map(sequences.cut, outputs)

    def _embed(
        self, x: Float[Array, "b n c"], positions: Float[Array, "_ m _"] | None
    ) -> Float[Array, "b m c"]:
        """Puts the prefix in front and, where they stand at the input, adds positions."""
        prefix = [self.cls_token] if self.class_token else []
        prefix += [self.dist] if self.dist_token else []
        prefix += [self.reg] if self.reg_tokens else []
        prefix = [jnp.broadcast_to(p, (x.shape[0], *p.shape[1:])).astype(x.dtype) for p in prefix]
        x = jnp.concatenate([*prefix, x], axis=1)
        if self.pos_embed_at == "input" and positions is not None:
            x = x + positions.astype(x.dtype)
        return x

    def _pool(self, x: Float[Array, "b n c"], *, train: bool) -> Float[Array, "b heads d"]:
        """Returns float32 features, one row for each head that reads them."""
        if not self.fc_norm:
            x = self.norm(x)
        if self.global_pool == "map":
            x = self.attn_pool(x[:, self.num_prefix_tokens :], train=train)[:, None]
        elif self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(1, keepdims=True)
        elif self.global_pool == "token_avg":
            mean = x[:, self.num_prefix_tokens :].mean(1, keepdims=True)
            x = jnp.concatenate([x[:, :1], mean], axis=-1)
        else:
            x = x[:, : self._heads]
        if self.fc_norm:
            x = self.fc_norm_layer(x)
        if self.pre_logits is not None:
            x = jnp.tanh(self.pre_logits_layer(x))
        return x.astype(jnp.float32)

    @nn.nowrap
    def _create_positions(self, param: Callable[..., Array]) -> Float[Array, "_ n _"]:
        return create_positions(
            param,
            kind=self.pos_embed,
            grid=self.grid,
            prefix=self.num_prefix_tokens,
            embed_prefix=not self.no_embed_class,
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
        )

    @nn.nowrap
    def geometry(self, size: Size | None = None) -> Geometry:
        """Returns the geometry; see `HasGeometry`. A ViT takes images of `img_size` only."""
        del size
        hybrid, prefix = self.resnet_layers is not None, self.num_prefix_tokens
        pixels = 1 if self.resnet_layers is None else total_stride(self.resnet_layers)
        p, q = pair(self.patch_size)
        where: dict[str, Any] = {"stage": 0, "size": self.grid, "stride": (p * pixels, q * pixels)}
        pooling = {
            "token": Pooling(self._heads, 0.0),
            "avg": Pooling(),
            "token_avg": Pooling(1, 0.5),
            "map": Pooling(attention="attn_pool"),
        }
        added = self.pos_embed not in ("none", "relative") and self.pos_embed_at != "every"

        def positions(params: Params) -> Float[Array, "h w c"]:
            table = self._create_positions(lambda name, *_: params[name])
            return table[0, prefix:].reshape(*self.grid, -1)

        return Geometry(
            tuple(BlockGeometry(f"block_{i}", prefix=prefix, **where) for i in range(self.depth)),
            # A head that reads the class token sees no other token after the last block.
            evidence=f"block_{self.depth - 1}",
            filters=None if hybrid else "patch_embed/proj/kernel",
            attention="attn",
            biases=self.pos_embed == "relative",
            positions=positions if added else None,
            pooling=pooling[self.global_pool],
            normed=not self.fc_norm,
        )
