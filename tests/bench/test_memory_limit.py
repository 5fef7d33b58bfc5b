"""Limits on what a process may take, each in a process of its own. Those of a GPU are tested on one (test_gpu)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

PRELUDE = """
import json, sys
import torch
from infsa_bench.measure.memory import classify_error, release_freed_memory
from infsa_bench.measure.memory_limit import SLACK_BYTES, MemoryLimit
cpu = torch.device("cpu")
MIB = 2**20
torch.randn(256, 256) @ torch.randn(256, 256)
limit = MemoryLimit(cpu, 512 * MIB, lambda: None)
def allocate(size_bytes):
    try:
        return torch.empty(size_bytes, dtype=torch.uint8)
    except (RuntimeError, MemoryError) as error:
        return classify_error(error).kind
"""


def in_a_limited_process(script: str) -> Any:
    done = subprocess.run([sys.executable, "-c", PRELUDE + script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_fits_and_what_does_not() -> None:
    granted, fits, fails, left, is_whole = in_a_limited_process(
        """
fits = allocate(512 * MIB - SLACK_BYTES)
left = limit.left_bytes()
is_whole = limit.is_whole()
del fits
fails = allocate(512 * MIB + SLACK_BYTES)
import resource
granted = resource.getrlimit(resource.RLIMIT_DATA)[0] - limit._start_bytes
print(json.dumps([granted, True, fails, [left, limit.left_bytes()], [is_whole, limit.is_whole()]]))
"""
    )
    assert fits
    assert granted == 512 * 2**20
    assert fails == "host_oom"
    assert left[0] == pytest.approx(64 * 2**20, abs=4 * 2**20)
    assert left[1] == pytest.approx(512 * 2**20, abs=4 * 2**20)
    assert is_whole == [False, True]


def test_a_limit_that_holds_is_found_to() -> None:
    assert in_a_limited_process("print(json.dumps(limit.problem()))") is None


def test_a_limit_that_does_not_hold_is_found_out() -> None:
    """Lifted or tightened behind its back."""
    lifted = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)\n"
    found = in_a_limited_process(lifted + "print(json.dumps(limit.problem()))")
    assert found == f"an allocation {64 * 2**20} bytes over the limit succeeded"
    tightened = "held = allocate(256 * MIB); limit._start_bytes += 256 * MIB\n"
    found = in_a_limited_process(tightened + "print(json.dumps(limit.problem()))")
    assert found.startswith(f"an allocation {64 * 2**20} bytes under the limit failed: ")


def test_three_spellings_of_a_failed_allocation_are_one_kind() -> None:
    """Torch's own allocator, a C++ vector inside an operator, and Python's memory."""
    kinds = in_a_limited_process(
        """
kinds = [allocate(2**32)]
for attempt in (
    lambda: bytearray(2**32),
    lambda: torch.zeros(1).expand(2**29).tolist(),
):
    try:
        attempt()
        kinds.append("fits")
    except (RuntimeError, MemoryError) as error:
        kinds.append(classify_error(error).kind)
print(json.dumps(kinds))
"""
    )
    assert kinds == ["host_oom"] * 3


def test_without_proc_there_is_no_limit() -> None:
    done = in_a_limited_process(
        """
from infsa_bench.measure import memory_limit
memory_limit.status_bytes = lambda field: None
try:
    MemoryLimit(cpu, 512 * MIB, lambda: None)
except ValueError as error:
    print(json.dumps(str(error)))
"""
    )
    assert "no limit can be set" in done
