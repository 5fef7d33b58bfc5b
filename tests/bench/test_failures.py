"""What an exception becomes in a record; the kinds of exceptions are told apart in test_memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from infsa_bench.execute.failures import describe_failure, first_line
from infsa_bench.execute.instruments import open_instruments
from infsa_bench.execute.modes import UnsupportedError

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\ntwo", "one"),
        ("", "ValueError"),
        (" \n", "ValueError"),
        ("a \ud800 b", "a \ufffd b"),
        ("\x1b[31mred\x1b[0m", "\ufffd[31mred\ufffd[0m"),
        ("x" * 200_000, "x" * 300 + "..."),
    ],
)
def test_the_first_line_of_an_error_can_be_stored_and_shown(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line
    assert line.encode()


def test_memory_is_told_where_it_is_about_memory() -> None:
    instruments = open_instruments(CPU)
    failure = describe_failure(MemoryError(), "timing", instruments)
    assert (failure.kind, failure.cause, failure.exception) == ("host_oom", "allocation", "MemoryError")
    assert failure.free_bytes is not None
    assert failure.free_bytes > 2**20
    assert failure.allocated_bytes is not None
    assert failure.reserved_bytes is None
    failure = describe_failure(ValueError("no"), "timing", instruments)
    assert (failure.kind, failure.cause, failure.free_bytes, failure.allocated_bytes) == ("error", None, None, None)
    failure = describe_failure(UnsupportedError("cannot be captured"), "build", instruments)
    assert (failure.kind, failure.cause, failure.message) == ("unsupported", None, "cannot be captured")


@pytest.mark.parametrize(
    ("allocated_gib", "reserved_gib", "cause"),
    [(70, 75, "allocation"), (70, 77.9, "allocation"), (70, 78.1, "fragmentation"), (30, 60, "fragmentation")],
)
def test_memory_that_is_free_in_pieces(
    monkeypatch: pytest.MonkeyPatch, allocated_gib: float, reserved_gib: float, cause: str
) -> None:
    """A card of 80 GiB, as torch would describe it."""
    instruments = SimpleNamespace(
        device=GPU,
        peak_memory=SimpleNamespace(
            held_bytes=lambda: round(allocated_gib * 2**30), reserved_bytes=lambda: round(reserved_gib * 2**30)
        ),
        available_bytes=lambda: 2**20,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.25 GiB.")
    failure = describe_failure(error, "forward", instruments)  # type: ignore[arg-type]
    assert (failure.kind, failure.cause, failure.free_bytes) == ("oom", cause, 2**20)
    # A workspace is not the allocator's to lay out.
    error = RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
    assert describe_failure(error, "forward", instruments).cause == "workspace"  # type: ignore[arg-type]


def test_a_device_that_no_longer_answers_leaves_what_is_known() -> None:
    def fail() -> int:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    instruments = SimpleNamespace(device=GPU, peak_memory=SimpleNamespace(held_bytes=fail, reserved_bytes=fail))
    failure = describe_failure(torch.OutOfMemoryError("CUDA out of memory."), "forward", instruments)  # type: ignore[arg-type]
    assert (failure.kind, failure.cause, failure.allocated_bytes, failure.free_bytes) == (
        "oom",
        "allocation",
        None,
        None,
    )
