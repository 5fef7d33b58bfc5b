from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_records import (
    ENVIRONMENT,
    GPU_STATE,
    make_energy,
    make_failure,
    make_manifest,
    make_measurement,
    make_record,
    values_of,
)

from infsa_bench import codec
from infsa_bench.codec import LARGEST_FLOAT, SMALLEST_FLOAT, decode, encode
from infsa_bench.errors import SchemaError
from infsa_bench.record import SCHEMA_VERSION, Attempt, Failure, Measurement, Record
from infsa_bench.store import Manifest

HUGE = 10**400
"""An integer that JSON may hold and no float can."""

SLOW_TO_DRAW = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(values_of(Record))
@SLOW_TO_DRAW
def test_record_round_trip(record: Record) -> None:
    line = encode(record)
    assert "\n" not in line
    assert decode(Record, line) == record
    assert decode(Record, line.encode()) == record


@given(values_of(Manifest))
@SLOW_TO_DRAW
def test_manifest_round_trip(manifest: Manifest) -> None:
    assert decode(Manifest, encode(manifest)) == manifest
    assert decode(Manifest, encode(manifest, indent=1)) == manifest


def test_text_that_is_no_unicode_survives() -> None:
    """A file name that is not UTF-8 reaches Python, and so ``Manifest.command``, with a lone surrogate."""
    record = make_record(make_failure(message="cannot open caf\udce9"))
    assert decode(Record, encode(record).encode()) == record


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_encode_refuses_what_is_no_number(number: float) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        encode(make_record(make_measurement([0.01], build_seconds=number)))


