"""The host: published sizes, timm's factory, position embedding, pooler."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from infsa_models.registry import CONFIGS, MECHANISMS, Backbone
from infsa_models.vit import build_vit, timm_name

CLASSES = 1000

every_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)


@pytest.fixture
def small_config() -> Iterator[str]:
    """A backbone small enough to run: two layers of width 64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIGS, "small", Backbone(depth=2, num_heads=4, embed_dim=64))
        yield "small"


@pytest.mark.parametrize(
    ("mechanism", "config", "parameters"),
    [
        ("softmax", "4L-64H", 57_650_152),
        ("softmax", "24L-16H", 330_566_632),
        ("infsa-pure", "4L-64H", 57_650_156),
        ("infsa-pure", "24L-16H", 330_566_656),
        ("infsa-linear", "4L-64H", 53_451_756),
        ("infsa-linear", "24L-16H", 305_376_256),
    ],
)
def test_published_parameter_counts(mechanism: str, config: str, parameters: int) -> None:
    model = build_vit(mechanism, config, 224, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_every_model_is_registered_with_timm() -> None:
    names = {timm_name(mechanism, config) for mechanism in MECHANISMS for config in CONFIGS}
    assert set(timm.list_models("infvit_*")) == names
    assert len(names) == 18


@pytest.mark.parametrize(("img_size", "grid"), [(224, (14, 14)), (512, (32, 32)), ((224, 384), (14, 24))])
def test_timm_builds_at_a_resolution(
    img_size: int | tuple[int, int], grid: tuple[int, int], recwarn: pytest.WarningsRecorder
) -> None:
    model = timm.create_model("infvit_linear_4l_64h", img_size=img_size, device="meta")
    assert model.patch_embed.grid_size == grid
    assert model.pos_embed.shape == (1, grid[0] * grid[1] + 1, 1024)
    assert [str(warning.message) for warning in recwarn if "pretrained" in str(warning.message)] == []


def test_timm_passes_its_arguments_on() -> None:
    model = timm.create_model("infvit_linear_4l_64h", num_classes=10, options={"tie_qk": False}, device="meta")
    assert model.head.out_features == 10
    assert model.blocks[0].attn.mixer.k_proj is not None


def test_there_are_no_pretrained_weights() -> None:
    with pytest.raises(ValueError, match="no pretrained weights"):
        timm.create_model("infvit_linear_4l_64h", pretrained=True)


@pytest.mark.parametrize("resolution", [0, -16, 230, (224, 230), (0, 224)])
def test_bad_resolutions_are_refused(resolution: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="positive multiple of 16"):
        build_vit("softmax", "4L-64H", resolution, device="meta")


def test_unknown_names_are_key_errors() -> None:
    for mechanism, config, implementation in [
        ("someone-elses", "4L-64H", "reference"),
        ("softmax", "4L-65H", "reference"),
        ("softmax", "4L-64H", "someone-elses"),
    ]:
        with pytest.raises(KeyError):
            build_vit(mechanism, config, 224, implementation=implementation, device="meta")


@every_mechanism
@pytest.mark.parametrize("resolution", [96, (96, 160)])
def test_a_forward_gives_one_logit_a_class(
    mechanism: str, resolution: int | tuple[int, int], small_config: str
) -> None:
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    model = build_vit(mechanism, small_config, resolution).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, height, width))
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()


def test_a_forward_of_the_published_size() -> None:
    model = build_vit("infsa-linear", "4L-64H", 64).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, CLASSES)


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@every_mechanism
def test_nothing_is_interpolated_in_a_forward(mechanism: str, small_config: str) -> None:
    model = build_vit(mechanism, small_config, 96).eval()
    with torch.no_grad(), Operators() as operators:
        model(torch.randn(1, 3, 96, 96))
    interpolations = {name for name in operators.names if "upsample" in name or "interpolate" in name}
    if mechanism == "agent":
        # Its published forward resizes its 7 x 7 bias tables to the grid.
        assert interpolations == {"aten.upsample_bilinear2d.default"}
    else:
        assert interpolations == set()


def test_the_position_embedding_is_the_base_one_resampled(small_config: str) -> None:
    def position_embedding(resolution: int) -> Tensor:
        torch.manual_seed(0)
        return build_vit("softmax", small_config, resolution).pos_embed.detach()

    base, resampled = position_embedding(224), position_embedding(448)
    assert resampled.shape == (1, 28 * 28 + 1, 64)
    # The class token's row stays; a resampled table has no larger mean square than its base.
    assert torch.equal(base[:, 0], resampled[:, 0])
    assert resampled.square().mean() <= base.square().mean()
    assert torch.allclose(base[:, 1:].mean(1), resampled[:, 1:].mean(1), atol=2e-3)


def test_position_embedding_and_pooler_matter(small_config: str) -> None:
    model = build_vit("softmax", small_config, 64).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        logits = model(images)
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
        assert pooled.abs().max() <= 1
        assert torch.equal(model.head(pooled), logits)
        class_token = model.forward_features(images)[:, 0]
        assert torch.allclose(pooled, torch.tanh(model.pooler(class_token)))
        model.pos_embed.mul_(-10)
        assert not torch.allclose(model(images), logits)


@every_mechanism
def test_the_extra_dense_follows_all_but_mlla(mechanism: str) -> None:
    attention = build_vit(mechanism, "4L-64H", 224, device="meta").blocks[0].attn
    expected = torch.nn.Identity if mechanism == "mlla" else torch.nn.Linear
    assert type(attention.dense) is expected


@every_mechanism
def test_a_seed_reproduces_the_model(mechanism: str, small_config: str) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build_vit(mechanism, small_config, 96).state_dict())
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["patch_embed.proj.weight"], other["patch_embed.proj.weight"])
    assert not torch.equal(first["pos_embed"], other["pos_embed"])


@every_mechanism
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_parameters_have_the_type_and_device_asked_for(mechanism: str, dtype: torch.dtype) -> None:
    model = build_vit(mechanism, "4L-64H", 224, device="meta", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_the_host_is_the_papers() -> None:
    """Every step of the host by hand: pre-norm, mixer, dense, residual, MLP, final norm, pooler, head."""
    torch.manual_seed(0)
    model = build_vit("softmax", "4L-64H", (32, 48), num_classes=10, dtype=torch.float64).eval()
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        patches = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([model.cls_token.expand(2, -1, -1), patches], dim=1) + model.pos_embed
        for block in model.blocks:
            x = x + block.attn.dense(block.attn.mixer(block.norm1(x)))
            x = x + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(block.norm2(x))))
        pooled = torch.tanh(model.pooler(model.norm(x)[:, 0]))
        expected = pooled @ model.head.weight.T + model.head.bias
        assert torch.allclose(model(images), expected, atol=1e-12)
        assert torch.allclose(model.forward_head(model.forward_features(images), pre_logits=True), pooled)


def test_the_position_embedding_is_random_and_resampled() -> None:
    torch.manual_seed(0)
    base = build_vit("softmax", "4L-64H", 224).pos_embed
    torch.manual_seed(0)
    larger = build_vit("softmax", "4L-64H", 448).pos_embed
    assert base.std().item() == pytest.approx(0.02, rel=0.2)
    assert torch.equal(base[:, 0], larger[:, 0])
    # Halved again, the resampled embedding is close to the one that it came from.
    halved = larger[:, 1:].unflatten(1, (14, 2, 14, 2)).mean(dim=(2, 4)).flatten(1, 2)
    assert torch.nn.functional.cosine_similarity(halved.flatten(), base[:, 1:].flatten(), dim=0) > 0.9
