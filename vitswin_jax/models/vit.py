"""Vision Transformer (arXiv:2010.11929) and its descendants, from DeiT to DINOv3 and EVA-02.

Axes: b batch, h w image, i j patch grid, n tokens, c embed_dim, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import UserError
from vitswin_jax.models.geometry import Outputs
from vitswin_jax.models.resnet import Numerics, ResNet
from vitswin_jax.models.vit_base import ViTFields
from vitswin_jax.models.vit_block import Block
from vitswin_jax.models.vit_pool import AttentionPool, QueryPool, pool_tokens
from vitswin_jax.nn.layers import PatchEmbed, check_channels, create_head, pair
from vitswin_jax.nn.rotary import Rotary
from vitswin_jax.nn.scan import apply_blocks, drop_path_schedule
from vitswin_jax.nn.sides import Size


class ViT(ViTFields):
    """Vision Transformer: patches, positions, blocks, pooling, head (ViT, fig. 1).

    Its fields, part by part: `ViTFields`.
    """

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
            pair(self.patch_size),
            c,
            eps if self.patch_norm else None,
            self.norm_layer,
            self.patch_bias,
            dtype,
            self.stem,
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
            self.norm_pre = self._options.norm()
        blocks = [
            Block(
                self._options,
                self.num_heads,
                self._mlp_dim,
                relative=self._biased,
                create_positions=positions if every else None,
                create_rotation=self._create_rotation if self.rope_type == "mixed" else None,
            )
            for _ in range(1 if self.scan else self.depth)
        ]
        if self.scan:
            (self.blocks,) = blocks
        else:
            self.block = blocks
        self._setup_head()

    def _setup_head(self) -> None:
        options = self._options
        if self.fc_norm:
            self.fc_norm_layer = options.norm("fc_norm")
        elif self.final_norm:
            self.norm = options.norm()
        if self.global_pool == "map":
            heads = self.pool_heads or self.num_heads
            self.attn_pool: nn.Module = AttentionPool(heads, self._pool_mlp_dim, options)
        elif self.global_pool == "query":
            self.attn_pool = QueryPool(self.pool_heads or self.num_heads, options)
        if self.pre_logits is not None:
            self.pre_logits_layer = nn.Dense(self.pre_logits, dtype=self.dtype, name="pre_logits")
        if self.num_classes:
            self.head = create_head(self.num_classes)
            if self._heads == 2:
                self.head_dist = create_head(self.num_classes)

    def __call__(
        self, images: Float[Array, "b h w channels"], *, train: bool = False
    ) -> Float[Array, "b k"]:
        """Classifies normalised images: float32 logits, or `features` where num_classes is 0.

        Raises UserError for images of another size than `img_size`, unless no table of positions
        depends on the size (`takes_any_size`).
        """
        return self.heads(images, train=train).mean(1)

    def heads(
        self, images: Float[Array, "b h w channels"], *, train: bool = False
    ) -> Float[Array, "b heads k"]:
        """Returns the logits of each head: the class token's and, where there is one, the other's.

        They are what distillation trains one by one (DeiT, section 4); `__call__` is their mean.
        """
        return self._classify(self._pool(self._tokens(images, train=train)[0], train=train))

    def _classify(self, pooled: Float[Array, "b heads d"]) -> Float[Array, "b heads k"]:
        if not self.num_classes:
            return pooled
        if self._heads == 2:
            return jnp.stack([self.head(pooled[:, 0]), self.head_dist(pooled[:, 1])], axis=1)
        return self.head(pooled)

    def outputs(self, images: Float[Array, "b h w channels"], *, train: bool = False) -> Outputs:
        """Returns the logits, the `features` and the last map of images, of one pass."""
        x = self._tokens(images, train=train)[0]
        pooled = self._pool(x, train=train)
        patches = self._final_norm(x)[:, self.num_prefix_tokens :]
        _, h, w, _ = images.shape
        grid = patches.reshape(len(patches), *self.grid_of((h, w)), -1)
        return Outputs(self._classify(pooled).mean(1), pooled.mean(1), grid)

    def features(
        self, images: Float[Array, "b h w channels"], *, train: bool = False
    ) -> Float[Array, "b d"]:
        """Returns the pooled embedding, float32; with two heads, the mean of their tokens."""
        return self._pool(self._tokens(images, train=train)[0], train=train).mean(1)

    def feature_maps(
        self,
        images: Float[Array, "b h w channels"],
        *,
        train: bool = False,
        blocks: tuple[int, ...] | None = None,
        norm: bool = False,
    ) -> tuple[Float[Array, "b i j c"], ...]:
        """Returns the outputs of `blocks` (default: all) on the patch grid, without the prefix.

        With `norm` the final norm acts on each of them, as DINOv2 and DINOv3 give features to
        detectors; a norm that follows pooling (`fc_norm`) acts on none.
        """
        outputs = self._tokens(images, train=train, keep_all=True)[1]
        chosen = range(self.depth) if blocks is None else blocks
        tokens = (self._final_norm(outputs[i]) if norm else outputs[i] for i in chosen)
        patches = (x[:, self.num_prefix_tokens :] for x in tokens)
        _, h, w, _ = images.shape
        grid = self.grid_of((h, w))
        return tuple(x.reshape(x.shape[0], *grid, -1) for x in patches)

    def _tokens(self, images: Array, *, train: bool, keep_all: bool = False) -> tuple[Array, Any]:
        """Returns the last block's un-normed tokens (b, n, c), and every block's (`keep_all`)."""
        x = self.embed_patches(images)
        b, i, j, c = x.shape
        x = self._embed(x.reshape(b, -1, c), self.positions)
        return self._blocks(x, (i, j), train=train, keep_all=keep_all)

    def embed_patches(self, images: Float[Array, "b h w channels"]) -> Float[Array, "b i j c"]:
        """Returns the grid of embedded patches, without prefix and positions."""
        check_channels(images, self.in_chans)
        _, h, w, _ = images.shape
        size, own = (h, w), pair(self.img_size)
        if size != own and not self.takes_any_size:
            raise UserError(
                f"the images are {_x(size)}, but the model takes {_x(own)}; resize them, or "
                f"create or load the model with img_size={size}."
            )
        if size != own:
            Faults(self.misfit(size)).check()
        return self.patch_embed(images if self.resnet_layers is None else self.backbone(images))

    def encode_map(self, x: Float[Array, "b i j c"], *, train: bool) -> Float[Array, "b i j c"]:
        """Returns the normed last map of embedded patches, no prefix."""
        b, i, j, c = x.shape
        x = self._embed(x.reshape(b, -1, c), self.positions)
        x = self.norm(self._blocks(x, (i, j), train=train)[0])
        return x[:, self.num_prefix_tokens :].reshape(b, i, j, c)

    def encode(
        self, x: Float[Array, "b i j c"], *, train: bool
    ) -> tuple[Float[Array, "b d"], Float[Array, "b i j c"]]:
        """Returns the `features` of embedded patches, and their normed last map."""
        b, i, j, c = x.shape
        x = self._embed(x.reshape(b, -1, c), self.positions)
        x = self._blocks(x, (i, j), train=train)[0]
        patches = self.norm(x)[:, self.num_prefix_tokens :]
        return self._pool(x, train=train).mean(1), patches.reshape(b, i, j, c)

    def encode_visible(
        self, x: Float[Array, "b i j c"], visible: Int[Array, "b v"], *, train: bool
    ) -> Float[Array, "b m c"]:
        """Returns the normed tokens of the prefix and of some patches of each image alone.

        `visible` are their places in the grid, row-major. Positions are not trained.
        """
        b, i, j, c = x.shape
        x = self._embed(x.reshape(b, -1, c), jax.lax.stop_gradient(self.positions))
        prefix, patches = jnp.split(x, [self.num_prefix_tokens], axis=1)
        patches = jnp.take_along_axis(patches, visible[..., None], axis=1)
        x = jnp.concatenate([prefix, patches], axis=1)
        return self.norm(self._blocks(x, (i, j), visible=visible, train=train)[0])

    def _rotation(self, grid: Size, visible: Array | None) -> dict[str, Any]:
        """Returns the rotation of queries and keys for the blocks, if the model has one."""
        prefix = self.num_prefix_tokens
        if self.rope_type == "mixed":
            return {"grid": grid}
        rotation = Rotary.of(self).rotation(grid, prefix, self.embed_dim // self.num_heads)
        if rotation is None:
            return {}
        if visible is None:
            return {"rotation": rotation}

        def seen(x: Float[Array, "n d"]) -> Float[Array, "b 1 m d"]:
            own = jnp.broadcast_to(x[:prefix], (len(visible), prefix, x.shape[-1]))
            return jnp.concatenate([own, x[prefix:][visible]], axis=1)[:, None]

        return {"rotation": rotation.map(seen)}

    def _final_norm(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Returns the norm of the last block's tokens; the tokens where it follows pooling."""
        return self.norm(x) if self.final_norm and not self.fc_norm else x

    def _blocks(
        self,
        x: Float[Array, "b n c"],
        grid: Size,
        *,
        visible: Int[Array, "b v"] | None = None,
        train: bool,
        keep_all: bool = False,
    ) -> tuple[Array, Sequence[Array] | Array | None]:
        x = self.embed_drop(x, deterministic=not train)
        if self.pre_norm:
            x = self.norm_pre(x)
        options, heads = self._options, self.num_heads
        sequences = options.sequences(self, x, heads, biased=self._biased, train=train)
        shared: dict[str, Any] = {"sequences": sequences, **self._rotation(grid, visible)}
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
        x, prefix = self._final_norm(x), self.num_prefix_tokens
        if self.global_pool in ("map", "query"):
            read = x if self.pool_include_prefix else x[:, prefix:]
            x = self.attn_pool(read, train=train)[:, None]
        else:
            x = pool_tokens(
                x,
                self.global_pool,
                prefix=prefix,
                include_prefix=self.pool_include_prefix,
                heads=self._heads,
            )
        if self.fc_norm:
            x = self.fc_norm_layer(x)
        if self.pre_logits is not None:
            x = jnp.tanh(self.pre_logits_layer(x))
        return x.astype(jnp.float32)


def _x(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
