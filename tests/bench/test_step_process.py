"""One step as a process: real ones, with real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infsa_bench.commands import step_process
from infsa_bench.commands.step_process import run_step

SLEEPER = "import time\nprint('ready', flush=True)\ntime.sleep(60)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def wait_for(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_it_prints_is_in_the_log_and_its_last_line_is_known(tmp_path: Path) -> None:
    code = "import sys; print('one', flush=True); print('two\\n', file=sys.stderr); sys.exit(3)"
    ended = run_step(python(code), os.environ, tmp_path / "logs" / "step.log", 20.0)
    assert (ended.exit_code, ended.is_interrupted, ended.last_line) == (3, False, "two")
    run_step(python("pass"), os.environ, tmp_path / "logs" / "step.log", 20.0)
    text = (tmp_path / "logs" / "step.log").read_text()
    assert text.count("$ ") == text.count("# exit code") == 2
    assert "one\n" in text
    assert "# exit code 3 after" in text


def test_a_step_whose_time_is_over_is_interrupted_as_by_ctrl_c(tmp_path: Path) -> None:
    begin = time.monotonic()
    ended = run_step(python(SLEEPER), os.environ, tmp_path / "log", 2.0)
    assert ended.is_interrupted
    # Python's own word for an interrupt that nobody caught.
    assert ended.exit_code in (130, -signal.SIGINT)
    assert time.monotonic() - begin < 15
    assert "KeyboardInterrupt" in (tmp_path / "log").read_text()


def test_a_step_that_does_not_listen_is_ended_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_process, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(step_process, "TERMINATE_SECONDS", 0.5)
    deaf = "import signal; [signal.signal(number, signal.SIG_IGN) for number in (2, 15)]\n" + SLEEPER
    ended = run_step(python(deaf), os.environ, tmp_path / "log", 2.0)
    assert (ended.exit_code, ended.is_interrupted) == (-signal.SIGKILL, True)


def test_what_it_started_does_not_outlive_it(tmp_path: Path) -> None:
    code = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}]); print(child.pid)"
    run_step(python(code), os.environ, tmp_path / "log", 20.0)
    pid = int((tmp_path / "log").read_text().splitlines()[1])
    wait_for(lambda: not is_alive(pid))


def test_somebody_else_may_stop_it(tmp_path: Path) -> None:
    ended = run_step(
        python(SLEEPER), os.environ, tmp_path / "log", 60.0, lambda: (tmp_path / "log").stat().st_size > 60
    )
    assert ended.is_interrupted


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_the_death_of_the_parent_is_an_interrupt(tmp_path: Path) -> None:
    """Also where the parent was started in the background, which has its children ignore interrupts."""
    code = (
        "import signal, sys, os; from pathlib import Path; from infsa_bench.commands.step_process import run_step\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"run_step([sys.executable, '-c', 'import os; print(os.getpid(), flush=True)\\n' + {SLEEPER!r}], os.environ,"
        " Path(sys.argv[1]), 60.0)"
    )
    log = tmp_path / "log"
    parent = subprocess.Popen([*python(code), str(log)])
    wait_for(lambda: log.is_file() and "\nready\n" in log.read_text())
    pid = next(int(line) for line in log.read_text().splitlines() if line.isdigit())
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not is_alive(pid))
    assert "KeyboardInterrupt" in log.read_text()
