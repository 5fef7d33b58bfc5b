from __future__ import annotations

from infsa_bench.execute.messages import Message, StageReached
from infsa_bench.execute.stages import BEAT_SECONDS, StageReporter


def test_stages_are_said_at_once_and_signs_of_life_once_a_second() -> None:
    sent: list[Message] = []
    now = 100.0
    reporter = StageReporter(sent.append, lambda: now)
    assert reporter.stage == "start"
    reporter.reach("build")
    reporter.reach("warm-up")
    reporter.beat()
    now += 0.9 * BEAT_SECONDS
    reporter.beat()
    assert sent == [StageReached(stage="build"), StageReached(stage="warm-up")]
    now += 0.2 * BEAT_SECONDS
    reporter.beat()
    reporter.beat()
    assert sent[2:] == [StageReached(stage="warm-up")]


def test_a_case_in_its_backward_pass_is_there() -> None:
    reporter = StageReporter(lambda message: None)
    is_in_backward = False
    reporter.reach("timing")
    reporter.ask(lambda: is_in_backward)
    assert reporter.stage == "timing"
    is_in_backward = True
    assert reporter.stage == "backward"
