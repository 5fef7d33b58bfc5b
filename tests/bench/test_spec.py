from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sample_records import make_case

from infsa_bench.errors import SpecError, UnknownNameError
from infsa_bench.spec import (
    EXECUTIONS,
    LADDER,
    MAX_BATCH_SIZE,
    MAX_RESOLUTION,
    PHASES,
    PRECISIONS,
    Case,
    Sweep,
    parse_batch_sizes,
    parse_configs,
    parse_duration,
    parse_mechanisms,
    parse_names,
    parse_resolutions,
    resolve_mechanisms,
)
from infsa_models import registry

ARABIC_224 = "\u0662\u0662\u0664"
NINE = (
    "softmax",
    "linformer",
    "performer",
    "soft",
    "flatten",
    "agent",
    "mlla",
    "infsa-pure",
    "infsa-linear",
)


def make_sweep(**changes: Any) -> Sweep:
    axes: dict[str, Any] = {
        "mechanisms": ("softmax", "infsa-linear"),
        "implementations": ("reference",),
        "configs": ("4L-64H",),
        "resolutions": (224, 512),
        "phases": ("infer",),
        "precisions": (),
        "executions": ("eager",),
        "batch_sizes": (1,),
    }
    return Sweep(**axes | changes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("224", (224,)),
        ("1024,224", (224, 1024)),
        (" 224 , 1024 ", (224, 1024)),
        ("224,224,224..384", (224, 384)),
        ("224..1024", (224, 384, 512, 768, 1024)),
        ("224..9216", LADDER),
        ("16..32768", LADDER),
        ("240..512", (384, 512)),
        ("9216..9216", (9216,)),
        ("16", (16,)),
        (str(MAX_RESOLUTION), (MAX_RESOLUTION,)),
        ("224..384,1040", (224, 384, 1040)),
    ],
)
def test_resolutions(text: str, expected: tuple[int, ...]) -> None:
    assert parse_resolutions(text) == expected


@pytest.mark.parametrize(
    ("text", "part_of_message"),
    [
        ("", "empty resolution in ''"),
        (" ", "empty resolution in ' '"),
        (",", "empty resolution in ','"),
        ("224,,512", "empty resolution in '224,,512'"),
        ("224,", "empty resolution in '224,'"),
        ("225", "resolution 225 is not a positive multiple of 16"),
        ("0", "resolution 0 is not a positive multiple of 16"),
        ("-224", "resolution -224 is not a positive multiple of 16"),
        ("-0", "resolution 0 is not a positive multiple of 16"),
        ("big", "resolution 'big' is not a whole number"),
        ("224px", "'224px' is not a whole number"),
        ("224.0", "'224.0' is not a whole number"),
        ("1e3", "'1e3' is not a whole number"),
        ("0xE0", "'0xE0' is not a whole number"),
        ("2_24", "'2_24' is not a whole number"),
        ("+224", "'+224' is not a whole number"),
        ("--224", "'--224' is not a whole number"),
        (ARABIC_224, "is not a whole number"),
        ("2\u00b2", "is not a whole number"),
        ("224\n512", "is not a whole number"),
        (str(MAX_RESOLUTION + 16), f"resolution {MAX_RESOLUTION + 16} is above {MAX_RESOLUTION}"),
        ("16" * 5000, "is not a whole number"),
        ("1024..224", "resolution range '1024..224' is reversed: write 224..1024"),
        ("..224", "resolution '' is not a whole number"),
        ("224..", "resolution '' is not a whole number"),
        ("..", "resolution '' is not a whole number"),
        ("224...512", "'.512' is not a whole number"),
        ("224..512..1024", "'512..1024' is not a whole number"),
        ("224..1000", "resolution 1000 is not a positive multiple of 16"),
        ("16..208", "no step of the ladder"),
        ("240..368", "lies in '240..368'"),
    ],
)
def test_bad_resolutions(text: str, part_of_message: str) -> None:
    assert part_of_message in refusal(parse_resolutions, text)


@settings(deadline=None)
@given(
    st.one_of(
        st.text(),
        st.text(alphabet="0123456789.,- \n"),
        st.lists(st.one_of(st.integers(-100, 40000).map(str), st.just("..")), max_size=6).map(",".join),
        st.tuples(st.integers(0, 2100), st.integers(0, 2100)).map(lambda pair: f"{pair[0] * 16}..{pair[1] * 16}"),
    )
)
@example("224..1024,16")
@example("\x00")
@example(ARABIC_224)
def test_resolutions_are_sorted_multiples_of_the_patch_size_or_refused(text: str) -> None:
    try:
        resolutions = parse_resolutions(text)
    except SpecError:
        return
    assert resolutions
    assert resolutions == tuple(sorted(set(resolutions)))
    assert all(type(value) is int and 0 < value <= MAX_RESOLUTION and value % 16 == 0 for value in resolutions)


