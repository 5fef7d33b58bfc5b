"""What one iteration does: a forward pass of one batch, or one training step, on seeded random inputs."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infsa_bench.execute.failures import attempt
from infsa_bench.execute.modes import MODES, Forward, IndexedForward
from infsa_bench.spec import INPUT_BUFFERS, Case, resolve_mechanisms
from infsa_models.options import parse_options
from infsa_models.registry import NUM_CLASSES, load_class
from infsa_models.vit import build_vit

_PARAMETER_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_AUTOCAST_DTYPES = {"amp-bf16": torch.bfloat16, "amp-fp16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A built case. ``call`` runs one iteration and returns its logits; ``model_bytes`` as in Measurement.

    ``is_in_backward`` tells whether the last iteration, if it failed, had reached its backward pass.

    ``count_call`` runs one iteration of the eager model, to be looked into; None where ``call`` is just that. The first
    iteration also makes the optimiser's state: ``optimizer_bytes`` tells its size once it is there.

    ``choices`` tells what the model decided by itself, once it has run.

    ``graph_twin`` captures the same iteration in CUDA graphs and returns what replays it, for comparison; None where
    the case is not eager inference on a GPU. It raises as build_workload does, and its graphs need memory.
    """

    call: Callable[[], Tensor]
    count_call: Callable[[], Tensor] | None
    graph_twin: Callable[[], Callable[[], Tensor]] | None
    choices: Callable[[], dict[str, str]]
    parameters: int
    model_bytes: int
    build_seconds: float
    is_in_backward: Callable[[], bool]
    optimizer_bytes: Callable[[], int]


def unsupported_reason(case: Case, device_type: str) -> str | None:
    """Return why ``case`` cannot run by design, or None. Nothing is built for the answer."""
    mechanism = resolve_mechanisms([case.mechanism])[case.mechanism]
    if case.implementation == "reference" and case.precision in mechanism.unsupported:
        return mechanism.unsupported[case.precision]
    if case.phase == "train" and case.precision in ("bf16", "fp16"):
        return f"training keeps float32 parameters: use fp32 or amp-{case.precision}"
    found = attempt(lambda: load_class(mechanism.implementations[case.implementation]))
    if isinstance(found, ModuleNotFoundError):
        return f"needs the package {found.name}, which is not installed"
    return MODES[case.execution].unsupported_reason(case.phase, device_type)


def build_workload(case: Case, device: torch.device) -> Workload:
    """Build the model of ``case`` on ``device``, its inputs, and the callable that is one iteration.

    Raises:
        UnsupportedError: the mode cannot take this model.
        NotImplementedError: the model cannot run as asked, e.g. with a kernel that the device lacks; so may the call.
        torch.OutOfMemoryError, RuntimeError: as torch raises them.
    """
    torch.manual_seed(case.seed)
    start = time.perf_counter()
    model = build_vit(
        resolve_mechanisms([case.mechanism])[case.mechanism],
        case.config,
        case.resolution,
        implementation=case.implementation,
        options=parse_options(case.mechanism, case.implementation, dict(case.options)),
        device=device,
        dtype=_PARAMETER_DTYPES.get(case.precision, torch.float32),
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if case.phase == "infer":
        model.fold_for_inference()
    build_seconds = time.perf_counter() - start
    images = [_random_images(case, device) for _ in range(INPUT_BUFFERS)]
    state_bytes = sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers()))
    graph_twin: Callable[[], Callable[[], Tensor]] | None = None
    count_call: Callable[[], Tensor] | None = None
    is_in_backward, optimizer_bytes = _never, _nothing
    if case.phase == "infer":
        model.eval().requires_grad_(False)
        mode = MODES[case.execution]
        forward = _forward(case, device, mode.wrap(model))
        call = _rotating(mode.prepare(forward, images), images)
        if case.execution != "eager":
            count_call = functools.partial(_forward(case, device, model), images[0])
        if case.execution == "eager" and MODES["cuda-graph"].unsupported_reason(case.phase, device.type) is None:
            graph_twin = functools.partial(_graph_twin, forward, images)
    else:
        model.train()
        training = _Training(case, device, model, images)
        call = functools.partial(training.step, MODES[case.execution].wrap(model))
        is_in_backward, optimizer_bytes = training.is_in_backward, training.optimizer_bytes
        if case.execution != "eager":
            count_call = functools.partial(training.step, model)
        # One gradient and AdamW's two moments for every parameter.
        state_bytes += 3 * sum(parameter.nbytes for parameter in model.parameters())
    return Workload(
        call=call,
        count_call=count_call,
        graph_twin=graph_twin,
        choices=functools.partial(model.choices, case.batch_size),
        parameters=parameters,
        model_bytes=state_bytes,
        build_seconds=build_seconds,
        is_in_backward=is_in_backward,
        optimizer_bytes=optimizer_bytes,
    )


def _random_images(case: Case, device: torch.device) -> Tensor:
    shape = (case.batch_size, 3, case.resolution, case.resolution)
    return torch.randn(shape, device=device, dtype=_PARAMETER_DTYPES.get(case.precision, torch.float32))


def _autocast(case: Case, device: torch.device) -> AbstractContextManager[object]:
    """Autocast, to be entered inside every call: users pay for its weight casts each time, so do we."""
    if case.precision not in _AUTOCAST_DTYPES:
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST_DTYPES[case.precision])


def _forward(case: Case, device: torch.device, run_model: Forward) -> Forward:
    def forward(batch: Tensor) -> Tensor:
        with torch.inference_mode(), _autocast(case, device):
            return run_model(batch)

    return forward


def _rotating(run: IndexedForward, images: list[Tensor]) -> Callable[[], Tensor]:
    """Return a callable that runs on each of the images in turn."""
    indices = itertools.cycle(range(len(images)))
    return lambda: run(next(indices))


def _graph_twin(forward: Forward, images: list[Tensor]) -> Callable[[], Tensor]:
    return _rotating(MODES["cuda-graph"].prepare(forward, images), images)


def _never() -> bool:
    return False


def _nothing() -> int:
    return 0


class _Training:
    """Steps of training: forward, cross-entropy on random labels, backward, AdamW; float16 with a gradient scaler."""

    def __init__(self, case: Case, device: torch.device, model: nn.Module, images: list[Tensor]) -> None:
        labels = [torch.randint(NUM_CLASSES, (case.batch_size,), device=device) for _ in images]
        self._autocast = functools.partial(_autocast, case, device)
        self._optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        self._scaler = torch.amp.GradScaler(device.type, enabled=case.precision == "amp-fp16")
        self._batches = itertools.cycle(zip(images, labels, strict=True))
        self._is_in_backward = False

    def step(self, run_model: Forward) -> Tensor:
        """Run one step on the next of the images and return its logits."""
        batch, target = next(self._batches)
        self._is_in_backward = False
        self._optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            logits = run_model(batch)
            loss = nn.functional.cross_entropy(logits, target)
        self._is_in_backward = True
        self._scaler.scale(loss).backward()
        self._is_in_backward = False
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return logits.detach()

    def is_in_backward(self) -> bool:
        """Tell whether the last step, if it failed, had reached its backward pass."""
        return self._is_in_backward

    def optimizer_bytes(self) -> int:
        """Return the size of the optimiser's state; 0 before the first step."""
        return sum(tensor.nbytes for state in self._optimizer.state.values() for tensor in state.values())
