"""One file a mechanism: each holds an ``nn.Module`` from tokens ``[B, N, D]`` to tokens ``[B, N, D]``.

The contract that the host (:mod:`infsa_models.vit`) relies on, for mechanisms of this package and of others::

    class MyAttention(nn.Module):
        # False for a mixer whose own output projection takes the place of the host's extra dense.
        host_dense: ClassVar[bool] = True

        def __init__(
            self,
            embed_dim: int,                 # D
            num_heads: int,                 # h; head j owns channels [j * D/h, (j + 1) * D/h)
            *,
            grid: tuple[int, int],          # (H, W) patches, row-major
            class_token: bool = True,       # token 0 is the class token, so N = H * W + 1
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
        ) -> None: ...

        def forward(self, x: Float[Tensor, "batch tokens embed_dim"]) -> Float[Tensor, "batch tokens embed_dim"]: ...

``host_dense`` may be left out (True). Further keyword arguments with defaults are options of the mechanism. A class
that cannot run as asked (a kernel that the device lacks) raises ``NotImplementedError`` with the reason, when it is
built or called: the case is then recorded as unsupported.

A ``fast`` class is the same function of the same parameters as ``reference``: its state can be loaded from it. It may
offer the host more::

    # The name of its output projection: for inference the host multiplies it with its dense.
    output_projection: ClassVar[str] = "proj"

    # Where the result is the same for every token: that one row, [B, 1, D].
    def forward_pooled(self, x): ...

    # The same from tokens that exist one piece at a time, for inference; each piece may be asked for again.
    def forward_streamed(self, piece_of, pieces): ...

    # The result for norm(x), as one row or as all, where it normalises tokens as it reads them; None where it does
    # not after all. For inference.
    def forward_normalised(self, x, norm): ...

    # What it decided by itself, by name; known after a forward.
    choices: dict[str, str]

A class with a keyword argument ``kernels`` has hand-written kernels beside those of PyTorch and is told which to use:
``triton``, ``torch``, or ``auto`` (:mod:`infsa_models.kernels.support`).

The rule of ``fast``: the same exact identities and the same tools for every mechanism.

1. Products in the cheaper order; nothing of size N x m or N x N kept, no bias or table of full size made in a forward.
2. The output projection and the host's dense after it are one matrix for inference, wherever there are both.
3. PyTorch's fused attention where the mechanism is a softmax over keys without a bias.
4. Beyond ``PIECE_TOKENS`` tokens, pieces (:mod:`infsa_models.pieces`); from ``LEAN_TOKENS`` on, the lean host
   (:mod:`infsa_models.vit`). Sums over tokens in float32 at least. Mixers that need nothing of their input whole are
   streamed there: infsa-linear, Performer, Linformer. Those with a convolution over the values, and those whose every
   token meets every other, need values or queries, keys and values whole, and get their input whole.
"""