@pytest.mark.parametrize("spelling", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", str(HUGE), f"-{HUGE}"])
@pytest.mark.parametrize("field", ["seconds", "build_seconds"])
def test_decode_refuses_what_is_no_finite_number(spelling: str, field: str) -> None:
    line = encode(make_record(make_measurement(build_seconds=1.5)))
    hostile = line.replace(f'"{field}":1.5', f'"{field}":{spelling}')
    assert hostile != line
    with pytest.raises(SchemaError):
        decode(Record, hostile)


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("number", [LARGEST_FLOAT * 2, SMALLEST_FLOAT / 2, 5e-324, 1.7e308, 10**51])
def test_decode_refuses_what_no_instrument_reads(number: float, sign: str) -> None:
    """Sums, ratios and squares of it could overflow in those who read the records."""
    hostile = encode(make_record()).replace('"seconds":1.5', f'"seconds":{sign}{number}')
    with pytest.raises(SchemaError, match=r"Record\.seconds: .{4,60} is beyond all measure"):
        decode(Record, hostile)


@pytest.mark.parametrize("number", [LARGEST_FLOAT, -LARGEST_FLOAT, SMALLEST_FLOAT, 0.0, -0.0, 10**50])
def test_decode_takes_all_other_numbers(number: float) -> None:
    line = encode(make_record()).replace('"seconds":1.5', f'"seconds":{number}')
    assert decode(Record, line).seconds == float(number)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
def test_decode_refuses_integers_of_more_than_64_bits(number: int) -> None:
    line = encode(make_record(make_measurement(model_bytes=7)))
    with pytest.raises(SchemaError, match=r"Record\.outcome\.model_bytes: -?[0-9]{1,60} has more than 64 bits"):
        decode(Record, line.replace('"model_bytes":7', f'"model_bytes":{number}'))
    for most in (2**63 - 1, -(2**63)):
        record = make_record(make_measurement(model_bytes=most))
        assert decode(Record, encode(record)) == record


@pytest.mark.parametrize(
    ("field", "number"),
    [("resolution", 0), ("resolution", -16), ("batch_size", 0), ("batch_size", -1), ("replicate", -1), ("seed", -1)],
)
def test_decode_refuses_cases_that_no_sweep_plans(field: str, number: int) -> None:
    hostile = make_raw(encode(make_record()), lambda raw: raw["case"].update({field: number}))
    with pytest.raises(SchemaError, match=r"Record\.case: a case has at least one pixel and one image, and counts"):
        decode(Record, hostile)


def test_whole_numbers_are_read_as_floats_where_floats_are_meant() -> None:
    line = encode(make_record()).replace('"seconds":1.5', '"seconds":2')
    seconds = decode(Record, line).seconds
    assert seconds == 2.0
    assert isinstance(seconds, float)


def make_raw(line: str, change: Callable[[dict[str, Any]], object]) -> str:
    raw = json.loads(line)
    change(raw)
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("change", "part_of_message"),
    [
        (lambda raw: raw.update(extra=1), "Record: unknown fields ['extra'], missing fields []"),
        (lambda raw: raw["case"].update(extra=1), "Record.case: unknown fields ['extra']"),
        (lambda raw: raw.pop("seconds"), "Record: unknown fields [], missing fields ['seconds']"),
        (lambda raw: raw["case"].pop("seed"), "Record.case: unknown fields [], missing fields ['seed']"),
        (lambda raw: raw.update(environment=3), "Record.environment: '3' is not of type str"),
        (lambda raw: raw.update(environment=None), "Record.environment: 'None' is not of type str"),
        (lambda raw: raw.update(seconds="1"), "Record.seconds: '1' is not of type float"),
        (lambda raw: raw.update(seconds=True), "Record.seconds: 'True' is not of type float"),
        (lambda raw: raw["case"].update(resolution=True), "Record.case.resolution: 'True' is not of type int"),
        (lambda raw: raw["case"].update(resolution=224.0), "Record.case.resolution: '224.0' is not of type int"),
        (lambda raw: raw["case"].update(precision="fp8"), "Record.case.precision: 'fp8' is not of type"),
        (lambda raw: raw["case"].update(precision=["fp32"]), "Record.case.precision"),
        (lambda raw: raw["case"].update(options=[["a"]]), "Record.case.options[0]"),
        (lambda raw: raw["case"].update(options=[["a", "b", "c"]]), "Record.case.options[0]"),
        (lambda raw: raw["case"].update(options={"a": "b"}), "Record.case.options"),
        (lambda raw: raw.update(case=[]), "Record.case: not an object"),
        (lambda raw: raw.update(attempts=[{"stage": "nowhere", "message": ""}]), "Record.attempts[0].stage"),
        (lambda raw: raw["outcome"].update(latencies_seconds=[0.1, None]), "Record.outcome.latencies_seconds[1]"),
        (lambda raw: raw["outcome"].update(parameters=True), "Record.outcome.parameters"),
        (lambda raw: raw["outcome"].update(peak_memory_bytes=False), "Record.outcome.peak_memory_bytes"),
        (lambda raw: raw["outcome"].update(launch_bound=1), "Record.outcome.launch_bound: '1' is not of type bool"),
        (lambda raw: raw["outcome"].update(stage_seconds={"build": "1"}), "Record.outcome.stage_seconds['build']"),
        (lambda raw: raw["outcome"].update(stage_seconds=[1.0]), "Record.outcome.stage_seconds: "),
        (lambda raw: raw["outcome"].update(energy=None), "Record.outcome.energy: not an object"),
        (lambda raw: raw["outcome"]["energy"].update(status="guessed"), "Record.outcome.energy.status: 'guessed'"),
        (lambda raw: raw["outcome"]["energy"].pop("reason"), "Record.outcome.energy: unknown fields [], missing"),
        (lambda raw: raw["outcome"].update(state_before=[]), "Record.outcome.state_before: not an object"),
        (lambda raw: raw["outcome"].update(kind="oom"), "Record.outcome: neither of the possible kinds"),
        (lambda raw: raw.update(outcome={}), "Record.outcome: neither of the possible kinds"),
        (lambda raw: raw.update(outcome=None), "Record.outcome: neither of the possible kinds"),
        (lambda raw: raw.update(outcome=[]), "Record.outcome: neither of the possible kinds"),
        (lambda raw: raw.update(schema_version=1), "schema version 1; this infsa-bench reads version 4"),
        (lambda raw: raw.update(schema_version=5), "schema version 5; this infsa-bench reads version 4"),
        (lambda raw: raw.update(schema_version="4"), "schema version '4'; this infsa-bench reads version 4"),
        (lambda raw: raw.update(schema_version=True), "schema version True; this infsa-bench reads version 4"),
        (lambda raw: raw.update(schema_version=4.0), "Record.schema_version: '4.0' is not of type int"),
        (lambda raw: raw.pop("schema_version"), "schema version None; this infsa-bench reads version 4"),
    ],
)
def test_bad_fields_are_named(change: Callable[[dict[str, Any]], object], part_of_message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        decode(Record, make_raw(encode(make_record()), change))
    assert part_of_message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "part_of_message"),
    [
        (lambda energy: energy.update(trials=None), "Record.outcome.energy.trials: 'None' is not of type"),
        (
            lambda energy: energy["trials"][1].update(begin_seconds="now"),
            "Record.outcome.energy.trials[1].begin_seconds",
        ),
        (lambda energy: energy["trials"][0]["windows"][0].pop("joules"), "missing fields ['joules']"),
        (lambda energy: energy["trials"][0].update(throttle_reasons=[3]), "trials[0].throttle_reasons[0]: '3'"),
        (lambda energy: energy["calibration"].update(source="tdp"), "energy.calibration.source: 'tdp'"),
        (lambda energy: energy["calibration"].update(idle_watts="75"), "energy.calibration.idle_watts: '75'"),
        (lambda energy: energy.update(reason="shared"), "Record.outcome.energy: an energy reading has a reason"),
    ],
)
def test_bad_fields_of_a_reading_are_named(change: Callable[[dict[str, Any]], object], part_of_message: str) -> None:
    line = encode(make_record(make_measurement(energy=make_energy())))
    with pytest.raises(SchemaError) as caught:
        decode(Record, make_raw(line, lambda raw: change(raw["outcome"]["energy"])))
    assert part_of_message in str(caught.value)


