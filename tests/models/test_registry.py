"""The table of mechanisms, and how other packages add to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from infsa_models.registry import (
    CONFIGS,
    ENTRY_POINT_GROUP,
    MECHANISMS,
    PATCH_SIZE,
    Mechanism,
    available,
    external,
    load_class,
)

NAMES = ["softmax", "linformer", "performer", "soft", "flatten", "agent", "mlla", "infsa-pure", "infsa-linear"]
PRECISIONS = {"fp32", "bf16", "fp16", "amp-bf16", "amp-fp16"}

every_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)


def test_the_table_has_the_nine() -> None:
    assert sorted(MECHANISMS) == sorted(NAMES)


@every_mechanism
def test_an_entry_is_complete(mechanism: str) -> None:
    entry = MECHANISMS[mechanism]
    assert entry.title
    assert entry.citation
    assert entry.complexity.startswith("O(")
    assert "reference" in entry.implementations
    assert set(entry.unsupported) <= PRECISIONS
    assert all(entry.unsupported.values())
    assert all(departure.strip() == departure != "" for departure in entry.departures)


@every_mechanism
def test_titles_are_unique(mechanism: str) -> None:
    assert [entry.title for entry in MECHANISMS.values()].count(MECHANISMS[mechanism].title) == 1


@every_mechanism
def test_every_implementation_can_be_imported(mechanism: str) -> None:
    for target in MECHANISMS[mechanism].implementations.values():
        assert issubclass(load_class(target), nn.Module)


def test_backbones() -> None:
    assert {name: (b.depth, b.num_heads, b.embed_dim) for name, b in CONFIGS.items()} == {
        "4L-64H": (4, 64, 1024),
        "24L-16H": (24, 16, 1024),
    }
    assert PATCH_SIZE == 16


def test_an_external_mechanism_needs_no_import() -> None:
    mechanism = external("not_installed.attention:TheirAttention")
    assert mechanism.title == "TheirAttention"
    assert mechanism.implementations == {"reference": "not_installed.attention:TheirAttention"}
    assert external("a:B", title="Theirs").title == "Theirs"


@pytest.mark.parametrize(
    "target", ["x", "", ":", "os:", ":Class", "a b:c", "a:b c", "a..b:C", "a.b:C.d", "a/b:C", "a:b:c"]
)
def test_a_malformed_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"not of the form package\.module:Class"):
        external(target)


@pytest.mark.parametrize("target", ["os:system", "os:no_such_name", "torch.nn:functional", "collections:OrderedDict"])
def test_only_module_classes_are_loaded(target: str) -> None:
    with pytest.raises(TypeError, match=r"not a torch\.nn\.Module class"):
        load_class(target)


def test_a_missing_module_is_an_import_error() -> None:
    with pytest.raises(ImportError):
        load_class("infsa_models.no_such_module:Class")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on ``sys.path``; see :func:`install`."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(directory: Path, **entry_points: str) -> None:
    """Make ``directory`` hold an installed distribution with these mechanisms."""
    metadata = directory / "their_attention-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-attention\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{ENTRY_POINT_GROUP}]", *lines, ""]))


def test_an_installed_package_adds_a_mechanism(installed: Path) -> None:
    install(installed, theirs="their_attention:TheirAttention")
    (installed / "their_attention.py").write_text("from torch import nn\n\nclass TheirAttention(nn.Module): ...\n")
    found = available()
    assert list(found) == [*MECHANISMS, "theirs"]
    assert found["theirs"] == Mechanism(
        title="theirs",
        implementations={"reference": "their_attention:TheirAttention"},
        complexity="not stated",
        citation="not stated",
    )
    assert load_class(found["theirs"].implementations["reference"]).__name__ == "TheirAttention"


def test_an_installed_package_cannot_replace_a_mechanism(installed: Path) -> None:
    install(installed, softmax="their_attention:TheirAttention")
    with pytest.raises(ValueError, match="'softmax' of their_attention:TheirAttention exists already"):
        available()


def test_without_entry_points_the_table_is_all() -> None:
    assert available() == dict(MECHANISMS)


def test_imports_no_torch() -> None:
    program = (
        "import sys; from infsa_models.registry import available, external; import infsa_models.cost;"
        "available(); external('a:B'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
