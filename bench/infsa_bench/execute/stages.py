"""Where a case is, for the parent: the stages that it reaches, and signs of life between them."""

from __future__ import annotations

import time
from collections.abc import Callable

from infsa_bench.execute.messages import Message, StageReached
from infsa_bench.record import Stage

BEAT_SECONDS = 1.0
"""Signs of life are given no more often: the parent's patience is counted in tens of seconds."""


class StageReporter:
    """Tells the parent which stage a case has reached, and that it is still going on."""

    def __init__(self, send: Callable[[Message], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send, self._clock = send, clock
        self._stage: Stage = "start"
        self._said_at = clock()
        self._is_in_backward: Callable[[], bool] = bool

    @property
    def stage(self) -> Stage:
        """Where the case is; where it failed, if it has."""
        return "backward" if self._is_in_backward() else self._stage

    def reach(self, stage: Stage) -> None:
        """Say that the case has got as far as ``stage``."""
        self._stage = stage
        self._say()

    def beat(self) -> None:
        """Give a sign of life, where none was given in the last second."""
        if self._clock() - self._said_at >= BEAT_SECONDS:
            self._say()

    def ask(self, is_in_backward: Callable[[], bool]) -> None:
        """From now on, ask what runs whether it is in its backward pass."""
        self._is_in_backward = is_in_backward

    def _say(self) -> None:
        self._said_at = self._clock()
        self._send(StageReached(stage=self._stage))
