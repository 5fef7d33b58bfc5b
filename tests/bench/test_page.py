"""The page, opened from file:// in a real browser."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from browser import MISSING, find_browser, opened_browser
from playwright.sync_api import Browser, Page
from sample_records import make_failure, make_measurement, make_record
from sample_runs import (
    GPU_ENVIRONMENT,
    HOSTILE,
    HOSTILE_TEXTS,
    hostile_run,
    ordinary_records,
    run_of,
    times,
)
from table1_records import run_of as table1_run
from table1_records import table1_records

from infsa_bench.codec import encode
from infsa_bench.report.figures import FIGURES
from infsa_bench.report.page import render_page
from infsa_bench.report.paper_sections import paper_sections
from infsa_bench.report.sections import Section, text_table
from infsa_bench.report.side_by_side import run_letter
from infsa_bench.report.table import render_csv

ORDINARY = run_of(ordinary_records())
OTHER = run_of(
    [*ordinary_records(0.5)[2:], make_record(make_measurement(times(0.5)), mechanism="agent")],
    Path("results/other"),
    GPU_ENVIRONMENT,
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One for all tests of this file, and no longer: what measures time needs the processor."""
    with opened_browser() as browser:
        yield browser


RENDERED = {"ordinary": [ORDINARY], "hostile": [hostile_run()], "two": [ORDINARY, OTHER]}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages as files: of an ordinary run, of a hostile one, of two runs."""
    files = {}
    for name, runs in RENDERED.items():
        files[name] = tmp_path_factory.mktemp(name) / "index.html"
        files[name].write_text(render_page(runs), encoding="utf-8", errors="backslashreplace")
    return files


@dataclass
class Visit:
    """A page that is open, and what it did that it must not do."""

    page: Page
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def evaluate(self, script: str) -> Any:
        return self.page.evaluate(script)


class Visitor:
    """Opens pages, and checks at the end that none of them complained or asked for anything."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._visits: list[tuple[Path, Visit]] = []

    def open(self, file: Path, width: int = 1600, scheme: str = "light") -> Visit:
        context = self._browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        visit = Visit(context.new_page())
        self._visits.append((file, visit))
        visit.page.on("console", lambda message: visit.faults.append(f"console: {message.text}"))
        visit.page.on("pageerror", lambda error: visit.faults.append(f"error: {error}"))
        visit.page.on("dialog", lambda dialog: (visit.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.goto(file.as_uri())
        return visit

    def check(self) -> None:
        for file, visit in self._visits:
            assert visit.faults == []
            assert [url for url in visit.requests if not url.startswith(("data:", file.as_uri()))] == []
            visit.page.context.close()


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take most of the time of a page."""
    for module in ("images", "figures"):
        monkeypatch.setattr(f"infsa_bench.report.{module}.FIGURES", {})


@pytest.fixture
def visitor(chromium: Browser) -> Iterator[Visitor]:
    visitor = Visitor(chromium)
    yield visitor
    visitor.check()


COLUMN = """(title) => {
    const table = document.querySelector("#s4 table.sortable");
    const headers = Array.from(table.tHead.rows[table.tHead.rows.length - 1].cells);
    const index = headers.findIndex((header) => header.textContent.trim() === title);
    return Array.from(table.tBodies[0].rows).map((row) => row.cells[index].textContent.trim());
}"""


def column(visit: Visit, title: str) -> list[str]:
    """The cells of a column of the first table of results, in the order shown."""
    found = visit.page.evaluate(COLUMN, title)
    assert isinstance(found, list)
    return found


def press(visit: Visit, title: str) -> str:
    """Press a header of the first table of results; return what it says of its order then."""
    header = visit.page.locator("#s4 table").first.locator("thead th", has_text=title).first
    header.get_by_role("button").click()
    return header.get_attribute("aria-sort") or ""


def milliseconds(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


@pytest.mark.parametrize("name", ["ordinary", "hostile", "two"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [380, 1600])
def test_the_page_opens_without_a_word_and_fits(
    visitor: Visitor, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    visit = visitor.open(pages[name], width, scheme)
    assert visit.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.evaluate("Array.from(document.querySelectorAll('details')).map(d => d.open = true).length") > 0
    assert visit.evaluate("document.documentElement.scrollWidth") <= width
    wide = "Array.from(document.querySelectorAll('.scroll')).filter(s => s.scrollWidth > s.clientWidth).length"
    if width == 380:
        assert visit.evaluate(wide) > 0


def test_every_figure_loads_and_is_described(visitor: Visitor, pages: dict[str, Path]) -> None:
    shown = {name: [kind.render(run) for run in runs for kind in FIGURES.values()] for name, runs in RENDERED.items()}
    for name, figures in shown.items():
        count = sum(figure is not None for figure in figures)
        assert count >= 2
        visit = visitor.open(pages[name])
        images = visit.evaluate("Array.from(document.images).map(image => [image.naturalWidth, image.alt])")
        assert len(images) == count
        assert all(width > 0 and len(alternative) > 20 for width, alternative in images)


def test_a_figure_that_is_clicked_fills_the_window_until_something_else_is(
    visitor: Visitor, pages: dict[str, Path]
) -> None:
    for width in (380, 1600):
        visit = visitor.open(pages["ordinary"], width)
        image = visit.page.locator("figure img").first
        before = image.bounding_box()
        image.click()
        enlarged = image.bounding_box()
        assert before is not None
        assert enlarged is not None
        assert (enlarged["x"], enlarged["y"], enlarged["width"]) == (0, 0, width)
        visit.evaluate("document.activeElement.blur()")
        after = image.bounding_box()
        assert after is not None
        assert (after["width"], after["height"]) == (before["width"], before["height"])


def test_a_figure_without_data_is_named(visitor: Visitor, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text(render_page([run_of([make_record()])]), encoding="utf-8")
    visit = visitor.open(page)
    text = visit.page.inner_text("main")
    assert "Energy of an image against resolution: no figure, it needs measured energy: a GPU with NVML, or" in text
    assert "Power over time: no figure, it needs a power trace" in text
    assert visit.evaluate("document.images.length") < len(FIGURES)


def test_columns_sort_as_numbers_up_down_and_back(visitor: Visitor, pages: dict[str, Path]) -> None:
    visit = visitor.open(pages["ordinary"])
    before = column(visit, "latency")
    assert press(visit, "latency") == "ascending"
    rising = column(visit, "latency")
    numbers = [milliseconds(text) for text in rising if text]
    assert numbers == sorted(numbers)
    assert len({text.split()[1] for text in rising if text}) > 1, "a test of units, too"
    assert rising[-1] == "", "what has no number stands last"
    assert press(visit, "latency") == "descending"
    falling = column(visit, "latency")
    assert [milliseconds(text) for text in falling if text] == sorted(numbers, reverse=True)
    assert falling[-1] == ""
    assert press(visit, "latency") == "none"
    assert column(visit, "latency") == before


def test_sorting_keeps_the_order_of_equals_and_one_column_at_a_time(visitor: Visitor, pages: dict[str, Path]) -> None:
    visit = visitor.open(pages["ordinary"])
    press(visit, "latency")
    assert press(visit, "mechanism") == "ascending"
    names = column(visit, "mechanism")
    assert names == sorted(names)
    resolutions = [side for name, side in zip(names, column(visit, "resolution"), strict=True) if name == "linformer"]
    assert resolutions == sorted(resolutions, key=int)
    orders = visit.evaluate(
        "Array.from(document.querySelectorAll('#s4 table:first-of-type th[aria-sort]'))"
        ".map(header => header.getAttribute('aria-sort')).filter(order => order !== 'none')"
    )
    assert orders == ["ascending"]


def test_sorting_works_from_the_keyboard(visitor: Visitor, pages: dict[str, Path]) -> None:
    visit = visitor.open(pages["ordinary"])
    visit.page.locator("#s4 thead button", has_text="resolution").first.focus()
    visit.page.keyboard.press("Enter")
    visit.page.keyboard.press("Enter")
    assert column(visit, "resolution")[0] == "1024"


def test_filters_combine_and_count(visitor: Visitor, pages: dict[str, Path]) -> None:
    visit = visitor.open(pages["ordinary"])
    results, count = visit.page.locator("#s4"), visit.page.locator("#s4 [data-count]")
    shown = results.locator("tbody tr:visible")
    assert count.inner_text() == "36 of 36 rows"
    results.get_by_label("mechanism").select_option(label="linformer")
    assert count.inner_text() == "12 of 36 rows"
    results.get_by_label("implementation").select_option(label="fast")
    results.get_by_label("phase").select_option(label="train")
    assert (count.inner_text(), shown.count()) == ("3 of 36 rows", 3)
    assert results.locator(".block:visible").count() == 1, "a block without rows goes"
    results.get_by_label("Text").fill("not_converged  LINFORMER")
    assert (count.inner_text(), shown.count()) == ("1 of 36 rows", 1)
    results.get_by_label("Text").fill("nothing of the kind")
    assert (count.inner_text(), shown.count()) == ("0 of 36 rows", 0)
    results.get_by_label("Text").fill("")
    for name in ("mechanism", "implementation", "phase"):
        results.get_by_label(name).select_option(label="all")
    results.get_by_label("status").select_option(label="oom")
    assert (count.inner_text(), shown.count()) == ("2 of 36 rows", 2)
    press(visit, "latency")
    assert shown.count() == 2, "sorting keeps what is filtered"


def test_more_columns_are_shown_on_request(visitor: Visitor, pages: dict[str, Path]) -> None:
    visit = visitor.open(pages["ordinary"])
    processes = visit.page.locator("#s4 thead th", has_text="processes").first
    assert not processes.is_visible()
    visit.page.get_by_label("all columns").check()
    assert processes.is_visible()


CONTRAST = """(selector) => {
    const parse = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => {
        const [r, g, b] = rgb.slice(0, 3).map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return Array.from(document.querySelectorAll(selector)).slice(0, 40).map((element) => {
        let ground = element;
        while (ground && (parse(getComputedStyle(ground).backgroundColor)[3] ?? 1) === 0) ground = ground.parentElement;
        const back = light(parse(getComputedStyle(ground).backgroundColor));
        const front = light(parse(getComputedStyle(element).color));
        return (Math.max(back, front) + 0.05) / (Math.min(back, front) + 0.05);
    });
}"""


TEXTS = (
    "h1", "h2", "p", ".subtitle", "nav a", ".finding strong", ".finding li", ".finding .subject", ".facts dt",
    ".facts dd", ".filters span", ".filters .count", "select", "caption", "thead button", "tbody th", "tbody td",
    ".lacking td", ".flag",
    "figcaption", "summary", "pre code", ".downloads span", ".remarks li",
)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(visitor: Visitor, pages: dict[str, Path], scheme: str) -> None:
    visit = visitor.open(pages["ordinary"], scheme=scheme)
    contrasts = {selector: visit.page.evaluate(CONTRAST, selector) for selector in TEXTS}
    assert [selector for selector, found in contrasts.items() if not found] == []
    assert {selector: min(found) for selector, found in contrasts.items() if min(found) < 4.5} == {}
    grounds = visit.page.evaluate(CONTRAST.replace("return (Math", "return back; return (Math"), "main p")
    assert (grounds[0] < 0.1) == (scheme == "dark")


def test_hostile_texts_show_as_text(visitor: Visitor, pages: dict[str, Path]) -> None:
    visit = visitor.open(pages["hostile"])
    visit.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    visit.page.wait_for_timeout(200)
    text = visit.page.inner_text("body")
    assert all(hostile in text for hostile in HOSTILE_TEXTS)
    assert visit.page.inner_text("h1") == HOSTILE
    assert visit.page.title() == f"{HOSTILE} · infsa-bench"
    assert (
        visit.evaluate("document.querySelectorAll('img[src=\"x\"], svg, script, h1, [onmouseover], [onload]').length")
        == 2
    )
    assert visit.evaluate("Array.from(document.images).every(image => image.src.startsWith('data:'))")
    # The texts are values of filters as well.
    visit.page.locator("#s4").get_by_label("mechanism").select_option(label=HOSTILE_TEXTS[2])
    assert visit.page.inner_text("#s4 [data-count]") == "2 of 14 rows"
    links = visit.evaluate("Array.from(document.links).map(link => link.getAttribute('href'))")
    assert all(link.startswith(("#", "data:")) for link in links)
    names = visit.evaluate("Array.from(document.querySelectorAll('a[download]')).map(link => link.download)")
    assert names[0] == "img_src_x_onerror_alert_1.table.csv"


def test_nothing_but_the_page_s_own_script_runs(visitor: Visitor, tmp_path: Path) -> None:
    """Even if a text came through unescaped: the browser is told which script and style are the page's."""
    page = tmp_path / "index.html"
    injected = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"
    page.write_text(render_page([run_of([make_record()])]).replace("</main>", f"{injected}</main>"), encoding="utf-8")
    visit = visitor.open(page)
    visit.page.wait_for_timeout(200)
    assert visit.page.title() == "example · infsa-bench"
    assert len([fault for fault in visit.faults if "Content Security Policy" in fault]) >= 2
    visit.faults.clear()
    visit.requests.clear()


def test_downloads_are_the_files(visitor: Visitor, pages: dict[str, Path]) -> None:
    visit = visitor.open(pages["ordinary"])
    found = {}
    for link in visit.page.locator("a[download]").all():
        with visit.page.expect_download() as started:
            link.click()
        found[started.value.suggested_filename] = Path(started.value.path()).read_bytes()
    assert list(found) == ["example.table.csv", "example.records.jsonl.gz", "example.manifest.json.gz"]
    assert found["example.table.csv"].decode() == render_csv(ORDINARY.rows)
    lines = gzip.decompress(found["example.records.jsonl.gz"]).decode().splitlines()
    assert lines == [encode(record) for record in ORDINARY.records]
    visit.requests.clear()


def test_runs_stand_side_by_side(visitor: Visitor, pages: dict[str, Path]) -> None:
    visit = visitor.open(pages["two"])
    text = visit.page.inner_text("main")
    assert "0.500x\nthe latency of A: median over the 32 cells that have a number in both" in text.replace("\n\n", "\n")
    assert "device name\tXeon 8481C\tNVIDIA H200" in visit.page.inner_text("#s3")
    joined = visit.page.locator("#s4")
    assert joined.locator("[data-count]").inner_text() == "37 of 37 rows"
    rows = [[cell.strip() for cell in row.split("\t")] for row in joined.locator("tbody tr").all_inner_texts()]
    by_cell = {tuple(row[:4]): row[4:] for row in rows}
    assert by_cell["linformer", "fast", "512", "infer"][:5] == [
        "39.1 ms", "38.6 .. 39.5 ms", "19.5 ms", "19.3 .. 19.8 ms", "0.500 (0.488 .. 0.512)",
    ]  # fmt: skip
    assert by_cell["softmax", "fast", "224", "infer"][2] == "not in this run"
    assert by_cell["agent", "reference", "224", "infer"][0] == "not in this run"
    assert by_cell["agent", "reference", "224", "infer"][4] == "no number in A"
    assert by_cell["softmax", "reference", "1024", "train"][::2][:2] == ["oom", "oom"]
    for letter in "AB":
        assert visit.page.locator(f"#run-{letter}").is_visible()
        assert visit.page.locator(f"#run-{letter}-s4 tbody tr").count() > 30
    assert visit.evaluate(
        "new Set(Array.from(document.querySelectorAll('[id]')).map(e => e.id)).size"
    ) == visit.evaluate("document.querySelectorAll('[id]').length")


@pytest.mark.usefixtures("no_figures")
def test_a_run_of_432_cells_stays_usable(visitor: Visitor, tmp_path: Path) -> None:
    records = [
        make_record(make_measurement(times(0.01 * (1 + index))), mechanism=f"m{index % 9}", resolution=16 * (1 + index))
        for index in range(432)
    ]
    page = tmp_path / "index.html"
    page.write_text(render_page([run_of(records)]), encoding="utf-8")
    assert page.stat().st_size < 4e6
    visit = visitor.open(page)
    took = visit.evaluate("""() => {
        const begin = performance.now();
        document.querySelectorAll("#s4 thead button")[4].click();
        const text = document.querySelector("#s4 [data-text]");
        text.value = "m3";
        text.dispatchEvent(new Event("input", { bubbles: true }));
        document.body.getBoundingClientRect();
        return performance.now() - begin;
    }""")
    assert took < 1000
    assert visit.page.inner_text("#s4 [data-count]") == "48 of 432 rows"


def test_the_same_runs_give_the_same_page(pages: dict[str, Path]) -> None:
    assert render_page([ORDINARY]) == pages["ordinary"].read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_figures")
def test_table_1_beside_the_paper_filters_sorts_and_shows_more_on_request(visitor: Visitor, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    run = table1_run(table1_records("reference") + table1_records("fast"))
    page.write_text(render_page([run], paper_sections(run)), encoding="utf-8")
    visit = visitor.open(page)
    titles = visit.evaluate("Array.from(document.querySelectorAll('h2')).map(title => title.textContent.trim())")
    assert [title.partition(":")[0] for title in titles if "paper" in title] == [
        "What of the paper reproduces",
        "Beside the paper",
    ] * 2
    first = next(title for title in titles if title.startswith("Beside the paper"))
    assert first == "Beside the paper: fast, bf16 and amp-bf16, eager"
    section = f"Array.from(document.querySelectorAll('section')).find(s => s.innerText.startsWith({json.dumps(first)}))"
    shown = f"Array.from({section}.querySelectorAll('tbody tr')).filter(row => row.offsetParent).length"
    everything = visit.evaluate(shown)
    assert everything > 27
    heading = visit.page.get_by_role("heading", name=first, exact=True)
    visit.page.locator("section", has=heading).locator("select[data-filter=mechanism]").select_option("performer")
    assert visit.evaluate(shown) == 3
    detail = f"Array.from({section}.querySelectorAll('th.detail, td.detail')).filter(cell => cell.offsetParent).length"
    assert visit.evaluate(detail) == 0


@pytest.mark.usefixtures("no_figures")
def test_other_sections_follow_the_results() -> None:
    extra = Section(
        title="Beside the paper", paragraphs=(HOSTILE,), tables=(text_table("Table 1", ("a", "b"), [("1", "2")]),)
    )
    page = render_page([ORDINARY], [extra])
    titles = ("Headline", "Results", "Beside the paper", "How to read the numbers")
    positions = [page.index(f">{title}</h2>") for title in titles]
    assert positions == sorted(positions)
    assert HOSTILE not in page
    assert "Table 1" in page


def test_the_page_has_no_address_but_its_own_parts(pages: dict[str, Path]) -> None:
    page = pages["ordinary"].read_text(encoding="utf-8")
    for uri in ("http://", "https://", "//cdn", "@import", "url("):
        assert uri not in page
    assert "default-src &#39;none&#39;" not in page
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in page


def test_figures_in_the_page_do_not_say_when_they_were_made(pages: dict[str, Path]) -> None:
    page = pages["ordinary"].read_text(encoding="utf-8")
    start = page.index("data:image/svg+xml;base64,") + len("data:image/svg+xml;base64,")
    svg = base64.b64decode(page[start : page.index('"', start)]).decode()
    assert "<dc:date>" not in svg


def test_a_run_without_any_number_has_a_page() -> None:
    page = render_page([run_of([make_record(make_failure("crash", "died"))])])
    assert "No cell has a number" in page


def test_letters_go_on_after_z() -> None:
    assert [run_letter(index) for index in (0, 1, 25, 26, 27, 701, 702)] == ["A", "B", "Z", "AA", "AB", "ZZ", "AAA"]


def test_a_missing_browser_is_a_failure_where_ci_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="install chromium"):
        find_browser()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="install chromium"):
        find_browser()
    assert "chromium-browser" in MISSING
