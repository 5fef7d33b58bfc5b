"""Hand-written kernels compiled and run, what no interpreter shows: their errors beside those of PyTorch's kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kernel_cases import RAGGED, error, exact, gradients, mean_context, projections, relu_attention, values
from torch import Tensor
from torch.nn import functional as F

from infsa_models import mean_context as in_torch
from infsa_models import relu_attention as operators
from infsa_models.kernels import mean_context as in_triton
from infsa_models.kernels.host import add_mlp_
from infsa_models.kernels.mean_context_steps import Norm
from infsa_models.kernels.patches import embed_patches
from infsa_models.kernels.support import problem
from infsa_models.mean_context import Projections
from infsa_models.mean_context_autograd import MeanContext
from infsa_models.pieces import token_pieces
from infsa_models.vit import build_vit

pytestmark = pytest.mark.gpu

WIDTH = 1024
SLACK, FLOOR = 1.05, 1e-5
"""No larger than the twin's, but for what the order of additions does to both."""

dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
head_counts = pytest.mark.parametrize("num_heads", [64, 16])
lengths = pytest.mark.parametrize("tokens", [*RAGGED, 4097])


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Every buffer is full of NaN before a kernel writes to it."""
    reason = problem(WIDTH, 64, torch.device("cuda")) if torch.cuda.is_available() else "there is no GPU"
    if reason is not None:
        pytest.skip(f"needs a GPU that runs the kernels: {reason}")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(tensors: list[Tensor] | Projections) -> list[Tensor]:
    return [tensor.cuda() for tensor in tensors]


def no_larger(ours: Tensor, twin: Tensor, right: Tensor) -> bool:
    return error(ours.cpu(), right.cpu()) <= SLACK * error(twin.cpu(), right.cpu()) + FLOOR


@lengths
@head_counts
@dtypes
def test_linear_infsa_is_no_further_from_float64_than_pytorch(dtype: torch.dtype, num_heads: int, tokens: int) -> None:
    of = Projections(*on_gpu(projections(WIDTH, dtype, is_tied=True)))
    x = values(2, tokens, WIDTH).add(0.5).to(dtype).cuda()
    norm = Norm(values(WIDTH, dtype=dtype, seed=7).cuda(), values(WIDTH, dtype=dtype, seed=8).cuda(), 1e-6)
    rho_logit = torch.tensor(1.5, device="cuda")
    ours = in_triton.pooled_context(x, norm, of, rho_logit, num_heads)
    normal = F.layer_norm(x, (WIDTH,), norm.weight, norm.bias, norm.epsilon)
    pooled = in_torch.pool_tokens(lambda piece: normal[:, piece], num_heads, [slice(0, tokens)], of)
    twin = (torch.sigmoid(rho_logit) * pooled.context).flatten(1).to(dtype)
    exact_normal = F.layer_norm(x.double(), (WIDTH,), norm.weight.double(), norm.bias.double(), norm.epsilon)
    right = mean_context(exact_normal, Projections(*exact(of)), num_heads)
    assert no_larger(ours, twin, torch.sigmoid(rho_logit.double()) * right.flatten(1))


@pytest.mark.parametrize("tokens", [17, 1025, 20_000])
@head_counts
@dtypes
def test_gradients_of_linear_infsa(dtype: torch.dtype, num_heads: int, tokens: int) -> None:
    of, x = projections(WIDTH, dtype, is_tied=True), values(1, tokens, WIDTH).add(0.5).to(dtype)
    inputs = on_gpu([x, *of[:2], *of[4:]])
    weight = values(1, num_heads, WIDTH // num_heads, seed=9).cuda()

    def by(kernels: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (MeanContext.apply(num_heads, token_pieces(1, tokens), kernels, *tensors),)

    def by_formula(x: Tensor, *layers: Tensor) -> tuple[Tensor, ...]:
        return (mean_context(x, Projections(*layers[:2], *layers[:2], *layers[2:]), num_heads),)

    ours = gradients(lambda *tensors: by("triton", *tensors), inputs, [weight])
    twins = gradients(lambda *tensors: by("torch", *tensors), inputs, [weight])
    rights = gradients(by_formula, exact(inputs), [weight])
    for one, twin, right in zip(ours, twins, rights, strict=True):
        # Scores that rounding takes across zero are others in each.
        assert error(one, right) <= 1.5 * error(twin, right) + FLOOR


@pytest.mark.parametrize("tokens", [*RAGGED, 2049])
@head_counts
@dtypes
def test_pure_infsa_is_no_further_from_float64_than_pytorch(dtype: torch.dtype, num_heads: int, tokens: int) -> None:
    tensors = on_gpu([values(1, tokens, WIDTH, dtype=dtype, seed=seed) for seed in (1, 2, 3)])
    weights = on_gpu([values(1, tokens, WIDTH, dtype=dtype, seed=4), values(1, num_heads, seed=5) / tokens])
    scale = num_heads / WIDTH
    right = relu_attention(*exact(tensors), num_heads, scale)
    results = {name: operators.relu_attention(*tensors, num_heads, scale, name) for name in ("triton", "torch")}
    for ours, twin, expected in zip(results["triton"], results["torch"], right, strict=True):
        assert no_larger(ours, twin, expected)
    found = {
        name: gradients(
            lambda *inputs, name=name: operators.relu_attention(*inputs, num_heads, scale, name), tensors, weights
        )
        for name in ("triton", "torch")
    }
    rights = gradients(lambda *inputs: relu_attention(*inputs, num_heads, scale), exact(tensors), exact(weights))
    for one, twin, expected in zip(found["triton"], found["torch"], rights, strict=True):
        assert error(one, expected) <= 1.2 * error(twin, expected) + FLOOR


@dtypes
@pytest.mark.parametrize("tokens", [1, 197, 4097])
def test_the_host(dtype: torch.dtype, tokens: int) -> None:
    block = build_vit("softmax", "4L-64H", 224, device="cuda", dtype=dtype).blocks[0]
    x, mixed = values(1, tokens, WIDTH, dtype=dtype).cuda(), values(1, 1, WIDTH, dtype=dtype, seed=1).cuda()
    with torch.no_grad():
        twin = x + mixed
        twin = twin + block.mlp(block.norm2(twin))
        ours = x.clone()
        add_mlp_(ours, mixed, block.norm2, block.mlp)
        middle = (x + mixed).double()
        right = middle + block.mlp.double()(block.norm2.double()(middle))
    # The bias is rounded with the residual, not with the product.
    assert error(ours, right) <= 1.5 * error(twin, right) + FLOOR


@dtypes
def test_patch_embedding(dtype: torch.dtype) -> None:
    images, weight = values(2, 3, 336, 208, dtype=dtype).cuda(), values(WIDTH, 3, 16, 16).div(28).to(dtype).cuda()
    bias, class_token, positions = (
        values(*shape, dtype=dtype).cuda() for shape in ((WIDTH,), (1, 1, WIDTH), (1, 21 * 13 + 1, WIDTH))
    )
    patches = F.conv2d(images.double(), weight.double(), bias.double(), stride=16).flatten(2).transpose(1, 2)
    right = torch.cat([class_token.double().expand(2, 1, WIDTH), patches], dim=1) + positions.double()
    ours = embed_patches(images, weight, bias, class_token, positions)
    assert error(ours, right) <= error(right.to(dtype), right) * 1.1 + FLOOR


@pytest.mark.parametrize("mechanism", ["infsa-linear", "infsa-pure", "softmax"])
@pytest.mark.parametrize("resolution", [224, 1024])
def test_models_in_cuda_graphs_are_the_same_in_every_run(mechanism: str, resolution: int) -> None:
    torch.manual_seed(0)
    model = build_vit(mechanism, "4L-64H", resolution, implementation="fast", device="cuda", dtype=torch.bfloat16)
    model.fold_for_inference()
    model.eval().requires_grad_(False)
    assert model.kernels == "auto"
    images = torch.randn(1, 3, resolution, resolution, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        eager = [model(images).clone() for _ in range(3)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = model(images)
        graph.replay()
        replayed = result.clone()
    assert model.choices(1)["host"] == "triton"
    if mechanism.startswith("infsa"):
        assert model.choices(1)["kernels"] == "triton"
    assert torch.isfinite(eager[0]).all()
    # Softmax is PyTorch's own; ours have one order of additions.
    if mechanism.startswith("infsa"):
        assert all(torch.equal(eager[0], other) for other in [*eager[1:], replayed])
    with torch.inference_mode():
        torch.manual_seed(0)
        twin = build_vit(
            mechanism,
            "4L-64H",
            resolution,
            implementation="fast",
            options={"kernels": "torch"},
            device="cuda",
            dtype=torch.bfloat16,
        )
        twin.fold_for_inference()
        assert error(eager[0], twin.eval()(images)) <= 0.03
