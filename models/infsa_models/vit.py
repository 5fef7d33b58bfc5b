"""The ViT that hosts the mechanisms: timm's VisionTransformer with the mixing layer of every block exchanged.

The blocks are those of :mod:`infsa_models.host`. On top a pooler (D x D, tanh) on the class token and a 1000-way head.
With that, the published parameter counts come out to the digit (paper, Table 1).

The position embedding is learned for the 14 x 14 grid of 224 x 224 and resampled once, at build: nothing is
interpolated inside a forward pass. Importing this module registers ``infvit_<mechanism>_<config>`` with timm.

Around ``fast`` mixers the model is the same function with less to keep: for inference the mixer's output projection and
the dense after it are one matrix (:meth:`InfVit.fold_for_inference`), a mixer whose result is the same for every token
gives the host one row, and from ``LEAN_TOKENS`` tokens on the host works in place, piece by piece.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.weight_init import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from infsa_models.host import HostBlock, host_attention
from infsa_models.kernels.host import is_plain, takes
from infsa_models.kernels.patches import embed_patches
from infsa_models.kernels.support import AUTO, MIN_HEAD_DIM, TORCH, TRITON, chosen
from infsa_models.options import OptionValue
from infsa_models.patches import image_to_tokens
from infsa_models.pieces import row_pieces
from infsa_models.registry import (
    BASE_GRID,
    CONFIGS,
    LEAN_TOKENS,
    MECHANISMS,
    MLP_RATIO,
    NUM_CLASSES,
    PATCH_SIZE,
    Mechanism,
    load_class,
)

CLS_PRUNE = "cls_prune"
"""The option of the host: the last MLP for the class token only. The logits are the same, and so are all gradients."""


KERNELS = "kernels"
"""The option of ``fast``: whose kernels run, PyTorch's or hand-written ones in Triton, in host and mixer."""


