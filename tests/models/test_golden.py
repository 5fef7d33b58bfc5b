"""Every golden file (inputs, weights and outputs of the official code) against ``reference`` and ``fast``.

A file holds ``meta`` (JSON: mechanism, hyper-parameters, grid, tolerances), ``in_*``, ``w_<official parameter name>``,
``out`` and ``mid_*`` (intermediate results). Each runs in float64 and in float32 under its own tolerance; every array
of a file is either used or checked. A file or an array that this test does not know is a failure, never a skip.

``fast`` computes most intermediate results in another form or not at all, so only its ``out`` is compared. It has no
core that takes queries, keys and values: it gets them side by side as its tokens, and projections that select them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import performer_pytorch.performer_pytorch as performer_package
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from infsa_models import spectral
from infsa_models.mechanisms.infsa_linear import linear_infsa, linear_infsa_scores
from infsa_models.mechanisms.infsa_pure import pure_infsa, pure_infsa_scores
from infsa_models.mechanisms.mlla import FastMllaCore, MllaCore, RotaryTable, SeparableRotaryTable
from infsa_models.mechanisms.performer import Float32FastAttention
from infsa_models.mechanisms.soft import DIAGONAL, gaussian_kernel, newton_inverse
from infsa_models.patches import tokens_to_image
from infsa_models.registry import MECHANISMS, load_class

IMPLEMENTATIONS = ("reference", "fast")

DTYPES = {"float64": torch.float64, "float32": torch.float32}
BFLOAT16 = {"bfloat16": torch.bfloat16}

INFSA_PROJECTIONS = ("q_proj", "k_proj", "v_proj")

# Projection matrices of Performer are inputs of a golden file; in our modules they are a buffer.
RENAMED_WEIGHTS = {"in_projection": "fast_attention.projection_matrix"}


@dataclass(frozen=True)
class Golden:
    """One file in one dtype."""

    meta: Mapping[str, Any]
    arrays: Mapping[str, Tensor]
    dtype: torch.dtype
    implementation: str

    @property
    def is_fast(self) -> bool:
        return self.implementation == "fast"

    def layer(self, *args: Any, **options: Any) -> nn.Module:
        """Build the mechanism of the file."""
        mechanism = MECHANISMS[self.meta["mechanism"].replace("_", "-")]
        return load_class(mechanism.implementations[self.implementation])(*args, **options, dtype=self.dtype)

    @property
    def hyper(self) -> Mapping[str, Any]:
        return self.meta["hyper"]

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def weights(self, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
        named = {name[2:]: array for name, array in self.arrays.items() if name.startswith("w_")}
        renamed = {new: self.arrays[old] for old, new in RENAMED_WEIGHTS.items() if old in self.arrays}
        return {name: array for name, array in {**named, **renamed}.items() if name not in without}

    def load_into(self, module: nn.Module, without: tuple[str, ...] = ()) -> None:
        module.load_state_dict(self.weights(without), strict=True)

    def tokens_grid(self) -> dict[str, Any]:
        """The grid and class token of the file; a row of tokens where the official layer knows no grid."""
        if self.meta["grid"] is None:
            return {"grid": (1, self["in_x"].shape[1]), "class_token": False}
        return {"grid": tuple(self.meta["grid"]), "class_token": self.meta["has_cls"]}

    def options(self, **ours_to_theirs: str) -> dict[str, Any]:
        return {ours: self.hyper[theirs] for ours, theirs in ours_to_theirs.items()}


Results = dict[str, Tensor]
Runner = Callable[[Golden], Results]
RUNNERS: dict[tuple[str, str], Runner] = {}


def runs(mechanism: str, level: str) -> Callable[[Runner], Runner]:
    def register(runner: Runner) -> Runner:
        RUNNERS[mechanism, level] = runner
        return runner

    return register


def load(path: Path, dtype_name: str, implementation: str = "reference") -> Golden:
    with np.load(path) as stored:
        meta = json.loads(str(stored["meta"]))
        # in_A and the like are exact in float32 or rounded once; the tolerances allow for it.
        arrays = {
            name: torch.from_numpy(stored[name]).to((DTYPES | BFLOAT16)[dtype_name])
            for name in stored
            if name != "meta"
        }
    return Golden(meta, arrays, (DTYPES | BFLOAT16)[dtype_name], implementation)


def compute(golden: Golden) -> Results:
    """Run our code on a golden file; return what it must equal, by the name of the array."""
    key = golden.meta["mechanism"], golden.hyper.get("level", "module")
    if key not in RUNNERS:
        raise KeyError(f"no way to run a golden file of mechanism and level {key}")
    with torch.no_grad():
        return RUNNERS[key](golden)


def excess(golden: Golden, results: Results) -> dict[str, float]:
    """Return, by array, the largest error as a multiple of what the file tolerates."""
    expected = {name for name in golden.arrays if name == "out" or name.startswith("mid_")}
    if golden.is_fast:
        results, expected = {"out": results["out"]}, {"out"}
    assert set(results) == expected, f"checked {sorted(results)}, the file has {sorted(expected)}"
    tolerance = golden.meta["tolerance"][str(golden.dtype).removeprefix("torch.")]
    ratios = {}
    for name, ours in results.items():
        theirs = golden[name]
        assert ours.shape == theirs.shape, name
        assert ours.dtype == golden.dtype, name
        allowed = tolerance["atol"] + tolerance["rtol"] * theirs.abs()
        # NaN must not pass: max() of a tensor with NaN is NaN, which is not <= 1.
        ratios[name] = ((ours - theirs).abs() / allowed).max().item()
    return ratios


def check(golden: Golden) -> None:
    ratios = excess(golden, compute(golden))
    assert all(ratio <= 1 for ratio in ratios.values()), ratios


# Capturing what a module computes on the way, without giving the module an interface for it.


class SoftmaxRecorder(TorchFunctionMode):
    """Keeps the results of all softmax calls, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.softmax:
            self.results.append(result)
        return result


