"""A fake NVML for the real pynvml: builds libnvidia-ml.so.1 from fakenvml.c and steers it through a shared file.

The library's whole state lies in that file, so a test writes fields where the library reads them, and several
processes see one board. The board's power is a trace of steps; its sensor ticks, averages over a window and adds up
the energy counter, lazily, whenever the library is asked.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import mmap
import os
import re
import shlex
import shutil
import struct
import subprocess
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pynvml

SOURCE = Path(__file__).with_name("fakenvml.c")
LIBRARY_NAME = "libnvidia-ml.so.1"

# As in fakenvml.c.
MAX_DEVICES = 2
MAX_FAILURES = 16
MAX_PROCESSES = 8
STEP_CAPACITY = 65536
READING_CAPACITY = 4096
MAGIC = int.from_bytes(b"FKENVML1", "little")

NEVER_NS = -(2**63)
BYTES_UNKNOWN = 2**64 - 1
STEP = struct.Struct("=qd")

# What fail() accepts: a failure of a function that is not there would never happen, unnoticed.
FUNCTIONS = frozenset(re.findall(r"^int (nvml\w+)\(", SOURCE.read_text(), re.MULTILINE))


class CounterMode(enum.IntEnum):
    """What the energy counter does."""

    NORMAL = 0
    NOT_SUPPORTED = 1
    FROZEN = 2  # from the first query in this mode on
    RESETS = 3  # to 0, at reset_at_ns


class PowerMode(enum.IntEnum):
    """Which ways to ask for the power are answered."""

    NORMAL = 0
    NOT_SUPPORTED = 1
    USAGE_ONLY = 2  # nvmlDeviceGetPowerUsage, no field value


class NoCompilerError(RuntimeError):
    """There is no C compiler on this machine."""


class _Process(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint64), ("pid", ctypes.c_uint32), ("unused", ctypes.c_uint32)]


class _ProcessList(ctypes.Structure):
    _fields_ = [("count", ctypes.c_uint32), ("unused", ctypes.c_uint32), ("entries", _Process * MAX_PROCESSES)]


class _Failure(ctypes.Structure):
    _fields_ = [
        ("function", ctypes.c_char * 64),
        ("after_calls", ctypes.c_uint64),
        ("times", ctypes.c_uint64),
        ("calls", ctypes.c_uint64),
        ("code", ctypes.c_int32),
        ("unused", ctypes.c_uint32),
    ]


class _Text:
    """A str over a fixed-length field of bytes."""

    def __init__(self, field: str) -> None:
        self.field = field

    def __get__(self, owner: DeviceControl, kind: type[DeviceControl]) -> str:
        return bytes(getattr(owner, self.field)).decode()

    def __set__(self, owner: DeviceControl, text: str) -> None:
        setattr(owner, self.field, text.encode())


class _Processes:
    """(pid, bytes used or None) of each process in a list of the board."""

    def __init__(self, field: str) -> None:
        self.field = field

    def __get__(self, owner: DeviceControl, kind: type[DeviceControl]) -> list[tuple[int, int | None]]:
        processes: _ProcessList = getattr(owner, self.field)
        entries = [processes.entries[i] for i in range(processes.count)]
        return [(entry.pid, None if entry.bytes == BYTES_UNKNOWN else entry.bytes) for entry in entries]

    def __set__(self, owner: DeviceControl, value: Sequence[tuple[int, int | None]]) -> None:
        if len(value) > MAX_PROCESSES:
            raise ValueError(f"at most {MAX_PROCESSES} processes, not {len(value)}")
        processes: _ProcessList = getattr(owner, self.field)
        for i, (pid, used) in enumerate(value):
            processes.entries[i].pid = pid
            processes.entries[i].bytes = BYTES_UNKNOWN if used is None else used
        processes.count = len(value)


class DeviceControl(ctypes.Structure):
    """One board, where the library reads it: set an attribute and the next query sees it.

    Attributes of the sensor's start (``phase_ns``, ``seed``) count until the first energy or power query; those of a
    state that are set to -1 (``mig_mode`` to ``power_limit_max_mw``) are answered as NOT_SUPPORTED.
    """

    period_ns: int
    window_ns: int
    phase_ns: int  # the first tick; it reads power but adds no energy
    average_ns: int
    reset_at_ns: int
    seed: int
    jitter_sd: float
    gain: float
    idle_watts: float
    memory_total_bytes: int
    memory_used_bytes: int
    event_reasons: int
    violation_power_ns: int
    violation_thermal_ns: int
    counter_mode: int
    power_mode: int
    module_scope_only: int
    hide_processes: int
    mig_mode: int
    virtualization_mode: int
    persistence_mode: int
    compute_mode: int
    ecc_mode: int
    pstate: int
    temperature: int
    utilization_gpu: int
    graphics_clock_mhz: int
    sm_clock_mhz: int
    memory_clock_mhz: int
    max_graphics_clock_mhz: int
    max_sm_clock_mhz: int
    max_memory_clock_mhz: int
    power_limit_enforced_mw: int
    power_limit_default_mw: int
    power_limit_min_mw: int
    power_limit_max_mw: int

    energy_mj: float  # the counter, unrounded, as of the last query
    ticks: int
    last_tick_ns: int
    next_tick_ns: int

    _fields_ = [
        ("_name", ctypes.c_char * 64),
        ("_uuid", ctypes.c_char * 64),
        ("_pci_bus_id", ctypes.c_char * 32),
        ("_vbios", ctypes.c_char * 32),
        *((name, ctypes.c_int64) for name in ("period_ns", "window_ns", "phase_ns", "average_ns", "reset_at_ns")),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_double) for name in ("jitter_sd", "gain", "idle_watts")),
        ("memory_total_bytes", ctypes.c_uint64),
        ("memory_used_bytes", ctypes.c_uint64),
        ("event_reasons", ctypes.c_uint64),
        ("violation_power_ns", ctypes.c_uint64),
        ("violation_thermal_ns", ctypes.c_uint64),
        *(
            (name, ctypes.c_int32)
            for name in (
                "counter_mode",
                "power_mode",
                "module_scope_only",
                "hide_processes",
                "mig_mode",
                "virtualization_mode",
                "persistence_mode",
                "compute_mode",
                "ecc_mode",
                "pstate",
                "temperature",
                "utilization_gpu",
                "graphics_clock_mhz",
                "sm_clock_mhz",
                "memory_clock_mhz",
                "max_graphics_clock_mhz",
                "max_sm_clock_mhz",
                "max_memory_clock_mhz",
                "power_limit_enforced_mw",
                "power_limit_default_mw",
                "power_limit_min_mw",
                "power_limit_max_mw",
            )
        ),
        ("_compute_processes", _ProcessList),
        ("_graphics_processes", _ProcessList),
        ("_mps_processes", _ProcessList),
        ("energy_mj", ctypes.c_double),
        ("_frozen_mj", ctypes.c_double),
        ("_reading_watts", ctypes.c_double),
        ("last_tick_ns", ctypes.c_int64),
        ("next_tick_ns", ctypes.c_int64),
        ("_reset_done_ns", ctypes.c_int64),
        ("ticks", ctypes.c_uint64),
        ("_random", ctypes.c_uint64),
        ("_cursor", ctypes.c_uint64),
        ("_started", ctypes.c_int32),
        ("_frozen", ctypes.c_int32),
    ]

    name = _Text("_name")
    uuid = _Text("_uuid")
    pci_bus_id = _Text("_pci_bus_id")
    vbios = _Text("_vbios")
    compute_processes = _Processes("_compute_processes")
    graphics_processes = _Processes("_graphics_processes")
    mps_processes = _Processes("_mps_processes")

    def __setattr__(self, name: str, value: object) -> None:
        # A misspelt attribute would otherwise be kept by Python and never reach the library.
        if name not in DeviceControl.__dict__:
            raise AttributeError(f"the fake board has no {name!r}")
        super().__setattr__(name, value)

    def set_defaults(self, index: int) -> None:
        """Everything as in a new fake: a quiet board with a contiguous 100 ms sensor."""
        ctypes.memset(ctypes.addressof(self), 0, ctypes.sizeof(self))
        self.name = f"FAKE GPU {index}"
        self.uuid = f"GPU-fa4e0000-0000-0000-0000-{index:012d}"
        self.pci_bus_id = f"00000000:{index + 1:02X}:00.0"
        self.vbios = "FA.4E.00.00.00"
        self.period_ns = self.window_ns = 100_000_000
        self.seed = index + 1
        self.gain = 1.0
        self.idle_watts = 60.0
        self.memory_total_bytes = 80 * 2**30
        self.memory_used_bytes = 512 * 2**20
        self.persistence_mode = self.ecc_mode = 1
        self.temperature = 40
        self.graphics_clock_mhz = self.max_graphics_clock_mhz = 1980
        self.sm_clock_mhz = self.max_sm_clock_mhz = 1980
        self.memory_clock_mhz = self.max_memory_clock_mhz = 2619
        self.power_limit_enforced_mw = self.power_limit_default_mw = self.power_limit_max_mw = 700_000
        self.power_limit_min_mw = 200_000
        self.last_tick_ns = self._reset_done_ns = NEVER_NS


class _Control(ctypes.Structure):
    """The part of the state before the two rings, which only reset() need not clear."""

    magic: int
    size: int
    lock: int
    lock_patience_ns: int
    now_ns: int
    call_ns: int
    virtual_clock: int
    device_count: int
    failure_count: int

    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("lock", ctypes.c_uint64),
        ("lock_ids", ctypes.c_uint64),
        ("lock_patience_ns", ctypes.c_int64),
        ("now_ns", ctypes.c_int64),
        ("call_ns", ctypes.c_int64),
        ("virtual_clock", ctypes.c_int32),
        ("device_count", ctypes.c_uint32),
        ("failure_count", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("step_count", ctypes.c_uint64 * MAX_DEVICES),
        ("devices", DeviceControl * MAX_DEVICES),
        ("failures", _Failure * MAX_FAILURES),
    ]


STEPS_OFFSET = ctypes.sizeof(_Control) + MAX_DEVICES * READING_CAPACITY * STEP.size
STATE_SIZE = STEPS_OFFSET + MAX_DEVICES * STEP_CAPACITY * STEP.size


def build(folder: Path) -> Path:
    """Compile the library into ``folder`` with $CC or the system's C compiler."""
    named = shlex.split(os.environ.get("CC", ""))
    compiler = named if named and shutil.which(named[0]) else None
    if compiler is None:
        found = next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), None)
        if found is None:
            raise NoCompilerError("no C compiler (cc, gcc or clang) to build the fake NVML with")
        compiler = [found]
    library = folder / LIBRARY_NAME
    flags = ["-shared", "-fPIC", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"]
    names = [f"-Wl,-soname,{LIBRARY_NAME}", "-o", str(library), str(SOURCE), "-lm"]
    done = subprocess.run([*compiler, *flags, *names], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(done.args)} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return library


class FakeNvml:
    """The state of a fake NVML, in ``file``, and the power trace of its boards.

    With ``virtual`` the time is ``now_ns`` and stands still until the test moves it; else it is CLOCK_MONOTONIC,
    that of ``time.monotonic_ns()``, and the first tick is now.
    """

    def __init__(self, file: Path, *, devices: int = 1, virtual: bool = True) -> None:
        # A process that still maps an older file of this name keeps it, whole.
        file.unlink(missing_ok=True)
        with file.open("wb") as stream:
            stream.truncate(STATE_SIZE)
        self._map(file)
        self.reset(devices=devices, virtual=virtual)

    @classmethod
    def attach(cls, file: Path) -> FakeNvml:
        """The fake that another process made, as it is."""
        fake = cls.__new__(cls)
        fake._map(file)
        if fake._control.magic != MAGIC or fake._control.size != STATE_SIZE:
            raise ValueError(f"{file} is no state of this fake NVML")
        return fake

    def _map(self, file: Path) -> None:
        self.file = file
        with file.open("r+b") as stream:
            self._memory = mmap.mmap(stream.fileno(), STATE_SIZE)
        self._control = _Control.from_buffer(self._memory)
        self._devices = [self._control.devices[i] for i in range(MAX_DEVICES)]
        begin = _Control.step_count.offset
        self._step_counts = memoryview(self._memory)[begin : begin + 8 * MAX_DEVICES].cast("Q")
        self._clear_history()

    def _clear_history(self) -> None:
        # Every step this object appended: the ring forgets, the truth must not.
        self._times = [array("q") for _ in range(MAX_DEVICES)]
        self._watts = [array("d") for _ in range(MAX_DEVICES)]

    def reset(self, *, devices: int | None = None, virtual: bool | None = None, now_ns: int = 0) -> None:
        """Back to defaults, no steps, no ticks and no failures; the number of boards and the clock stay if not given.

        The library needs no new nvmlInit, but no other thread or process may be asking it meanwhile.
        """
        control = self._control
        devices = control.device_count if devices is None else devices
        virtual = bool(control.virtual_clock) if virtual is None else virtual
        if not 0 <= devices <= MAX_DEVICES:
            raise ValueError(f"at most {MAX_DEVICES} devices, not {devices}")
        ctypes.memset(ctypes.addressof(control), 0, ctypes.sizeof(control))
        control.magic = MAGIC
        control.size = STATE_SIZE
        control.lock_patience_ns = 2_000_000_000
        control.device_count = devices
        control.virtual_clock = virtual
        control.now_ns = now_ns
        for index, device in enumerate(self._devices):
            device.set_defaults(index)
            # A sensor that had ticked since time 0 would owe months of ticks at the first query.
            device.phase_ns = now_ns if virtual else time.monotonic_ns()
        self._clear_history()

    @property
    def virtual(self) -> bool:
        """Whether the test moves the time."""
        return bool(self._control.virtual_clock)

    @property
    def now_ns(self) -> int:
        """The time that the sensor goes by."""
        return self._control.now_ns if self._control.virtual_clock else time.monotonic_ns()

    @now_ns.setter
    def now_ns(self, ns: int) -> None:
        if not self._control.virtual_clock:
            raise ValueError("only a virtual clock can be set")
        if ns < self._control.now_ns:
            raise ValueError(f"time does not go back, from {self._control.now_ns} to {ns} ns")
        self._control.now_ns = ns

    def advance_ns(self, ns: int) -> None:
        """Let that much virtual time pass."""
        self.now_ns = self._control.now_ns + ns

    @property
    def call_ns(self) -> int:
        """Virtual time that a query takes; it is answered as of half way through."""
        return self._control.call_ns

    @call_ns.setter
    def call_ns(self, ns: int) -> None:
        self._control.call_ns = ns

    @property
    def device_count(self) -> int:
        """How many boards the library shows."""
        return self._control.device_count

    def device(self, index: int = 0) -> DeviceControl:
        """The board with that NVML index."""
        if not 0 <= index < self._control.device_count:
            raise IndexError(f"no device {index} of {self._control.device_count}")
        device: DeviceControl = self._devices[index]
        return device

    def set_power(self, watts: float, *, device: int = 0, at_ns: int | None = None) -> None:
        """The board draws ``watts`` from ``at_ns`` (now) on, until the next step; steps come in order of time.

        Steps may lie in the future. Only one process and thread at a time may append.
        """
        if at_ns is None:
            at_ns = self.now_ns
        count = self._step_counts[device]
        ring = STEPS_OFFSET + device * STEP_CAPACITY * STEP.size
        if count and at_ns < STEP.unpack_from(self._memory, ring + (count - 1) % STEP_CAPACITY * STEP.size)[0]:
            raise ValueError(f"a step at {at_ns} ns comes before the last one")
        # On the real clock another process may have asked since at_ns was read: such a step is late by microseconds.
        if self._control.virtual_clock and at_ns < self._devices[device].last_tick_ns:
            raise ValueError(f"a step at {at_ns} ns comes before a tick that was computed already")
        STEP.pack_into(self._memory, ring + count % STEP_CAPACITY * STEP.size, at_ns, watts)
        self._step_counts[device] = count + 1
        self._times[device].append(at_ns)
        self._watts[device].append(watts)

    def fail(self, function: str, code: int, *, after_calls: int = 0, times: int | None = None) -> None:
        """Let ``function`` return ``code`` after so many calls that still succeed, for ever or so many times.

        The name is pynvml's or the symbol's: "nvmlDeviceGetCount" means nvmlDeviceGetCount_v2.
        """
        function = {"nvmlInit": "nvmlInitWithFlags"}.get(function, function)
        if not any(re.fullmatch(rf"{re.escape(function)}(_v\d+)?", known) for known in FUNCTIONS):
            raise ValueError(f"the fake NVML has no {function}")
        if times == 0:
            raise ValueError("a failure that never happens")
        count = self._control.failure_count
        if count == MAX_FAILURES:
            raise ValueError(f"at most {MAX_FAILURES} failures")
        failure = self._control.failures[count]
        failure.function = function.encode()
        failure.code, failure.after_calls, failure.times, failure.calls = code, after_calls, times or 0, 0
        self._control.failure_count = count + 1

    def clear_failures(self) -> None:
        """Let every function work again."""
        self._control.failure_count = 0

    def environment(self, library: Path) -> dict[str, str]:
        """What to add to a child's environment so that its pynvml asks this fake."""
        paths = [str(library.parent), os.environ.get("LD_LIBRARY_PATH", "")]
        return {"LD_LIBRARY_PATH": ":".join(filter(None, paths)), "FAKENVML_STATE": str(self.file)}

    def energy_joules(self, begin_ns: int, end_ns: int, *, device: int = 0) -> float:
        """The truth: the integral of the board's power from ``begin_ns`` to ``end_ns``, times the gain of now."""
        if end_ns < begin_ns:
            raise ValueError(f"{end_ns} ns comes before {begin_ns} ns")
        times, watts = self._trace(device)
        first, last = np.searchsorted(times, begin_ns, "right"), np.searchsorted(times, end_ns, "left")
        control = self._devices[device]
        edges = np.concatenate(([begin_ns], times[first:last], [end_ns]))
        levels = np.concatenate(([watts[first - 1] if first else control.idle_watts], watts[first:last]))
        gain: float = control.gain
        return float(np.dot(np.diff(edges), levels)) * 1e-9 * gain

    def _trace(self, device: int) -> tuple[np.ndarray, np.ndarray]:
        count = self._step_counts[device]
        if len(self._times[device]) == count:
            return np.array(self._times[device]), np.array(self._watts[device])
        if count > STEP_CAPACITY:
            raise ValueError("another process appended steps, and the ring has lost some")
        ring = bytes(memoryview(self._memory)[STEPS_OFFSET + device * STEP_CAPACITY * STEP.size :][: count * STEP.size])
        steps = np.frombuffer(ring, dtype=[("time", "=i8"), ("watts", "=f8")])
        return steps["time"], steps["watts"]


def load(library: Path) -> ctypes.CDLL:
    """The library, in this process; a real NVML stays the one that torch and others find by name."""
    # Loaded libraries are looked up by name in the order of loading: without this, everything in this process that
    # asks for libnvidia-ml.so.1 from now on would get the fake, torch on a GPU machine included.
    with contextlib.suppress(OSError):
        ctypes.CDLL(LIBRARY_NAME)
    return ctypes.CDLL(str(library))


@contextlib.contextmanager
def installed(library: Path) -> Iterator[None]:
    """Let pynvml, in this process, talk to ``library``, whatever it talked to before; uninitialised on both sides."""
    saved = pynvml.nvmlLib, pynvml._nvmlLib_refcount
    pointers = dict(pynvml._nvmlGetFunctionPointer_cache)
    fake = load(library)
    pynvml._nvmlGetFunctionPointer_cache.clear()
    pynvml.nvmlLib, pynvml._nvmlLib_refcount = fake, 0
    try:
        yield
    finally:
        while fake.nvmlShutdown() == pynvml.NVML_SUCCESS:
            pass
        pynvml.nvmlLib, pynvml._nvmlLib_refcount = saved
        pynvml._nvmlGetFunctionPointer_cache.clear()
        pynvml._nvmlGetFunctionPointer_cache.update(pointers)
