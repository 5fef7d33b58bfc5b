"""One sweep on a GPU at a time: a lock that all sweeps of a machine look at, whoever runs them. Imports no torch."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path
from types import TracebackType
from typing import Self

from infsa_bench.errors import SpecError
from infsa_bench.machine import Environment

LOCKS = Path("/tmp")
"""Where all sweeps of a machine look, whatever each one's own folder for temporary files is."""


class DeviceLock:
    """Held by every sweep on a GPU until its process ends; tells whether another one holds it, too.

    Everybody holds it shared; who could have it alone is alone. A CPU has no lock: whoever else uses it is seen in its
    load.
    """

    def __init__(self, environment: Environment, *, allow_shared: bool, folder: Path | None = None) -> None:
        """Take the lock of the device in ``environment``, which lies in ``folder``, LOCKS if not given.

        Raises:
            SpecError: another sweep runs on it, and it was not allowed to share.
        """
        self._file: int | None = None
        if environment.device_type == "cpu":
            return
        name = re.sub(r"[^A-Za-z0-9.-]", "-", environment.device_uuid or environment.device)
        path = (folder or LOCKS) / f"infsa-bench-{name}.lock"
        try:
            self._file = _open(path)
        except OSError as error:
            if allow_shared:
                return
            raise SpecError(
                f"cannot open {path} ({error.strerror}), which keeps a second sweep off {environment.device}; "
                "add --allow-shared to measure without it"
            ) from None
        if not self._is_alone() and not allow_shared:
            os.close(self._file)
            raise SpecError(
                f"another sweep runs on {environment.device} ({environment.device_name}): the two would disturb each "
                "other; wait for it, or add --allow-shared to measure all the same, flagged"
            )

    def is_shared(self) -> bool:
        """Tell whether another sweep runs on the device just now."""
        return self._file is not None and not self._is_alone()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _is_alone(self) -> bool:
        assert self._file is not None
        alone = False
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        # A failed try may have cost the lock that was held. Nobody holds it exclusively for longer than a moment.
        fcntl.flock(self._file, fcntl.LOCK_SH)
        return alone


def _open(path: Path) -> int:
    # For reading alone: that is enough for a lock, and the file may be another user's, whose sticky folder would not
    # let us open it with O_CREAT.
    flags = os.O_RDONLY | os.O_NOFOLLOW
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    return os.open(path, flags | os.O_CREAT, 0o644)