@contextmanager
def recorded_outputs(module: nn.Module) -> Iterator[list[Tensor]]:
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    yield outputs
    handle.remove()


@contextmanager
def recorded_calls(owner: Any, name: str) -> Iterator[list[Tensor]]:
    """Record the results of the function ``owner.name``."""
    outputs: list[Tensor] = []
    original = getattr(owner, name)

    def recording(*args: Any, **kwargs: Any) -> Any:
        outputs.append(original(*args, **kwargs))
        return outputs[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, recording)
        yield outputs


def out_and_intermediate(golden: Golden, out: Tensor, intermediate: Callable[[], Results]) -> Results:
    """Return what the file holds of both (the DERIVED files hold fewer); ``fast`` has no intermediate results."""
    results = {} if golden.is_fast else intermediate()
    return {"out": out} | {name: value for name, value in results.items() if name in golden.arrays}


def mixed_from_selected(golden: Golden, names: tuple[str, str, str], out_name: str, **options: Any) -> Tensor:
    """Return what the layer of the file makes of given queries, keys and values, by head.

    Its tokens are the three side by side, its projections ``names`` select them, the one called ``out_name`` changes
    nothing. It has three times the heads; all but the first third select nothing.
    """
    given = [golden[name].transpose(1, 2).flatten(2) for name in ("in_q", "in_k", "in_v")]
    heads, width = golden["in_q"].shape[1], given[0].shape[-1]
    layer = golden.layer(3 * width, 3 * heads, grid=(1, given[0].shape[1]), class_token=False, **options)
    if "in_projection" in golden.arrays:
        layer.fast_attention.projection_matrix.copy_(golden["in_projection"])
    for index, name in enumerate(names):
        projection = layer.get_submodule(name)
        projection.weight.zero_()
        projection.weight[:width, index * width : (index + 1) * width] = torch.eye(width)
    layer.get_submodule(out_name).weight.copy_(torch.eye(3 * width))
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    mixed = layer(torch.cat(given, dim=-1))[..., :width]
    return mixed.unflatten(-1, (heads, -1)).transpose(1, 2)