@settings(deadline=None)
@given(st.text())
@example("--1")
@example("nan")
@example("1" * 5000)
def test_no_parser_raises_anything_but_spec_errors(text: str) -> None:
    for parse in (parse_resolutions, parse_batch_sizes, parse_mechanisms, parse_configs, parse_duration):
        message = ""
        try:
            parse(text)
        except SpecError as error:
            message = str(error)
        assert "\n" not in message


def test_batch_sizes_keep_their_order() -> None:
    assert parse_batch_sizes("8,1,8") == (8, 1)
    assert parse_batch_sizes(str(MAX_BATCH_SIZE)) == (MAX_BATCH_SIZE,)


@pytest.mark.parametrize(
    ("text", "part_of_message"),
    [
        ("0", "batch size 0 is not between 1 and 65536"),
        ("-1", "batch size -1 is not between 1 and 65536"),
        ("65537", "batch size 65537 is not between 1 and 65536"),
        ("1,0", "batch size 0 is not"),
        ("one", "batch size 'one' is not a whole number"),
        ("1.5", "is not a whole number"),
        ("\u0661", "is not a whole number"),
        ("9" * 13, "is not a whole number"),
        ("", "empty batch size in ''"),
        ("1,", "empty batch size in '1,'"),
    ],
)
def test_bad_batch_sizes(text: str, part_of_message: str) -> None:
    assert part_of_message in refusal(parse_batch_sizes, text)


