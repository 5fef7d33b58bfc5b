"""How near a model comes to what its device can do: achieved rates, and their share of the roofline.

A device does no more matrix products a second than its peak rate, and moves no more bytes. The larger of the two times
that this leaves for an iteration, over the time that it takes, is its fraction of the roofline. Peaks are measured on
the device, or those of its data sheet; the one never stands in for the other, and a device without a data sheet here
is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from infsa_bench.machine import Environment
from infsa_bench.peaks import PEAK_OF_PRECISION, MeasuredPeaks
from infsa_bench.record import OperationCount


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """What the maker states: rates of dense products that are summed up in float32; None where there are no such units.

    ``fp32_flops_per_second`` is without tensor cores: no TF32.
    """

    fp32_flops_per_second: float
    bf16_flops_per_second: float | None
    fp16_flops_per_second: float | None
    memory_bytes_per_second: float
    source: str

    def flops_of(self, precision: str) -> float | None:
        """Return the rate of matrix products in a case's precision."""
        return {
            "fp32": self.fp32_flops_per_second,
            "bf16": self.bf16_flops_per_second,
            "fp16": self.fp16_flops_per_second,
        }[PEAK_OF_PRECISION[precision]]


def _spec(half: float, fp32: float, memory: float, source: str, *, has_bf16: bool = True) -> DeviceSpec:
    """Return what a data sheet states, from teraFLOP/s and gigabytes/s as it writes them."""
    return DeviceSpec(
        fp32_flops_per_second=fp32 * 1e12,
        bf16_flops_per_second=half * 1e12 if has_bf16 else None,
        fp16_flops_per_second=half * 1e12,
        memory_bytes_per_second=memory * 1e9,
        source=source,
    )


_A100 = "NVIDIA A100 Tensor Core GPU data sheet"
_A100_40_SXM = _spec(312, 19.5, 1555, f"{_A100}, 40 GB SXM")
_A100_80_SXM = _spec(312, 19.5, 2039, f"{_A100}, 80 GB SXM")
_A100_40_PCIE = _spec(312, 19.5, 1555, f"{_A100}, 40 GB PCIe")
_A100_80_PCIE = _spec(312, 19.5, 1935, f"{_A100}, 80 GB PCIe")
_V100 = "NVIDIA V100 Tensor Core GPU data sheet"
_V100_SXM2 = _spec(125, 15.7, 900, f"{_V100}, SXM2", has_bf16=False)
_V100_PCIE = _spec(112, 14, 900, f"{_V100}, PCIe", has_bf16=False)

DATA_SHEET: Mapping[str, DeviceSpec] = {
    "A100-SXM4-40GB": _A100_40_SXM,
    "A100-SXM4-80GB": _A100_80_SXM,
    "A100-PCIE-40GB": _A100_40_PCIE,
    "A100 80GB PCIe": _A100_80_PCIE,
    # Where a sheet states rates with sparsity, half of them.
    "H100 80GB HBM3": _spec(989.5, 67, 3350, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
    "H100 PCIe": _spec(756, 51, 2000, "NVIDIA H100 Tensor Core GPU data sheet, PCIe"),
    "H100 NVL": _spec(835.5, 60, 3900, "NVIDIA H100 Tensor Core GPU data sheet, NVL"),
    "H200": _spec(989.5, 67, 4800, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
    "H200 NVL": _spec(835.5, 60, 4800, "NVIDIA H200 Tensor Core GPU data sheet, NVL"),
    "L4": _spec(121, 30.3, 300, "NVIDIA L4 Tensor Core GPU data sheet"),
    "L40S": _spec(362.05, 91.6, 864, "NVIDIA L40S data sheet"),
    "A10": _spec(125, 31.2, 600, "NVIDIA A10 Tensor Core GPU data sheet"),
    "GeForce RTX 4090": _spec(165.2, 82.6, 1008, "NVIDIA Ada GPU architecture white paper, GeForce RTX 4090"),
    "V100-SXM2-16GB": _V100_SXM2,
    "V100-SXM2-32GB": _V100_SXM2,
    "V100-PCIE-16GB": _V100_PCIE,
    "V100-PCIE-32GB": _V100_PCIE,
    "T4": _spec(65, 8.1, 320, "NVIDIA T4 product brief", has_bf16=False),
}
"""By the name that the driver gives, without its maker's: exactly that, since variants differ by much."""


def data_sheet(environment: Environment) -> DeviceSpec | None:
    """Return what is stated of the device, None for a processor, an unknown GPU, or a part of one."""
    if environment.device_type != "cuda" or (environment.gpu is not None and environment.gpu.mig_enabled):
        return None
    name = environment.device_name
    for maker in ("NVIDIA ", "Tesla "):
        name = name.removeprefix(maker)
    return DATA_SHEET.get(name)


def achieved_flops_per_second(operations: OperationCount, seconds_per_iteration: float) -> float:
    """Return the rate of matrix products, which is what peaks are of: elementwise FLOPs are not in it."""
    return operations.matmul_flops / seconds_per_iteration


def achieved_bytes_per_second(operations: OperationCount, seconds_per_iteration: float) -> float:
    """Return the rate of the operators' bytes; what caches hold makes it larger than the memory's."""
    return operations.operator_bytes / seconds_per_iteration


def roofline_fraction(
    operations: OperationCount, seconds_per_iteration: float, *, flops_per_second: float, bytes_per_second: float
) -> float:
    """Return the least time under both peaks over the time taken; above 1 where caches spare much of the memory."""
    least_seconds = max(operations.matmul_flops / flops_per_second, operations.operator_bytes / bytes_per_second)
    return least_seconds / seconds_per_iteration


def measured_fraction(
    operations: OperationCount,
    seconds_per_iteration: float,
    precision: str,
    peaks: MeasuredPeaks | None,
    environment: Environment,
) -> float | None:
    """Return the fraction of what was measured on this device; None where nothing was, in this precision."""
    if peaks is None or not peaks.are_of(environment):
        return None
    flops_per_second = peaks.flops_of(precision)
    if flops_per_second is None:
        return None
    return roofline_fraction(
        operations,
        seconds_per_iteration,
        flops_per_second=flops_per_second,
        bytes_per_second=peaks.copied_bytes_per_second.per_second,
    )


def datasheet_fraction(
    operations: OperationCount, seconds_per_iteration: float, precision: str, environment: Environment
) -> float | None:
    """Return the fraction of what the maker states; None where that is not known, in this precision."""
    spec = data_sheet(environment)
    flops_per_second = None if spec is None else spec.flops_of(precision)
    if spec is None or flops_per_second is None:
        return None
    return roofline_fraction(
        operations,
        seconds_per_iteration,
        flops_per_second=flops_per_second,
        bytes_per_second=spec.memory_bytes_per_second,
    )