@runs("softmax", "module")
def run_softmax(golden: Golden) -> Results:
    module = golden.layer(**golden.options(embed_dim="dim", num_heads="num_heads"), **golden.tokens_grid())
    golden.load_into(module)
    with SoftmaxRecorder() as softmax:
        out = module(golden["in_x"])
    return out_and_intermediate(golden, out, lambda: {"mid_attn_b0h0": softmax.results[0][0, 0]})


@runs("linformer", "module")
def run_linformer(golden: Golden) -> Results:
    options = golden.options(
        embed_dim="dim", num_heads="heads", k="k", share_kv="share_kv", one_kv_head="one_kv_head", seq_len="seq_len"
    )
    module = golden.layer(**options, **golden.tokens_grid())
    golden.load_into(module)
    with SoftmaxRecorder() as softmax:
        out = module(golden["in_x"])
    return out_and_intermediate(golden, out, lambda: {"mid_attn_b0h0": softmax.results[0][0, 0]})


@runs("performer", "module")
def run_performer(golden: Golden) -> Results:
    options = golden.options(embed_dim="dim", num_heads="heads", nb_features="nb_features", qkv_bias="qkv_bias")
    module = golden.layer(**options, **golden.tokens_grid())
    golden.load_into(module)
    return {"out": module(golden["in_x"])}


@runs("performer", "core")
def run_performer_core(golden: Golden) -> Results:
    generalized = golden.hyper["generalized_attention"]
    if golden.is_fast:
        options = {"nb_features": golden.hyper["nb_features"], "generalized": generalized}
        return {"out": mixed_from_selected(golden, ("to_q", "to_k", "to_v"), "to_out", **options)}
    core = Float32FastAttention(
        golden.hyper["dim_heads"], golden.hyper["nb_features"], generalized_attention=generalized
    )
    core.to(golden.dtype).load_state_dict({"projection_matrix": golden["in_projection"]})
    with recorded_calls(performer_package, "generalized_kernel" if generalized else "softmax_kernel") as features:
        out = core(golden["in_q"], golden["in_k"], golden["in_v"])
    return {"out": out, "mid_phi_q_b0h0": features[0][0, 0], "mid_phi_k_b0h0": features[1][0, 0]}


@runs("soft", "module")
def run_soft(golden: Golden) -> Results:
    options = golden.options(
        embed_dim="dim", num_heads="num_heads", ratio="ratio", conv_size="conv_size", newton_steps="max_iter"
    )
    module = golden.layer(**options, **golden.tokens_grid())
    golden.load_into(module)
    with recorded_calls(module.attn, "landmarks") as landmarks, recorded_outputs(module.attn) as mixed:
        out = module(golden["in_x"])
    return out_and_intermediate(
        golden, out, lambda: {"mid_landmarks_b0h0": landmarks[0][0, 0], "mid_premerge_b0h0": mixed[0][0, 0]}
    )


@runs("flatten", "module")
def run_flatten(golden: Golden) -> Results:
    options = golden.options(
        embed_dim="dim", num_heads="num_heads", focusing_factor="focusing_factor", kernel_size="kernel_size"
    )
    fused = "w_qkv.weight" in golden.arrays
    module = golden.layer(**options, **golden.tokens_grid(), fused_qkv=fused)
    golden.load_into(module)
    with recorded_outputs(module.dwc) as convolved:
        out = module(golden["in_x"])
    return out_and_intermediate(golden, out, lambda: {"mid_dwc_b0h0": convolved[0][0].flatten(1)})


@runs("agent", "module")
def run_agent(golden: Golden) -> Results:
    options = golden.options(embed_dim="dim", num_heads="num_heads", agent_num="agent_num")
    module = golden.layer(**options, **golden.tokens_grid())
    golden.load_into(module)
    with SoftmaxRecorder() as softmax, recorded_outputs(module.pool) as agents:
        out = module(golden["in_x"])
    return out_and_intermediate(
        golden,
        out,
        lambda: {
            "mid_agent_attn_b0h0": softmax.results[0][0, 0],
            "mid_q_attn_b0h0": softmax.results[1][0, 0],
            "mid_agent_tokens_b0": agents[0][0],
        },
    )


