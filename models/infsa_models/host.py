"""What surrounds a mixer in every block: the extra dense, residuals, norms, the MLP.

The block is timm's, which is the paper's: pre-norm, the attention module with its own output projection, one more D x D
dense (Hugging Face's ``ViTSelfOutput``), residual, MLP. What a mixer may offer beyond the contract (see
:mod:`infsa_models.mechanisms`) is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from infsa_models.kernels.host import add_mlp_
from infsa_models.options import OptionValue
from infsa_models.pieces import contiguous_pieces, joined, parts_of, token_pieces

PieceOf = Callable[[slice], Float[Tensor, "batch piece embed_dim"]]


class HostAttention(nn.Module):
    """A mixer and the host's extra dense."""

    mixer: nn.Module
    dense: nn.Module

    def forward_normalised(
        self, x: Float[Tensor, "batch tokens embed_dim"], norm: nn.LayerNorm
    ) -> Float[Tensor, "batch _ embed_dim"] | None:
        """Return the result for ``norm(x)``, or one row for all tokens, from a mixer that normalises; else None."""
        forward_normalised = getattr(self.mixer, "forward_normalised", None)
        mixed = None if forward_normalised is None else forward_normalised(x, norm)
        return None if mixed is None else self.dense(mixed)

    def forward(
        self, x: Float[Tensor, "batch tokens embed_dim"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "batch tokens embed_dim"]:
        forward_pooled = getattr(self.mixer, "forward_pooled", None)
        if forward_pooled is not None:
            return self.dense(forward_pooled(x)).expand_as(x)
        return self.dense(self.mixer(x))

    def forward_streamed(self, piece_of: PieceOf, pieces: Sequence[slice]) -> Float[Tensor, "batch _ embed_dim"]:
        """Return the same, or one row for all tokens; a mixer that can is given its input one piece at a time."""
        forward_streamed = getattr(self.mixer, "forward_streamed", None)
        if forward_streamed is not None:
            return self.dense(forward_streamed(piece_of, pieces))
        return self.dense(self.mixer(joined(lambda index: piece_of(pieces[index]), pieces)))

    def fold_dense(self) -> None:
        """Multiply the mixer's output projection and the dense, in float64, if the mixer names the former."""
        name = getattr(self.mixer, "output_projection", None)
        if name is None or not isinstance(self.dense, nn.Linear):
            return
        projection = self.mixer.get_submodule(name)
        assert isinstance(projection, nn.Linear)
        with torch.no_grad():
            outer = self.dense.weight.double()
            projection.bias.copy_(outer @ projection.bias.double() + self.dense.bias.double())
            projection.weight.copy_(outer @ projection.weight.double())
        self.dense = nn.Identity()


def host_attention(
    mixer_class: type[nn.Module], grid: tuple[int, int], options: Mapping[str, OptionValue]
) -> type[HostAttention]:
    """Return the class that timm instantiates in every block: the mixer, then the host's extra dense.

    timm insists on a class and passes neither grid nor token count, hence one class per build that closes over both.
    """

    class MixerAndDense(HostAttention):
        def __init__(
            self,
            dim: int,
            num_heads: int,
            *,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
            **timm_arguments: object,
        ) -> None:
            super().__init__()
            self.mixer = mixer_class(dim, num_heads, grid=grid, class_token=True, device=device, dtype=dtype, **options)
            self.dense = (
                nn.Linear(dim, dim, device=device, dtype=dtype)
                if getattr(mixer_class, "host_dense", True)
                else nn.Identity()
            )

    return MixerAndDense


class HostBlock(Block):
    """timm's pre-norm block. ``class_token_only`` ends it with the class token, the only one that the head looks at.

    ``forward_lean`` changes the tokens in place and needs a piece of the hidden layer at a time; where gradients are
    needed and ``is_lean``, ``forward`` makes the MLP again in the backward pass, piece by piece. ``forward_fused`` is
    ``forward_lean`` with hand-written kernels (:mod:`infsa_models.kernels`) around the two products of the MLP.
    """

    attn: HostAttention
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    mlp: Mlp
    class_token_only = False
    is_lean = False

    def forward(
        self, x: Float[Tensor, "batch tokens embed_dim"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "batch _ embed_dim"]:
        mixed = None if torch.is_grad_enabled() else self.attn.forward_normalised(x, self.norm1)
        if mixed is None:
            mixed = self.attn(self.norm1(x))
        if self.class_token_only:
            x, mixed = x[:, :1], mixed[:, :1]
        x = x + mixed
        del mixed
        if not self.is_lean:
            return x + self.mlp(self.norm2(x))
        pieces = token_pieces(*x.shape[:2])
        parts = parts_of(x, pieces)
        return joined(lambda index: parts[index] + self.mlp(self.norm2(parts[index])), pieces)

    def forward_lean(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch _ embed_dim"]:
        """Add to ``x`` in place; return it, or its class token. No gradients."""
        pieces = token_pieces(*x.shape[:2])
        x += self._mixed_in_pieces(x, pieces)
        if self.class_token_only:
            x, pieces = x[:, :1], [slice(0, 1)]
        for piece in pieces:
            x[:, piece] += self.mlp(self.norm2(x[:, piece]))
        return x

    def forward_fused(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch _ embed_dim"]:
        """Add to ``x``, which is contiguous, in place; return it, or its class token. No gradients, no autocast."""
        mixed: Tensor | None
        if self.is_lean:
            mixed = self._mixed_in_pieces(x, token_pieces(*x.shape[:2]))
        else:
            mixed = self.attn.forward_normalised(x, self.norm1)
            mixed = self.attn(self.norm1(x)) if mixed is None else mixed
        if self.class_token_only:
            x, mixed = x[:, :1], mixed[:, :1]
        for images, piece in contiguous_pieces(*x.shape[:2]):
            part = mixed[images] if mixed.shape[1] == 1 else mixed[images, piece]
            add_mlp_(x[images, piece], part, self.norm2, self.mlp)
        return x

    def _mixed_in_pieces(
        self, x: Float[Tensor, "batch tokens embed_dim"], pieces: Sequence[slice]
    ) -> Float[Tensor, "batch _ embed_dim"]:
        mixed = self.attn.forward_normalised(x, self.norm1)
        if mixed is None:
            mixed = self.attn.forward_streamed(lambda piece: self.norm1(x[:, piece]), pieces)
        return mixed