class InfVit(VisionTransformer):
    """timm's ViT plus the pooler of the paper's host: ``head(tanh(pooler(class token)))``.

    With ``cls_prune`` its features are the class token alone, ``[B, 1, D]``. ``kernels`` says what stands around the
    MLP where no gradients are needed: PyTorch's kernels, or Triton's (:mod:`infsa_models.kernels`).
    """

    is_fused = False

    def __init__(
        self,
        *,
        grid: tuple[int, int],
        may_be_lean: bool = False,
        cls_prune: bool = False,
        kernels: str = TORCH,
        num_classes: int = NUM_CLASSES,
        **kwargs: Any,
    ) -> None:
        # timm would make a random full-size position embedding: it is built here, from the 14 x 14 one.
        super().__init__(pos_embed="none", num_classes=num_classes, block_fn=HostBlock, **kwargs)
        self.may_be_lean = may_be_lean
        self.kernels = kernels
        *_, last = self.host_blocks()
        last.class_token_only = cls_prune
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        self.pooler = nn.Linear(self.embed_dim, self.embed_dim, device=device, dtype=dtype)
        base = torch.empty(1, BASE_GRID[0] * BASE_GRID[1] + 1, self.embed_dim, device=device, dtype=torch.float32)
        trunc_normal_(base, std=0.02)
        resampled = resample_abs_pos_embed(base, new_size=list(grid), old_size=list(BASE_GRID))
        self.pos_embed = nn.Parameter(resampled.to(dtype or torch.get_default_dtype()))

    def host_blocks(self) -> Iterator[HostBlock]:
        """Yield the blocks, first to last."""
        for block in self.blocks:
            assert isinstance(block, HostBlock)
            yield block

    def choices(self, batch: int) -> dict[str, str]:
        """Return what the model decides by itself for such a batch, by name: ``host``, and what its mixers decided.

        ``host`` is ``lean``, ``triton`` (hand-written kernels around the MLP), or both. Known after a forward.
        """
        chosen = dict(getattr(next(self.host_blocks()).attn.mixer, "choices", {}))
        host = ["lean"] * self._is_lean(batch) + [TRITON] * self.is_fused
        return chosen | {"host": ", ".join(host)} if host else chosen

    def forward(
        self, x: Float[Tensor, "batch channels height width"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "batch classes"]:
        is_lean = self._is_lean(x.shape[0])
        for block in self.host_blocks():
            block.is_lean = is_lean
        self.is_fused = self._may_be_fused()
        if torch.is_grad_enabled() or not (is_lean or self.is_fused):
            return super().forward(x)
        tokens = self._embedded_by_triton(x) if self.is_fused else self._embedded_in_pieces(x)
        for block in self.host_blocks():
            tokens = block.forward_fused(tokens) if self.is_fused else block.forward_lean(tokens)
        return self.forward_head(self.norm(tokens[:, :1]))

    def forward_head(
        self, x: Float[Tensor, "batch tokens embed_dim"], pre_logits: bool = False
    ) -> Float[Tensor, "batch classes"]:
        pooled = torch.tanh(self.pooler(self.pool(x)))
        return pooled if pre_logits else self.head(self.head_drop(pooled))

    def fold_for_inference(self) -> None:
        """Multiply each mixer's output projection and the dense after it, where both exist and the mixer allows it.

        The model can no longer be trained as the one it was, nor save its state.
        """
        for block in self.host_blocks():
            block.attn.fold_dense()

    def _may_be_fused(self) -> bool:
        """Tell whether hand-written kernels stand around the MLP.

        Not for gradients, nor where autocast decides, nor where somebody changed the blocks or listens to them.
        """
        weight, embedding = self.pooler.weight, self.patch_embed
        if self.kernels == TORCH or torch.is_grad_enabled() or torch.is_autocast_enabled(weight.device.type):
            return False
        if not is_plain(embedding, embedding.proj) or not all(takes(block) for block in self.host_blocks()):
            return False
        num_heads = self.embed_dim // MIN_HEAD_DIM  # nothing in the host is by head
        return chosen(self.kernels, self.embed_dim, num_heads, weight.device, weight.dtype) == TRITON

    def _is_lean(self, batch: int) -> bool:
        height, width = self.patch_embed.grid_size
        return self.may_be_lean and batch * (height * width + 1) >= LEAN_TOKENS

    def _embedded_by_triton(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens embed_dim"]:
        """Return the same as :meth:`_embedded_in_pieces`."""
        embedding = self.patch_embed
        expected = (embedding.proj.in_channels, *embedding.img_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"images are {tuple(images.shape[1:])}, the model is for {expected}")
        projection = embedding.proj
        return embed_patches(images, projection.weight, projection.bias, self.cls_token, self.pos_embed)

    def _embedded_in_pieces(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens embed_dim"]:
        """Return patches and class token with their positions, written where they stay."""
        batch, (_, width) = images.shape[0], self.patch_embed.grid_size
        positions = self.pos_embed
        assert positions is not None
        assert self.cls_token is not None
        tokens = positions.new_empty(batch, *positions.shape[1:])
        tokens[:, :1] = self.cls_token + positions[:, :1]
        for rows in row_pieces(batch, self.patch_embed.grid_size):
            pixels = slice(rows.start * PATCH_SIZE, rows.stop * PATCH_SIZE)
            patches = slice(1 + rows.start * width, 1 + rows.stop * width)
            embedded = image_to_tokens(self.patch_embed.proj(images[:, :, pixels]))
            tokens[:, patches] = embedded + positions[:, patches]
        return tokens


def build_vit(
    mechanism: Mechanism | str,
    config: str,
    resolution: int | tuple[int, int] = 224,
    *,
    implementation: str = "reference",
    options: Mapping[str, OptionValue] | None = None,
    num_classes: int = NUM_CLASSES,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> InfVit:
    """Build the ViT that hosts ``mechanism``, for images ``[B, 3, height, width]``, initialised on ``device``.

    Args:
        mechanism: a built-in name, or any :class:`~infsa_models.registry.Mechanism`.
        config: ``4L-64H`` or ``24L-16H``.
        resolution: image side in pixels, or (height, width); multiples of 16.
        implementation: which of the mechanism's implementations.
        options: keyword arguments of the mechanism's class beyond the contract; ``cls_prune`` and, of ``fast``,
            ``kernels`` of the host.
        dtype: of all parameters. The seed is the caller's (``torch.manual_seed``).

    Raises:
        KeyError: unknown mechanism, implementation or config.
        ValueError: resolution is not a positive multiple of the patch size.
    """
    entry = MECHANISMS[mechanism] if isinstance(mechanism, str) else mechanism
    backbone = CONFIGS[config]
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    if min(height, width) <= 0 or height % PATCH_SIZE or width % PATCH_SIZE:
        raise ValueError(f"resolution {height} x {width} is not a positive multiple of {PATCH_SIZE}")
    grid = (height // PATCH_SIZE, width // PATCH_SIZE)
    mixer_class = load_class(entry.implementations[implementation])
    options = dict(options or {})
    cls_prune = bool(options.pop(CLS_PRUNE, False))
    kernels = str(options.pop(KERNELS, AUTO)) if implementation != "reference" else TORCH
    if KERNELS in inspect.signature(mixer_class).parameters:
        options[KERNELS] = kernels
    return InfVit(
        grid=grid,
        may_be_lean=implementation != "reference",
        cls_prune=cls_prune,
        kernels=kernels,
        img_size=(height, width),
        patch_size=PATCH_SIZE,
        embed_dim=backbone.embed_dim,
        depth=backbone.depth,
        num_heads=backbone.num_heads,
        mlp_ratio=MLP_RATIO,
        num_classes=num_classes,
        attn_layer=host_attention(mixer_class, grid, options),
        device=device,
        dtype=dtype,
    )


def timm_name(mechanism: str, config: str) -> str:
    """Return the name under which timm knows a model, e.g. ``infvit_linear_4l_64h`` for ``infsa-linear``."""
    return f"infvit_{mechanism.removeprefix('infsa-')}_{config.lower()}".replace("-", "_")


def _register_with_timm() -> None:
    """Make ``timm.create_model("infvit_linear_4l_64h", img_size=512)`` work for every mechanism and config."""
    module = sys.modules[__name__]
    names = {timm_name(mechanism, config): (mechanism, config) for mechanism in MECHANISMS for config in CONFIGS}
    # No published weights exist; without a config timm warns at every create_model.
    vars(module)["default_cfgs"] = generate_default_cfgs({f"{name}.untrained": {} for name in names})
    for name, (mechanism, config) in names.items():

        def entry_point(
            pretrained: bool = False,
            *,
            name: str = name,
            mechanism: str = mechanism,
            config: str = config,
            img_size: int | tuple[int, int] = 224,
            pretrained_cfg: object = None,
            pretrained_cfg_overlay: object = None,
            cache_dir: object = None,
            **kwargs: Any,
        ) -> InfVit:
            if pretrained:
                raise ValueError(f"{name} has no pretrained weights")
            model = build_vit(mechanism, config, img_size, **kwargs)
            # Where timm's own factory leaves the configuration; nn.Module types attributes too narrowly for it.
            vars(model).update(pretrained_cfg=pretrained_cfg, default_cfg=pretrained_cfg)
            return model

        entry_point.__name__ = name
        # register_model looks the function's module up for the default config and appends the name to its __all__.
        setattr(module, name, register_model(entry_point))


_register_with_timm()