def test_another_version_is_told_before_its_fields() -> None:
    with pytest.raises(SchemaError, match="schema version 99"):
        decode(Record, '{"schema_version": 99, "unheard_of": []}')
    assert SCHEMA_VERSION == 4


def test_outcomes_are_told_apart() -> None:
    assert isinstance(decode(Record, encode(make_record(make_measurement()))).outcome, Measurement)
    assert isinstance(decode(Record, encode(make_record(make_failure()))).outcome, Failure)


def test_a_failure_without_its_optional_fields_is_refused() -> None:
    """Every field is written, so a missing one means that something else wrote the line."""
    line = make_raw(encode(make_record(make_failure())), lambda raw: raw["outcome"].pop("exit_code"))
    with pytest.raises(SchemaError, match="exit_code"):
        decode(Record, line)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "null",
        "3",
        "[]",
        '"text"',
        "{}",
        "{} {}",
        "\x00",
        "9" * 5000,
        f'{{"schema_version": {"9" * 5000}}}',
        f'{{"schema_version": {HUGE}}}',
        "[" * 100_000,
        '{"a":' * 100_000,
        b"\xff\xfe",
        b"\xff",
        b'{"schema_version": 2, "a": "\xff"}',
        "\ufeff{}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-32"),
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\x00"}',
        '{"a": "\r"}',
    ],
    ids=lambda text: repr(text[:24]),
)
def test_hostile_text_is_a_schema_error(text: str | bytes) -> None:
    with pytest.raises(SchemaError) as caught:
        decode(Record, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [*range(10, 900, 80), *range(900, 1000, 3), 2000, 20_000])
@pytest.mark.parametrize("field", ["environment", "schema_version"])
def test_deep_nesting_is_a_schema_error(depth: int, field: str) -> None:
    line = encode(make_record())
    value = {"environment": json.dumps(ENVIRONMENT.key), "schema_version": str(SCHEMA_VERSION)}[field]
    hostile = line.replace(f'"{field}":{value}', f'"{field}":' + "[" * depth + "]" * depth)
    assert hostile != line
    with pytest.raises(SchemaError):
        decode(Record, hostile)


def test_hostile_manifests() -> None:
    line = encode(make_manifest())
    for hostile in (
        make_raw(line, lambda raw: raw.update(environments=[])),
        make_raw(line, lambda raw: raw.update(environments={"key": None})),
        make_raw(line, lambda raw: raw.update(plan=[1])),
        make_raw(line, lambda raw: raw["settings"]["protocol"].update(warmup_seconds="soon")),
        make_raw(line, lambda raw: raw["settings"]["protocol"].update(replicates=0)),
        make_raw(line, lambda raw: raw["settings"]["protocol"].update(energy="another")),
    ):
        with pytest.raises(SchemaError):
            decode(Manifest, hostile)


