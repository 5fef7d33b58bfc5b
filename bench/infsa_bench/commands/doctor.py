"""``infsa-bench doctor``: what can be measured on this machine."""

from __future__ import annotations

from rich.console import Console

from infsa_bench.commands.options import check_device
from infsa_bench.execute.launcher import Launcher


def doctor(device: str, selfcheck: bool, console: Console) -> int:
    """Print one line a finding; return the exit code: 1 if a check failed, else 0.

    Raises:
        SpecError: the device cannot be used.
        SweepStoppedError: the worker did not start, or did not survive the diagnosis.
    """
    check_device(device)
    with Launcher(device) as launcher:
        findings = launcher.diagnose(selfcheck)
    name_width = max((len(finding.name) for finding in findings), default=0)
    verdict_width = max((len(finding.verdict) for finding in findings), default=0)
    for finding in findings:
        line = f"{finding.name:<{name_width}}  {finding.verdict:<{verdict_width}}  {finding.detail}".rstrip()
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 1 if any(finding.verdict == "fail" for finding in findings) else 0
