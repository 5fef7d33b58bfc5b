from __future__ import annotations

from pathlib import Path

import pytest

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
