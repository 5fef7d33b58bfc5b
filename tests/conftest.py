from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest

# Hand-written kernels run in Triton's interpreter where there is no NVIDIA GPU. Triton reads this once, on its import,
# which any test may cause: so it is said before all of them.
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidiactl").exists() else "1")

# A shell's background jobs ignore interrupts, and so would all that the tests start, to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN_DIRECTORY = Path(__file__).parent / "models" / "golden"

NEEDED = {
    "bench/test_page.py": "playwright",
    "models/test_conformance.py": "beartype",
    "models/test_golden.py": "performer_pytorch",
}
"""Files whose packages a machine with a GPU may lack, which has other tests to run."""


def is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ModuleNotFoundError, ValueError):
        return False


LACKING = {file: package for file, package in NEEDED.items() if not is_installed(package)}
# Where CI is set everything is to be there, and its absence an error.
collect_ignore = [] if os.environ.get("CI", "").lower() in ("true", "1") else list(LACKING)


def pytest_report_header() -> list[str]:
    return [f"not collected: {file}, which needs {LACKING[file]}" for file in collect_ignore]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=GOLDEN_DIRECTORY,
        help="directory of *.npz files written by the official code (default: tests/models/golden)",
    )
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the golden texts of tests/bench/golden anew; look at what changed before you commit it",
    )
