from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from drawn import run_of
from sample_records import make_failure, make_measurement, make_record

from infsa_bench.report.figures import render_latency_vs_resolution
from infsa_bench.report.figures.files import compacted, draw, write_drawing

RUN = run_of(
    [
        make_record(make_measurement([0.1]), mechanism="$1.23456$ 7.891011 <img src=x onerror=alert(1)>"),
        make_record(make_failure(), resolution=512),
    ]
)


def test_a_figure_is_a_png_and_an_svg(tmp_path: Path) -> None:
    png, svg = write_drawing(draw(render_latency_vs_resolution(RUN)), tmp_path, "latency")
    assert [png, svg] == [tmp_path / "latency.png", tmp_path / "latency.svg"]
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(content[start : start + 4]) for start in (16, 20))
    # 7.5 by 5.2 inches, 150 points each.
    assert (width, height) == (1125, 780)
    assert len(content) > 10_000
    root = ET.fromstring(svg.read_text(encoding="utf-8"))
    assert (root.get("width"), root.get("height")) == ("540pt", "374.4pt")


def test_names_are_text_in_the_drawing_too(tmp_path: Path) -> None:
    _, svg = write_drawing(draw(render_latency_vs_resolution(RUN)), tmp_path, "latency")
    drawing = svg.read_text(encoding="utf-8")
    assert "<img" not in drawing
    assert "<!--" not in drawing
    texts = ["".join(element.itertext()) for element in ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text")]
    assert "$1.23456$ 7.891011...=x onerror=alert(1)>"[-16:] in " ".join(texts)
    assert any(text.startswith("$1.23456$ 7.89101") for text in texts)
    assert {element.tag.rpartition("}")[2] for element in ET.fromstring(drawing).iter()}.isdisjoint(
        {"img", "script", "image", "foreignObject"}
    )


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        files = write_drawing(draw(render_latency_vs_resolution(RUN)), folder, "latency")
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    assert b"<dc:date>" not in contents[0][1]


def test_of_no_figure_no_file_is_left(tmp_path: Path) -> None:
    write_drawing(draw(render_latency_vs_resolution(RUN)), tmp_path, "latency")
    (tmp_path / "other.png").touch()
    assert write_drawing(None, tmp_path, "latency") == []
    assert [file.name for file in tmp_path.iterdir()] == ["other.png"]


def test_a_link_in_a_files_place_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("keep")
    (tmp_path / "latency.png").symlink_to(elsewhere)
    (tmp_path / "latency.svg").symlink_to(elsewhere)
    write_drawing(draw(render_latency_vs_resolution(RUN)), tmp_path, "latency")
    assert elsewhere.read_text() == "keep"
    assert not (tmp_path / "latency.png").is_symlink()


def test_only_coordinates_are_rounded() -> None:
    given = '<path d="M 1.23456 -7.8999 L 3.1 4"/><!-- a\n-- b --><text x="0.125000">1.23456</text>'
    assert compacted(given) == '<path d="M 1.23 -7.89 L 3.1 4"/><text x="0.12">1.23456</text>'
