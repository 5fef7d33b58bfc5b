"""The machine and the libraries that a worker runs on."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import timm
import torch

from infsa_bench import __version__
from infsa_bench.errors import MeterUnavailableError
from infsa_bench.machine import Environment, GpuFacts
from infsa_bench.measure.latency import synchronize
from infsa_bench.measure.nvml import Gpu


def find_gpu(device: torch.device) -> Gpu:
    """Return NVML's view of a CUDA device: the numbers of the two need not agree, so it is found by identity.

    Raises:
        MeterUnavailableError: NVML is not there, or does not know this GPU.
    """
    properties: Any = torch.cuda.get_device_properties(device)
    address = f"{properties.pci_domain_id:08x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    return Gpu.find(f"GPU-{properties.uuid}", address)


def describe_environment(device: torch.device) -> Environment:
    """Describe the machine, its ``device`` and the libraries in use."""
    commit, dirty = git_state(Path(__file__).resolve())
    gpu: GpuFacts | None = None
    uuid = cudnn = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, uuid, memory_bytes = properties.name, f"GPU-{properties.uuid}", properties.total_memory
        cudnn = str(torch.backends.cudnn.version())
        # A GPU works without NVML; then only less is known of it.
        with contextlib.suppress(MeterUnavailableError):
            gpu = find_gpu(device).facts
    else:
        name = cpu_name()
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Environment(
        device=str(device),
        device_name=name,
        device_uuid=uuid,
        device_memory_bytes=memory_bytes,
        gpu=gpu,
        cuda_version=torch.version.cuda,
        cudnn_version=cudnn,
        torch_version=torch.__version__,
        timm_version=timm.__version__,
        python_version=platform.python_version(),
        operating_system=f"{platform.system()} {platform.release()}",
        cpu_name=cpu_name(),
        cpu_count=len(os.sched_getaffinity(0)),
        torch_threads=torch.get_num_threads(),
        float32_matmul_precision=torch.get_float32_matmul_precision(),
        cudnn_benchmark=torch.backends.cudnn.benchmark,
        tf32_convolutions=torch.backends.cudnn.allow_tf32,
        allocator_settings=os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
        infsa_bench_version=__version__,
        git_commit=commit,
        git_dirty=dirty,
    )


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Return the rate of a square matrix product on random data, timed for about ``seconds``."""
    side = 4096 if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    left @ right
    synchronize(device)
    products, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        left @ right
        synchronize(device)
        products += 1
    return 2 * side**3 * products / elapsed


def cpu_name() -> str:
    """Return the processor's name, as far as the system tells it."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def git_state(file: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the checkout that ``file`` belongs to and whether it has changes; None outside of one."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=file.parent, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    # An installed copy may lie inside somebody else's repository: only a file that git tracks tells our commit.
    if commit is None or git("ls-files", "--error-unmatch", str(file)) is None:
        return None, None
    status = git("status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else bool(status)
