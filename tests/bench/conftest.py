"""Fixtures of the harness's tests: an NVML to measure against where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import fake_nvml as fake


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake libnvidia-ml.so.1, alone in its folder."""
    fake = pytest.importorskip("fake_nvml", reason="needs nvidia-ml-py")
    try:
        return fake.build(tmp_path_factory.mktemp("nvml"))
    except fake.NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture
def fake_nvml(fake_nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake.FakeNvml]:
    """A fake board on a virtual clock, behind this process's pynvml and initialised."""
    import fake_nvml as fake
    import pynvml

    control = fake.FakeNvml(tmp_path / "nvml.state")
    monkeypatch.setenv("FAKENVML_STATE", str(control.file))
    with fake.installed(fake_nvml_library):
        pynvml.nvmlInit()
        yield control
        control.clear_failures()  # else an injected failure of nvmlShutdown would keep the library initialised


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file of that name in ``golden/``, or write it there with ``--update-golden``."""

    def compare(name: str, text: str) -> None:
        file = Path(__file__).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            file.write_text(text, encoding="utf-8")
        assert text == file.read_text(encoding="utf-8")

    return compare
