"""Hand-written kernels in the host, the same around every mechanism, and whole models with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from kernel_cases import error, values
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from infsa_models import pieces, vit
from infsa_models.kernels.host import add_mlp_
from infsa_models.kernels.mlp import linear_gelu
from infsa_models.kernels.norm import add_layer_norm_, row_statistics
from infsa_models.kernels.patches import embed_patches
from infsa_models.registry import MECHANISMS, Backbone

pytest.importorskip("triton", reason="needs Triton")

BOUNDS = {torch.float32: 4e-7, torch.float16: 6e-4}
dtypes = pytest.mark.parametrize("dtype", BOUNDS, ids=["fp32", "fp16"])

SIDE = 64
"""17 tokens."""


@dtypes
@pytest.mark.parametrize("tokens", [1, 17, 77])
def test_hidden_layer_with_gelu(dtype: torch.dtype, tokens: int) -> None:
    x, weight = values(2, tokens, 128, dtype=dtype), values(320, 128, seed=1).div(11).to(dtype)
    bias = values(320, dtype=dtype, seed=2)
    right = F.gelu(F.linear(x.double(), weight.double(), bias.double()))
    assert error(linear_gelu(x, weight, bias), right) <= BOUNDS[dtype]


@dtypes
@pytest.mark.parametrize("is_row", [True, False], ids=["row", "all"])
@pytest.mark.parametrize("width", [64, 192])
def test_residual_with_layer_norm(dtype: torch.dtype, is_row: bool, width: int) -> None:
    x, added = values(2, 21, width, dtype=dtype), values(2, 1 if is_row else 21, width, dtype=dtype, seed=1)
    weight, bias, later = (values(width, dtype=dtype, seed=seed) for seed in (2, 3, 4))
    sums = x + added
    normal = add_layer_norm_(x, added.expand_as(x), weight, bias, 1e-6, later)
    assert error(x, sums.double() + later.double()) <= BOUNDS[dtype]
    assert error(normal, F.layer_norm(sums.double(), (width,), weight.double(), bias.double(), 1e-6)) <= BOUNDS[dtype]


def test_residual_of_one_row_and_of_a_part() -> None:
    whole, row = values(2, 21, 64, dtype=torch.float32), values(2, 1, 64, dtype=torch.float32, seed=1)
    before, (one, zero) = whole.clone(), (torch.ones(64), torch.zeros(64))
    normal = add_layer_norm_(whole[:, 5:9], row, one, zero, 1e-6, zero)
    assert torch.equal(whole[:, 5:9], before[:, 5:9] + row)
    assert torch.equal(whole[:, :5], before[:, :5])
    assert torch.equal(whole[:, 9:], before[:, 9:])
    assert error(normal, F.layer_norm(before[:, 5:9] + row, (64,), eps=1e-6)) <= BOUNDS[torch.float32]


def test_statistics_far_from_zero() -> None:
    """The variance of numbers whose mean is 1000 times their deviation."""
    x = values(2, 5, 192).add(1000).float()
    mean, rstd = row_statistics(x, 1e-6)
    right = x.double().var(dim=-1, unbiased=False).add(1e-6).rsqrt()
    assert error(mean, x.double().mean(dim=-1)) <= 1e-6
    assert error(rstd, right) <= 1e-5


@dtypes
def test_patch_embedding(dtype: torch.dtype) -> None:
    images, weight = values(2, 3, 48, 80, dtype=dtype), values(64, 3, 16, 16, seed=1).div(28).to(dtype)
    bias, class_token, positions = (values(*shape, dtype=dtype, seed=2) for shape in ((64,), (1, 1, 64), (1, 16, 64)))
    patches = F.conv2d(images.double(), weight.double(), bias.double(), stride=16).flatten(2).transpose(1, 2)
    right = torch.cat([class_token.double().expand(2, 1, 64), patches], dim=1) + positions.double()
    assert error(embed_patches(images, weight, bias, class_token, positions), right) <= BOUNDS[dtype]


@dtypes
def test_mlp_with_its_residuals_on_whole_tokens_and_on_parts(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, mixed = values(2, 21, 64, dtype=dtype), values(2, 21, 64, dtype=dtype, seed=1)
    norm, mlp = nn.LayerNorm(64, dtype=dtype), vit.build_vit("softmax", "tiny", SIDE).blocks[0].mlp.to(dtype)
    middle = (x + mixed).double()
    double = vit.build_vit("softmax", "tiny", SIDE).blocks[0].mlp.double()
    double.load_state_dict(mlp.state_dict())
    right = middle + double(F.layer_norm(middle, (64,), norm.weight.double(), norm.bias.double(), norm.eps))
    with torch.no_grad():
        whole, parts = x.clone(), x.clone()
        add_mlp_(whole, mixed, norm, mlp)
        for part in (slice(0, 10), slice(10, 21)):
            add_mlp_(parts[:, part], mixed[:, part], norm, mlp)
    assert error(whole, right) <= 2 * BOUNDS[dtype]
    assert error(parts, whole) <= BOUNDS[dtype]


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: Mapping[str, Backbone] = {"tiny": Backbone(depth=2, num_heads=4, embed_dim=64)}
    monkeypatch.setattr(vit, "CONFIGS", configs)


def models(mechanism: str, **options: bool) -> Iterator[vit.InfVit]:
    """Yield the same model with PyTorch's kernels, then with Triton's."""
    for kernels in ("torch", "triton"):
        torch.manual_seed(0)
        model = vit.build_vit(
            mechanism, "tiny", SIDE, implementation="fast", options={"kernels": kernels, **options}, num_classes=10
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        yield model.eval()


@pytest.mark.parametrize("is_lean", [False, True], ids=["whole", "lean"])
@pytest.mark.parametrize("cls_prune", [False, True])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_models(mechanism: str, cls_prune: bool, is_lean: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_lean:
        monkeypatch.setattr(vit, "LEAN_TOKENS", 1)
        monkeypatch.setattr(pieces, "PIECE_TOKENS", 12)
    images = values(2, 3, SIDE, SIDE, dtype=torch.float32)
    before, logits = images.clone(), []
    for model in models(mechanism, cls_prune=cls_prune):
        model.fold_for_inference()
        with torch.inference_mode():
            logits.append(model(images))
        kernels = model.kernels
        expected = ["lean"] * is_lean + ["triton"] * (kernels == "triton")
        assert model.choices(2).get("host", "") == ", ".join(expected)
        if mechanism.startswith("infsa"):
            assert model.choices(2)["kernels"] == kernels
    assert error(logits[1], logits[0]) <= 2e-6
    assert torch.equal(images, before)


@pytest.mark.parametrize("mechanism", ["infsa-linear", "infsa-pure", "softmax"])
def test_training_has_kernels_in_the_mixer_alone(mechanism: str) -> None:
    images, found = values(2, 3, SIDE, SIDE, dtype=torch.float32), []
    for model in models(mechanism):
        model(images).square().sum().backward()
        assert "triton" not in model.choices(2).get("host", "")
        found.append([parameter.grad for parameter in model.parameters()])
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert ours is not None
        assert theirs is not None
        assert error(ours, theirs) <= 1e-4


@pytest.mark.parametrize("mechanism", ["infsa-linear", "infsa-pure", "softmax"])
def test_autocast_keeps_the_host_to_pytorch(mechanism: str) -> None:
    images, logits = values(2, 3, SIDE, SIDE, dtype=torch.float32), []
    for model in models(mechanism):
        model.fold_for_inference()
        with torch.inference_mode(), torch.autocast("cpu", torch.float16):
            logits.append(model(images))
        assert "triton" not in model.choices(2).get("host", "")
    assert error(logits[1], logits[0]) <= 5e-3


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_flops_are_counted_as_without(mechanism: str) -> None:
    images, counted = values(1, 3, SIDE, SIDE, dtype=torch.float32), []
    for model in models(mechanism):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images)
        counted.append(counter.get_total_flops())
    # Sums over tokens of 64 channels that PyTorch takes as products.
    assert counted[1] == pytest.approx(counted[0], rel=0.02)


def test_a_reference_has_no_kernels_of_ours() -> None:
    model = vit.build_vit("infsa-linear", "tiny", SIDE)
    assert model.kernels == "torch"
    with pytest.raises(TypeError):
        vit.build_vit("infsa-linear", "tiny", SIDE, options={"no_such": 1})


@pytest.mark.parametrize("mechanism", ["infsa-linear", "infsa-pure", "softmax"])
def test_torch_compile_takes_them_in_one_graph(mechanism: str) -> None:
    images = values(1, 3, SIDE, SIDE, dtype=torch.float32)
    for model in models(mechanism):
        with torch.inference_mode():
            expected = model(images)
            compiled: Tensor = torch.compile(model, backend="aot_eager", dynamic=False, fullgraph=True)(images)
        assert error(compiled, expected) <= 1e-6


@pytest.mark.parametrize("shape", [(3, 96, 96), (3, 64, 80), (3, 32, 32), (3, 70, 70), (3, 32, 128), (1, 64, 64)])
def test_images_that_are_not_the_models_are_refused_by_both(shape: tuple[int, ...]) -> None:
    for model in models("softmax"):
        with torch.inference_mode(), pytest.raises((AssertionError, ValueError, RuntimeError)):
            model(torch.zeros(1, *shape))


def test_an_operator_refuses_what_its_positions_are_not_for() -> None:
    weight, bias, class_token = torch.zeros(64, 3, 16, 16), torch.zeros(64), torch.zeros(1, 1, 64)
    with pytest.raises(ValueError, match="3 channels of 32 x 48 pixels are not what 4 positions"):
        embed_patches(torch.zeros(1, 3, 32, 48), weight, bias, class_token, torch.zeros(1, 5, 64))


def test_a_model_with_its_channels_last() -> None:
    images, logits = values(2, 3, SIDE, SIDE, dtype=torch.float32), []
    for model in models("softmax"):
        with torch.inference_mode():
            logits.append(model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last)))
    assert error(logits[1], logits[0]) <= 2e-6


def test_what_is_added_may_lie_in_any_way() -> None:
    x, added = values(2, 21, 64, dtype=torch.float32), values(2, 64, 21, dtype=torch.float32, seed=1).transpose(1, 2)
    right, (one, zero) = x + added, (torch.ones(64), torch.zeros(64))
    add_layer_norm_(x, added, one, zero, 1e-6, zero)
    assert torch.equal(x, right)
    with pytest.raises(ValueError, match="channels side by side"):
        add_layer_norm_(added, x, one, zero, 1e-6, zero)


@pytest.mark.parametrize("change", ["hook", "activation", "dropout", "wrapped", "embedding"])
def test_a_changed_block_is_left_to_pytorch(change: str) -> None:
    images, seen, logits = values(1, 3, SIDE, SIDE, dtype=torch.float32), [], []
    for model in models("softmax"):
        block = next(model.host_blocks())
        if change == "hook":
            block.register_forward_hook(lambda *_: seen.append(1))
        elif change == "activation":
            block.mlp.act = nn.SiLU()
        elif change == "dropout":
            block.train()
            block.mlp.drop1.p = 0.5
        elif change == "wrapped":
            block.mlp.fc1 = nn.Sequential(block.mlp.fc1)  # type: ignore[assignment]
        else:
            model.patch_embed.register_forward_hook(lambda *_: seen.append(1))
        torch.manual_seed(0)
        with torch.inference_mode():
            logits.append(model(images))
        assert "triton" not in model.choices(1).get("host", "")
    assert error(logits[1], logits[0]) <= 1e-6
    assert len(seen) == 2 * (change in ("hook", "embedding"))


@pytest.mark.parametrize("cls_prune", [False, True])
def test_batches_go_in_few_products(cls_prune: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many whole images as a piece holds, and one product for all of them."""
    monkeypatch.setattr(pieces, "PIECE_TOKENS", 40)
    images, products = values(5, 3, SIDE, SIDE, dtype=torch.float32), []
    *_, model = models("softmax", cls_prune=cls_prune)
    with torch.inference_mode(), FlopCounterMode(display=False):
        original = torch.addmm
        monkeypatch.setattr(torch, "addmm", lambda *a, **k: (products.append(len(a[0])), original(*a, **k))[1])
        model(images)
    # Two images of 17 tokens a piece; of one token each, all images at once.
    whole = [34, 34, 17]
    assert products == [*whole, *([5] if cls_prune else whole)]


def test_pieces_of_images_and_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_TOKENS", 40)
    assert pieces.contiguous_pieces(3, 17) == [(slice(0, 2), slice(0, 17)), (slice(2, 4), slice(0, 17))]
    assert pieces.contiguous_pieces(2, 60) == [
        (slice(image, image + 1), piece) for image in (0, 1) for piece in (slice(0, 30), slice(30, 60))
    ]