@runs("mlla", "rope")
def run_rope(golden: Golden) -> Results:
    table_class = SeparableRotaryTable if golden.is_fast else RotaryTable
    table = table_class(tuple(golden.meta["grid"]), golden.hyper["dim"], dtype=golden.dtype)
    return out_and_intermediate(golden, table(golden["in_x"]), lambda: {"mid_rotations": table.rotations})


@runs("mlla", "attention")
def run_mlla_core(golden: Golden) -> Results:
    core_class = FastMllaCore if golden.is_fast else MllaCore
    core = core_class(
        **golden.options(embed_dim="dim", num_heads="num_heads"), **golden.tokens_grid(), dtype=golden.dtype
    )
    golden.load_into(core)
    with recorded_outputs(core.rope) as rotated, recorded_outputs(core.lepe) as local:
        out = core(golden["in_x"])
    return out_and_intermediate(
        golden, out, lambda: {"mid_lepe_b0": local[0][0, :4], "mid_q_rope_b0_ch0_7": rotated[0][0, :, :, :8]}
    )


class MllaBlock(nn.Module):
    """The official block around our mixer: two positional convolutions, two layer norms and an MLP."""

    def __init__(self, mixer: nn.Module, dim: int, mlp_ratio: float, grid: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.grid = grid
        self.cpe1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, dtype=dtype)
        self.norm1 = nn.LayerNorm(dim, dtype=dtype)
        self.mixer = mixer
        self.cpe2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, dtype=dtype)
        self.norm2 = nn.LayerNorm(dim, dtype=dtype)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(dim, int(dim * mlp_ratio), dtype=dtype))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(int(dim * mlp_ratio), dim, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.cpe1(tokens_to_image(x, self.grid)).flatten(2).transpose(1, 2)
        x = x + self.mixer(self.norm1(x))
        x = x + self.cpe2(tokens_to_image(x, self.grid)).flatten(2).transpose(1, 2)
        return x + self.mlp(self.norm2(x))


@runs("mlla", "block")
def run_mlla_block(golden: Golden) -> Results:
    mixer = golden.layer(**golden.options(embed_dim="dim", num_heads="num_heads"), **golden.tokens_grid())
    block = MllaBlock(
        mixer, **golden.options(dim="dim", mlp_ratio="mlp_ratio"), grid=tuple(golden.meta["grid"]), dtype=golden.dtype
    )
    # The official block holds the mixer's parts directly, not in a module of their own.
    ours = ("cpe1.", "norm1.", "cpe2.", "norm2.", "mlp.")
    weights = golden.weights().items()
    block.load_state_dict({name if name.startswith(ours) else f"mixer.{name}": array for name, array in weights})
    core = block.mixer.attn
    with recorded_outputs(core.rope) as rotated, recorded_outputs(core.lepe) as local:
        out = block(golden["in_x"])
    return out_and_intermediate(
        golden, out, lambda: {"mid_lepe_b0": local[0][0, :4], "mid_q_rope_b0_ch0_7": rotated[0][0, :, :, :8]}
    )


@runs("infsa_pure", "core")
def run_pure_core(golden: Golden) -> Results:
    if golden.is_fast:
        return {"out": mixed_from_selected(golden, INFSA_PROJECTIONS, "out_proj", rho=golden.hyper["rho"])}
    query, key, value = golden["in_q"], golden["in_k"], golden["in_v"]
    rho = query.new_tensor(golden.hyper["rho"])
    matrix, remainder = pure_infsa_scores(query, key)
    return {"out": pure_infsa(query, key, value, rho), "mid_scores_b0h0": (rho * matrix * remainder)[0, 0]}


@runs("infsa_pure", "module")
def run_pure(golden: Golden) -> Results:
    module = golden.layer(**golden.options(embed_dim="dim", num_heads="heads"), **golden.tokens_grid())
    golden.load_into(module)
    return {"out": module(golden["in_x"])}


@runs("infsa_linear", "core")
def run_linear_core(golden: Golden) -> Results:
    if golden.is_fast:
        out = mixed_from_selected(golden, INFSA_PROJECTIONS, "out_proj", tie_qk=False, rho=golden.hyper["rho"])
        return {"out": out[:, :, :1]}
    query, key, value = golden["in_q"], golden["in_k"], golden["in_v"]
    rho = query.new_tensor(golden.hyper["rho"])
    out = linear_infsa(query, key, value, rho)
    # The file holds token 0 only: all tokens are equal, which is checked here.
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    return {"out": out[:, :, :1], "mid_scores": rho * linear_infsa_scores(query, key)}


@runs("infsa_linear", "module")
def run_linear(golden: Golden) -> Results:
    tied = golden.hyper["tied_qk"]
    module = golden.layer(**golden.options(embed_dim="dim", num_heads="heads"), **golden.tokens_grid(), tie_qk=tied)
    if tied:
        # The official module has no tied form: its file holds the same projection twice.
        for part in ("weight", "bias"):
            assert torch.equal(golden[f"w_q_proj.{part}"], golden[f"w_k_proj.{part}"])
    golden.load_into(module, without=("k_proj.weight", "k_proj.bias") if tied else ())
    return {"out": module(golden["in_x"])}


@runs("infsa_pure", "neumann")
def run_neumann(golden: Golden) -> Results:
    operators, features, gamma = golden["in_A"], golden["in_X0"], golden.hyper["gamma"]
    first = operators[0]
    return {
        "out": spectral.neumann_partial_sum(operators, features, gamma),
        "mid_term_norms": torch.linalg.matrix_norm(spectral.neumann_terms(operators, features, gamma)),
        "mid_S_fixed_A1": spectral.neumann_partial_sum([first] * golden.hyper["L"], features, gamma),
        "mid_S_inf_A1": spectral.neumann_limit(first, features, gamma),
        "mid_fundamental_frob": spectral.fundamental_matrix(first, gamma),
        "mid_fundamental_rowstoch": spectral.fundamental_matrix(spectral.row_normalize(first), gamma),
        "mid_spectral_radius_A1": spectral.perron_right(first).eigenvalue,
        "mid_max_rowsum_gammaA1": (gamma * first).sum(dim=-1).amax(),
    }


@runs("infsa_linear", "perron")
def run_perron(golden: Golden) -> Results:
    query, key = golden["in_q"], golden["in_k"]
    affinity = torch.relu(query @ key.transpose(-2, -1) / golden.hyper["head_dim"])[0]
    weights = linear_infsa_scores(query, key).squeeze(-1)
    right = spectral.perron_right(affinity, golden.hyper["iters"])
    left = spectral.perron_left(affinity, golden.hyper["iters"])
    # The stored residual is rounding error, different in every dtype and library: both are bounded, not compared.
    rounding = 20 * torch.finfo(golden.dtype).eps
    assert (right.residual <= rounding).all()
    assert (left.residual <= rounding).all()
    assert (golden["mid_residual"] <= rounding).all()
    return {
        "out": weights,
        "mid_right": right.vector,
        "mid_left": left.vector,
        "mid_lambda": right.eigenvalue,
        "mid_residual": golden["mid_residual"],
        "mid_cos_right": spectral.cosine_alignment(weights[0], right.vector),
        "mid_cos_left": spectral.cosine_alignment(weights[0], left.vector),
    }


# The tests.


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_path" in metafunc.fixturenames:
        directory = metafunc.config.getoption("--golden-dir")
        # Nothing to parametrise would be a skip; a path that cannot be read is a failure.
        paths = sorted(directory.glob("*.npz")) or [directory / "no-golden-file.npz"]
        metafunc.parametrize("golden_path", paths, ids=[path.name for path in paths])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype_name", DTYPES)
def test_golden(golden_path: Path, dtype_name: str, implementation: str) -> None:
    check(load(golden_path, dtype_name, implementation))


# Golden file, the constant to change, its wrong value.
MISTAKES = {
    "SOFT inverts with a smaller diagonal": ("soft_g8x8_h4_r2_c3.npz", "infsa_models.mechanisms.soft.DIAGONAL", 0.009),
    "FLatten takes 1e-6 against the sum": (
        "flatten_swin_g8x8_h4_p3_k5.npz",
        "infsa_models.mechanisms.flatten.MEAN_EPSILON",
        1e-6 / 64,
    ),
    "MLLA rotates with another base": ("mlla_attn_g8_h4.npz", "infsa_models.mechanisms.mlla.ROTATION_BASE", 9999.0),
    "MLLA has a larger epsilon": ("mlla_attn_g8_h4.npz", "infsa_models.mechanisms.mlla.MEAN_EPSILON", 1e-5),
    "Pure-InfSA leaves epsilon out": ("infsa_pure_core_n65_h4.npz", "infsa_models.mechanisms.infsa_pure.EPSILON", 0.0),
    "Linear-InfSA leaves epsilon out": (
        "infsa_linear_core_n65_h4.npz",
        "infsa_models.mechanisms.infsa_linear.EPSILON",
        0.0,
    ),
}
# Where ``fast`` has it in another module.
MISTAKES_OF_FAST = {
    "Linear-InfSA leaves epsilon out": ("infsa_linear_core_n65_h4.npz", "infsa_models.mean_context.EPSILON", 0.0),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16_is_no_worse_than_twice_the_official_code(golden_path: Path, implementation: str) -> None:
    """Where the official code runs in bfloat16 (SOFT's and MLLA's does not), and the file is of a layer."""
    golden = load(golden_path, "bfloat16", implementation)
    if golden.hyper.get("level") in ("neumann", "perron", "rope"):
        return
    official = golden.meta["official_bf16_max_abs_err"]
    out = compute(golden)["out"].double()
    if isinstance(official, str):
        # Its message, in place of a number.
        assert golden.meta["mechanism"] in ("soft", "mlla")
        assert out.isfinite().all()
        return
    error = (out - load(golden_path, "float64", implementation)["out"]).abs().max().item()
    assert error <= 2 * official, (error, official)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_constant_is_caught(
    mistake: str, implementation: str, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistakes = MISTAKES | MISTAKES_OF_FAST if implementation == "fast" else MISTAKES
    file_name, constant, wrong = mistakes[mistake]
    golden = load(pytestconfig.getoption("--golden-dir") / file_name, "float64", implementation)
    check(golden)
    monkeypatch.setattr(constant, wrong)
    with pytest.raises(AssertionError):
        check(golden)


def test_a_wrong_weight_is_caught(pytestconfig: pytest.Config) -> None:
    golden = load(pytestconfig.getoption("--golden-dir") / "softmax_g8x8_h4_cls1.npz", "float32")
    doubled = replace(golden, arrays={**golden.arrays, "w_proj.bias": 2 * golden["w_proj.bias"]})
    with pytest.raises(AssertionError):
        check(doubled)


def test_an_unknown_file_is_an_error(pytestconfig: pytest.Config) -> None:
    golden = load(pytestconfig.getoption("--golden-dir") / "softmax_g8x8_h4_cls1.npz", "float32")
    with pytest.raises(KeyError, match="no way to run"):
        compute(replace(golden, meta={**golden.meta, "mechanism": "unheard-of"}))


def test_an_unknown_intermediate_is_an_error(pytestconfig: pytest.Config) -> None:
    golden = load(pytestconfig.getoption("--golden-dir") / "softmax_g8x8_h4_cls1.npz", "float32")
    with pytest.raises(AssertionError, match="mid_new"):
        check(replace(golden, arrays={**golden.arrays, "mid_new": golden["out"]}))


def test_newton_gradient_is_that_of_the_inverse() -> None:
    """By design not the gradient of the iterations; golden files hold no gradients, so it is checked here."""
    torch.manual_seed(0)
    points = 3 * torch.randn(2, 3, 5, 8, dtype=torch.float64)
    # Points far apart: a kernel near the identity, for which 20 steps converge.
    kernel = gaussian_kernel(points, points).requires_grad_()
    incoming = torch.randn_like(kernel)
    ours = newton_inverse(kernel, steps=20)
    exact = torch.linalg.inv(kernel + DIAGONAL * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(ours, exact)
    (our_gradient,) = torch.autograd.grad(ours, kernel, incoming)
    (exact_gradient,) = torch.autograd.grad(exact, kernel, incoming)
    torch.testing.assert_close(our_gradient, exact_gradient)