HOSTILE_VALUES = ("null", "true", "-1", "1e999", str(HUGE), "NaN", '""', "[]", "{}", "[[[]]]", '"\\ud800"', "0", "1.5")


def mutate(line: str, chance: random.Random) -> bytes:
    """Return ``line`` with one to three changes: of characters, of stretches, or of whole values."""
    text = line
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(text))
        until = min(len(text), at + chance.randint(1, 40))
        match chance.randrange(6):
            case 0:
                text = text[:at] + chr(chance.randrange(1, 0x3000)) + text[at + 1 :]
            case 1:
                text = text[:at] + text[until:]
            case 2:
                text = text[:until] + text[at:]
            case 3:
                text = text[:at] + chance.choice(HOSTILE_VALUES) + text[at:]
            case _:
                starts = [i for i, character in enumerate(text) if character == ":"] or [0]
                start = chance.choice(starts) + 1
                ends = [i for i in range(start, len(text)) if text[i] in ",}]"] or [len(text)]
                text = text[:start] + chance.choice(HOSTILE_VALUES) + text[ends[0] :]
        text = text or "x"
    raw = bytearray(text.encode())
    if chance.random() < 0.2:
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return bytes(raw)


@pytest.mark.parametrize("seed", range(8))
def test_mutated_lines_are_read_or_refused(seed: int) -> None:
    chance = random.Random(seed)
    lines = [
        encode(make_record(make_measurement(gpu_seconds=(0.5,), flags=("non_finite_output",)))),
        encode(make_record(make_measurement(energy=make_energy(doubts=("shared",)), state_before=GPU_STATE))),
        encode(make_record(make_failure(requested_bytes=2**30, predicted_seconds=1.5), options=(("rho", "0.5"),))),
    ]
    messages: list[str] = []
    for _ in range(150):
        mutated = mutate(chance.choice(lines), chance)
        try:
            record = decode(Record, mutated)
        except SchemaError as error:
            messages.append(str(error))
            continue
        # What was let in can be stored again.
        assert decode(Record, encode(record).encode()) == record, mutated
    assert len(messages) > 75
    assert not any("\n" in message for message in messages)


def test_attempts_are_kept_in_order() -> None:
    record = make_record()
    attempts = (Attempt(stage="build", message="killed"), Attempt(stage="timing", message="killed again"))
    raw = make_raw(
        encode(record),
        lambda raw: raw.update(attempts=[{"stage": item.stage, "message": item.message} for item in attempts]),
    )
    assert decode(Record, raw).attempts == attempts


WHOLE = encode(make_record())