def test_names_keep_their_order_without_repeats() -> None:
    assert parse_names("bf16, fp32,bf16", "dtype", PRECISIONS) == ("bf16", "fp32")
    assert parse_configs("24L-16H,4L-64H") == ("24L-16H", "4L-64H")
    assert parse_mechanisms("infsa-linear,softmax,infsa-linear") == ("infsa-linear", "softmax")
    assert parse_mechanisms("all") == NINE
    assert parse_mechanisms("softmax,some.package:Mixer") == ("softmax", "some.package:Mixer")


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_mechanisms, "sofmax", "unknown mechanism 'sofmax'; did you mean 'softmax'?"),
        (parse_mechanisms, "softmax,infsa_linear", "unknown mechanism 'infsa_linear'; did you mean 'infsa-linear'?"),
        (parse_mechanisms, "Softmax", "unknown mechanism 'Softmax'; did you mean 'softmax'?"),
        (parse_mechanisms, "zzz", f"unknown mechanism 'zzz'; known: {', '.join(NINE)}"),
        (parse_configs, "4L-64h", "unknown config '4L-64h'; did you mean '4L-64H'?"),
        (parse_configs, "tiny", "unknown config 'tiny'; known: 4L-64H, 24L-16H"),
        (lambda text: parse_names(text, "dtype", PRECISIONS), "fp-32", "unknown dtype 'fp-32'; did you mean 'fp32'?"),
        (lambda text: parse_names(text, "phase", PHASES), "tran", "unknown phase 'tran'; did you mean 'train'?"),
        (lambda text: parse_names(text, "execution", EXECUTIONS), "x\ny", r"unknown execution 'x\ny'; known: "),
    ],
)
def test_unknown_names_come_with_the_nearest_known_one(parse: Callable[[str], object], text: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse(text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parse", [parse_mechanisms, parse_configs, parse_resolutions, parse_batch_sizes])
@pytest.mark.parametrize("text", ["", " ", ",", ",,"])
def test_empty_lists(parse: Callable[[str], object], text: str) -> None:
    assert refusal(parse, text).startswith("empty ")


@pytest.mark.parametrize(
    "target",
    [
        ":",
        "os:",
        ":system",
        "os.:system",
        ".os:system",
        "os:system:x",
        "os:sys.tem",
        "a b:c",
        "os:1",
        "../x:Y",
        "a-b:C",
    ],
)
def test_malformed_targets(target: str) -> None:
    message = refusal(parse_mechanisms, target)
    assert message == f"{target!r} is not of the form package.module:Class"


def test_an_entry_point_that_takes_a_built_in_name_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clash = EntryPoint(name="softmax", value="other.package:Mixer", group=registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [clash])
    expected = "mechanism 'softmax' of other.package:Mixer exists already"
    assert refusal(parse_mechanisms, "softmax") == expected
    assert refusal(parse_mechanisms, "all") == expected


def test_an_installed_mechanism_follows_the_nine(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = EntryPoint(name="mine", value="other.package:Mixer", group=registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [installed])
    assert parse_mechanisms("all") == (*NINE, "mine")
    assert resolve_mechanisms(["mine"])["mine"].implementations == {"reference": "other.package:Mixer"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("none", None), ("240", 240.0), ("90s", 90.0), ("4m", 240.0), ("1.5h", 5400.0), ("0.5", 0.5)],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0m", "-5", "-1h", "m", "s", "4 minutes", "4d", "nan", "inf", "infh", "1e999", "None", "5ms"]
)
def test_bad_durations(text: str) -> None:
    assert "duration" in refusal(parse_duration, text)


def test_case_id() -> None:
    case = make_case(mechanism="infsa-linear", resolution=1024, precision="amp-bf16", phase="train")
    assert case.cell == "infsa/infsa-linear.reference/4L-64H/r1024/b1/amp-bf16/train/eager"
    assert case.id == "infsa/infsa-linear.reference/4L-64H/r1024/b1/amp-bf16/train/eager/p0"
    assert case.tokens == 64 * 64 + 1


def test_case_id_with_options_and_replicate() -> None:
    case = make_case(
        implementation="fast",
        config="24L-16H",
        resolution=1024,
        batch_size=8,
        execution="cuda-graph",
        options=(("rho", "0.5"), ("backend", "xformers")),
        replicate=3,
        seed=7,
    )
    cell = "infsa/softmax.fast/24L-16H/r1024/b8/fp32/infer/cuda-graph/rho=0.5,backend=xformers"
    assert case.cell == cell
    assert case.id == f"{cell}/p3"


def test_cases_run_through_small_resolutions_first() -> None:
    sweep = make_sweep(configs=("4L-64H", "24L-16H"), phases=("infer", "train"))
    ids = [case.id for case in sweep.cases("cuda")]
    assert ids == [
        "infsa/softmax.reference/4L-64H/r224/b1/bf16/infer/eager/p0",
        "infsa/infsa-linear.reference/4L-64H/r224/b1/bf16/infer/eager/p0",
        "infsa/softmax.reference/4L-64H/r224/b1/amp-bf16/train/eager/p0",
        "infsa/infsa-linear.reference/4L-64H/r224/b1/amp-bf16/train/eager/p0",
        "infsa/softmax.reference/24L-16H/r224/b1/bf16/infer/eager/p0",
        "infsa/infsa-linear.reference/24L-16H/r224/b1/bf16/infer/eager/p0",
        "infsa/softmax.reference/24L-16H/r224/b1/amp-bf16/train/eager/p0",
        "infsa/infsa-linear.reference/24L-16H/r224/b1/amp-bf16/train/eager/p0",
        "infsa/softmax.reference/4L-64H/r512/b1/bf16/infer/eager/p0",
        "infsa/infsa-linear.reference/4L-64H/r512/b1/bf16/infer/eager/p0",
        "infsa/softmax.reference/4L-64H/r512/b1/amp-bf16/train/eager/p0",
        "infsa/infsa-linear.reference/4L-64H/r512/b1/amp-bf16/train/eager/p0",
        "infsa/softmax.reference/24L-16H/r512/b1/bf16/infer/eager/p0",
        "infsa/infsa-linear.reference/24L-16H/r512/b1/bf16/infer/eager/p0",
        "infsa/softmax.reference/24L-16H/r512/b1/amp-bf16/train/eager/p0",
        "infsa/infsa-linear.reference/24L-16H/r512/b1/amp-bf16/train/eager/p0",
    ]


@pytest.mark.parametrize(
    ("device_type", "phase", "precision"),
    [("cuda", "infer", "bf16"), ("cuda", "train", "amp-bf16"), ("cpu", "infer", "fp32"), ("cpu", "train", "fp32")],
)
def test_default_precision(device_type: str, phase: str, precision: str) -> None:
    assert {case.precision for case in make_sweep(phases=(phase,)).cases(device_type)} == {precision}


def test_precisions_asked_for_replace_the_default() -> None:
    sweep = make_sweep(mechanisms=("softmax",), resolutions=(224,), precisions=("fp16", "fp32"), phases=PHASES)
    found = [(case.phase, case.precision) for case in sweep.cases("cuda")]
    assert found == [("infer", "fp16"), ("infer", "fp32"), ("train", "fp16"), ("train", "fp32")]


def test_a_mechanism_without_the_implementation_has_no_case() -> None:
    sweep = make_sweep(mechanisms=("softmax", "some.package:Mixer"), implementations=("reference", "imaginary"))
    assert {case.implementation for case in sweep.cases("cpu")} == {"reference"}
    assert {case.mechanism for case in sweep.cases("cpu")} == {"softmax", "some.package:Mixer"}
    assert list(make_sweep(implementations=("imaginary",)).cases("cpu")) == []


def test_the_seed_is_that_of_the_sweep() -> None:
    assert {case.seed for case in make_sweep(seed=5).cases("cpu")} == {5}


def some_of(known: tuple[Any, ...], *, at_least: int = 1) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(known), min_size=at_least, max_size=4, unique=True).map(tuple)


@settings(deadline=None)
@given(
    st.builds(
        Sweep,
        mechanisms=some_of((*NINE, "some.package:Mixer")),
        implementations=some_of(("reference", "fast")),
        configs=some_of(("4L-64H", "24L-16H")),
        resolutions=some_of(LADDER).map(sorted).map(tuple),
        phases=some_of(PHASES),
        precisions=some_of(PRECISIONS, at_least=0),
        executions=some_of(EXECUTIONS),
        batch_sizes=some_of((1, 2, 64)),
        replicates=st.integers(1, 4),
    ),
    st.sampled_from(["cpu", "cuda"]),
)
def test_case_ids_are_unique_and_their_order_stable(sweep: Sweep, device_type: str) -> None:
    cases = list(sweep.cases(device_type))
    assert len({case.id for case in cases}) == len(cases)
    assert cases == list(sweep.cases(device_type))
    passes = [[case for case in cases if case.replicate == replicate] for replicate in range(sweep.replicates)]
    assert cases == [case for one_pass in passes for case in one_pass]
    for one_pass in passes:
        resolutions = [case.resolution for case in one_pass]
        assert resolutions == sorted(resolutions)
        assert {case.cell for case in one_pass} == {case.cell for case in passes[0]}


def test_every_replicate_passes_over_the_whole_plan() -> None:
    sweep = make_sweep(mechanisms=("softmax", "linformer", "agent"), replicates=4)
    found = [(case.replicate, case.resolution, case.mechanism) for case in sweep.cases("cpu")]
    orders = [
        ("softmax", "linformer", "agent"),
        ("linformer", "agent", "softmax"),
        ("agent", "softmax", "linformer"),
        ("softmax", "linformer", "agent"),
    ]
    assert found == [
        (replicate, resolution, mechanism)
        for replicate, order in enumerate(orders)
        for resolution in (224, 512)
        for mechanism in order
    ]


def test_one_replicate_is_the_plan_as_it_was() -> None:
    assert list(make_sweep(replicates=1).cases("cpu")) == list(make_sweep().cases("cpu"))
    first_pass = [case for case in make_sweep(replicates=3).cases("cpu") if case.replicate == 0]
    assert first_pass == list(make_sweep().cases("cpu"))


def test_replicates_of_a_single_cell() -> None:
    sweep = make_sweep(mechanisms=("softmax",), resolutions=(224,), replicates=3)
    assert [case.id[-3:] for case in sweep.cases("cpu")] == ["/p0", "/p1", "/p2"]
    assert len({case.cell for case in sweep.cases("cpu")}) == 1


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(1, 12))
def test_every_cell_gets_to_begin_a_resolution(mechanisms: int, replicates: int) -> None:
    """What a cell inherits from the one before differs from pass to pass, until all have been first."""
    sweep = make_sweep(mechanisms=NINE[:mechanisms], replicates=replicates)
    first = [case.mechanism for case in sweep.cases("cpu") if case.resolution == 512][::mechanisms]
    assert len(first) == replicates
    assert len(set(first)) == min(mechanisms, replicates)


def test_an_empty_plan_has_no_replicates() -> None:
    assert list(make_sweep(implementations=("imaginary",), replicates=3).cases("cpu")) == []


@settings(deadline=None)
@given(st.sampled_from(NINE), st.integers(0, 5), st.integers(0, 5))
def test_two_cases_of_a_cell_differ_in_their_replicate_only(mechanism: str, first: int, second: int) -> None:
    one, other = make_case(mechanism=mechanism, replicate=first), make_case(mechanism=mechanism, replicate=second)
    assert one.cell == other.cell
    assert (one.id == other.id) == (first == second)


def test_an_unknown_mechanism_has_no_cases() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'softmax'"):
        list(make_sweep(mechanisms=("softmaxx",)).cases("cpu"))


def test_cases_are_frozen_and_hashable() -> None:
    assert len({make_case(), make_case(), make_case(resolution=512)}) == 2
    with pytest.raises(AttributeError):
        make_case().resolution = 1  # type: ignore[misc]
    assert isinstance(make_case(), Case)


def refusal(parse: Callable[[str], object], text: str) -> str:
    """Return the message with which ``parse`` refuses ``text``: one line."""
    with pytest.raises(SpecError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)
