"""One distribution, two import packages, nothing else at the top level."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from infsa_bench import __version__

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_both_packages_and_their_data(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    dist_info = f"infsa_bench-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"infsa_bench", "infsa_models", dist_info}
    assert {
        "infsa_bench/py.typed",
        "infsa_models/py.typed",
        "infsa_bench/paper/table1.csv",
        "infsa_bench/paper/stress_test.csv",
        "infsa_bench/report/page.html.jinja",
        "infsa_bench/report/page.css",
        "infsa_bench/report/page.js",
        f"{dist_info}/licenses/LICENSE",
    } <= set(names)


def test_no_stray_modules_become_top_level_imports() -> None:
    assert list((ROOT / "bench").glob("*.py")) == []
    assert list((ROOT / "models").glob("*.py")) == []