@pytest.mark.parametrize(
    ("line", "part_of_message"),
    [
        ("\ufeff" + WHOLE, "not JSON: Unexpected UTF-8 BOM"),
        (b"\xef\xbb\xbf" + WHOLE.encode(), "not JSON: Unexpected UTF-8 BOM"),
        (WHOLE.encode("utf-16"), "not JSON: 'utf-8' codec can't decode"),
        (WHOLE + "\r", "a carriage return, as of CRLF line ends"),
        (WHOLE.replace(",", ",\r\n", 1), "a carriage return, as of CRLF line ends"),
        (WHOLE + "\x00", "not JSON: Extra data"),
        (WHOLE.replace('"seconds":', '"seconds":1.5,"seconds":'), "the field 'seconds' stands twice in one object"),
        (WHOLE.replace('"seed":', '"replicate":0,"seed":'), "the field 'replicate' stands twice in one object"),
    ],
)
def test_a_record_in_another_form_is_refused(line: str | bytes, part_of_message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        decode(Record, line)
    assert part_of_message in str(caught.value)


def test_repeated_names_are_found_in_no_time_among_many() -> None:
    names = ",".join(f'"{number}":0' for number in range(200_000))
    started = time.monotonic()
    with pytest.raises(SchemaError, match="the field '199999' stands twice"):
        decode(Record, f'{{{names},"199999":0}}')
    assert time.monotonic() - started < 2


HOSTILE_NAMES = [
    "a" * 100_000,
    "\x1b[2J\x07",
    "a\nb\r\u2028c",
    "\u202etxt.exe",
    "\ud800",
    "\x00",
    "'\"]}",
    "\U000e0041" * 9000,
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: repr(name[:9]))
def test_messages_show_bounded_printable_lines(name: str) -> None:
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda raw: raw.update({name: 1}),
        lambda raw: raw.update({f"{name}{number}": 1 for number in range(1000)}),
        lambda raw: raw["case"].update({name: {}}),
        lambda raw: raw.update(schema_version=name),
        lambda raw: raw.update(schema_version=[name]),
        lambda raw: raw.update(seconds=name),
        lambda raw: raw.update(seconds=[name] * 100),
        lambda raw: raw.update(environment={name: name}),
        lambda raw: raw["case"].update(precision=name),
        lambda raw: raw["case"].update(options=[[name, name, name]]),
        lambda raw: raw["outcome"].update(stage_seconds={name: name}),
        lambda raw: raw["outcome"].update({name: 0}),
        lambda raw: raw["outcome"].update(memory_source=name),
        lambda raw: raw["outcome"]["energy"].update(status=name),
    ]
    texts = [make_raw(WHOLE, change) for change in changes]
    texts.append(WHOLE.replace('"seconds"', f'{json.dumps(name)}:0,{json.dumps(name)}:0,"seconds"', 1))
    for text in texts:
        with pytest.raises(SchemaError) as caught:
            decode(Record, text)
        assert str(caught.value).isprintable()
        assert str(caught.value).isascii()
        assert len(str(caught.value)) < 5000


def test_unknown_fields_are_named_as_far_as_a_line_goes() -> None:
    names = {f"extra{number}": 0 for number in range(8)}
    with pytest.raises(SchemaError) as caught:
        decode(Record, make_raw(WHOLE, lambda raw: raw.update(names)))
    named = "'extra0', 'extra1', 'extra2', 'extra3', 'extra4', and 3 more"
    assert str(caught.value) == f"Record: unknown fields [{named}], missing fields []"
    with pytest.raises(SchemaError, match=rf"unknown fields \['{'x' * 60}'\.\.\.\]"):
        decode(Record, make_raw(WHOLE, lambda raw: raw.update({"x" * 61: 0})))


@given(values_of(Record), st.randoms(use_true_random=False))
@SLOW_TO_DRAW
def test_the_quick_way_of_reading_takes_nothing_that_the_thorough_one_refuses(
    record: Record, drawn: random.Random
) -> None:
    """Values are exchanged, fields dropped and added at random places of the JSON."""
    raw = json.loads(encode(record))
    for _ in range(drawn.randrange(3)):
        spoil(raw, drawn)
    try:
        expected = codec._typed(Record, raw, "Record")
    except SchemaError:
        expected = None
    try:
        found = codec._reader(Record)(raw)
    except codec._UnusualError:
        return
    assert expected is not None
    assert found == expected
    assert encode(found) == encode(expected)


def spoil(raw: Any, drawn: random.Random) -> None:
    """Change something in an object or an array of JSON."""
    while True:
        keys = list(raw) if isinstance(raw, dict) else list(range(len(raw)))
        inner = [key for key in keys if isinstance(raw[key], dict | list) and raw[key]]
        if not inner or drawn.random() < 0.3:
            break
        raw = raw[drawn.choice(inner)]
    if not keys:
        return
    key = drawn.choice(keys)
    what = drawn.randrange(4)
    if what == 0:
        del raw[key]
    elif what == 1 and isinstance(raw, dict):
        raw["another"] = 1
    elif what == 2 and isinstance(raw, list):
        raw.append(drawn.choice([0, 1.5, None]))
    else:
        raw[key] = drawn.choice([0, -1, 1, True, 1.5, -0.5, 0.0, 1e300, 1e-300, HUGE, 2**63, "", "oom", None, [], {}])


def test_what_is_written_is_read_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def thorough(*_: object) -> None:
        raise AssertionError("not needed")

    monkeypatch.setattr(codec, "_typed", thorough)
    for outcome in (make_measurement(energy=make_energy(), state_before=GPU_STATE), make_failure("timeout")):
        record = make_record(outcome)
        assert decode(Record, encode(record)) == record
