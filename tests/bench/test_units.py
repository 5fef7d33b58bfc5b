from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infsa_bench.report.units import (
    format_bytes,
    format_bytes_per_second,
    format_duration,
    format_flops_per_second,
    format_interval_seconds,
    format_joules,
    format_percent,
    format_seconds,
    significant,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 us"),
        (1.5e-9, "0.00150 us"),
        (12.34e-6, "12.3 us"),
        (1e-3, "1.00 ms"),
        (0.0123, "12.3 ms"),
        (0.1234, "123 ms"),
        (0.9994, "999 ms"),
        (1.0, "1.00 s"),
        (59.7, "59.7 s"),
        (75.24, "75.2 s"),
        (1234.5, "1234 s"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (999.6e-6, "1.00 ms"),
        (0.9996, "1.00 s"),
        (0.9999, "1.00 s"),
        (9.996, "10.0 s"),
        (0.09996, "100 ms"),
    ],
)
def test_seconds_that_round_up_to_the_next_digit(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.0121, 0.0129, "12.1 .. 12.9 ms"),
        (0.9, 1.1, "0.900 .. 1.10 s"),
        (0, 2e-6, "0 .. 2.00 us"),
        (0.0005, 0.0123, "0.500 .. 12.3 ms"),
        (0.012104, 0.012112, "12.10 .. 12.11 ms"),
        (0.0121041, 0.0121048, "12.104 .. 12.105 ms"),
        (0.01210411, 0.01210412, "12.1 .. 12.1 ms"),
        (0.0121, 0.0121, "12.1 .. 12.1 ms"),
    ],
)
def test_an_interval_has_one_unit(low: float, high: float, text: str) -> None:
    assert format_interval_seconds(low, high) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (5, "5 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (60, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7199, "2 h 00 min"),
        (7800, "2 h 10 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1000 * 2**10, "1000 KiB"),
        (2**20, "1.00 MiB"),
        (1.5 * 2**30, "1.50 GiB"),
        (141 * 2**30, "141 GiB"),
        (2**40, "1.00 TiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("joules", "half_width", "text"),
    [
        (1.2344, 0.0123, "1.234 ± 0.012 J"),
        (1.2, 0.0123, "1.200 ± 0.012 J"),
        (1.2344, 0.00996, "1.234 ± 0.010 J"),
        (1.2344, 0.0996, "1.23 ± 0.10 J"),
        (0.05, 0.0003, "0.05000 ± 0.00030 J"),
        (12.3, 1.04, "12.3 ± 1.0 J"),
        (12.3, 9.96, "12 ± 10 J"),
        (40123.4, 456.7, "40120 ± 460 J"),
        (12.3, 99.6, "10 ± 100 J"),
        (-0.5, 1.25, "-0.5 ± 1.2 J"),
        (1.2344, None, "1.23 J"),
        (1.2344, 0.0, "1.23 J"),
        (12345.6, None, "12346 J"),
    ],
)
def test_joules(joules: float, half_width: float | None, text: str) -> None:
    assert format_joules(joules, half_width) == text


@settings(deadline=None)
@given(st.floats(min_value=1e-6, max_value=1e9), st.floats(min_value=1e-9, max_value=0.5))
def test_joules_are_rounded_far_below_their_uncertainty(joules: float, relative: float) -> None:
    half_width = joules * relative
    value, uncertainty = (float(part) for part in format_joules(joules, half_width).removesuffix(" J").split(" ± "))
    assert uncertainty == pytest.approx(half_width, rel=0.051)
    assert abs(value - joules) <= 0.051 * half_width * (1 + 1e-6)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (1, "1.00"),
        (0.012345, "0.0123"),
        (12.345, "12.3"),
        (99.94, "99.9"),
        (123.4, "123"),
        (98765.4, "98765"),
        (1e9, "1000000000"),
        (-1.5, "-1.50"),
    ],
)
def test_significant(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.9999, "1.00"), (9.996, "10.0"), (99.96, "100"), (0.09996, "0.100")])
def test_three_digits_stay_three_where_rounding_carries(value: float, text: str) -> None:
    assert significant(value) == text


@settings(deadline=None)
@given(st.floats(min_value=1e-12, max_value=1e15))
def test_significant_is_close_and_never_scientific(value: float) -> None:
    text = significant(value)
    assert "e" not in text
    assert float(text) == pytest.approx(value, rel=5.01e-3)


@pytest.mark.parametrize(
    ("rate", "flops", "size"),
    [
        (9.895e14, "990 TFLOP/s", "990 TB/s"),
        (1.5e15, "1.50 PFLOP/s", "1.50 PB/s"),
        (9.996e11, "1.00 TFLOP/s", "1.00 TB/s"),
        (95.4e9, "95.4 GFLOP/s", "95.4 GB/s"),
        (1e6, "1.00 MFLOP/s", "1.00 MB/s"),
        (1234, "1.23 kFLOP/s", "1.23 kB/s"),
        (5, "5.00 FLOP/s", "5.00 B/s"),
    ],
)
def test_rates_go_in_powers_of_ten(rate: float, flops: str, size: str) -> None:
    assert format_flops_per_second(rate) == flops
    assert format_bytes_per_second(rate) == size


@pytest.mark.parametrize(("fraction", "text"), [(0.1234, "12.3 %"), (1.26, "126 %"), (0.0001, "0.0100 %"), (0, "0 %")])
def test_percent(fraction: float, text: str) -> None:
    assert format_percent(fraction) == text
