from __future__ import annotations

import os
from pathlib import Path

import pytest

# Hand-written kernels run in Triton's interpreter where there is no NVIDIA GPU. Triton reads this once, on its import,
# which any test may cause: so it is said before all of them.
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidiactl").exists() else "1")

GOLDEN_DIRECTORY = Path(__file__).parent / "models" / "golden"


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
