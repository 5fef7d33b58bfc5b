from __future__ import annotations

import inspect
import re
import typing

from sample_records import make_failure, make_measurement, make_record

from infsa_bench.analyze import summary
from infsa_bench.analyze.summary import summarize
from infsa_bench.record import FailureKind
from infsa_bench.report.flags import FLAGS, STATUSES, UNKNOWN_FLAG, explain_flags, flag_meaning


def test_every_flag_that_a_summary_derives_is_explained() -> None:
    source = inspect.getsource(summary)
    (derived,) = re.findall(r"derived = \{(.*?)\n    \}", source, re.DOTALL)
    names = re.findall(r'^        "(\w+)":', derived, re.MULTILINE)
    assert len(names) == 6
    assert set(names) <= set(FLAGS)


def test_every_status_is_explained() -> None:
    assert set(STATUSES) == {"ok", *typing.get_args(FailureKind)}


def test_processes_that_failed_are_counted_in_words() -> None:
    assert flag_meaning("oom_in_1_of_3") == "1 of 3 processes ended otherwise: out of device memory"
    assert flag_meaning("host_oom_in_2_of_5") == "2 of 5 processes ended otherwise: out of host memory"


def test_a_flag_from_elsewhere_is_called_unknown() -> None:
    assert flag_meaning("<b>") == flag_meaning("bored_in_1_of_3") == UNKNOWN_FLAG


def test_flags_come_with_the_rows_that_have_them() -> None:
    rows = summarize(
        [
            make_record(make_measurement(flags=("throttled",))),
            make_record(make_measurement(flags=("throttled", "sh\nared"))),
            make_record(make_measurement(flags=("throttled",)), resolution=512),
            make_record(make_failure(flags=("shared",)), resolution=1024),
        ]
    )
    found = {flag: [row.case.resolution for row in concerned] for flag, _, concerned in explain_flags(rows)}
    assert found == {"throttled": [224, 512], "sh ared": [224], "shared": [1024]}
