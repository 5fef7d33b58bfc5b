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

``host_dense`` may be left out (True). Further keyword arguments with defaults are options of the mechanism.
"""
