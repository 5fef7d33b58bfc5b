"""What a reference run consists of: stages of steps, each step a command line that anybody can type.

A GPU may be there for minutes, so the order is that of value: whatever ends the run, what came before it is worth more
than what is missing. In every table the fast implementations come before the published ones, in the ladder the linear
mechanisms before the quadratic ones, whose largest images take minutes. How long the stages should take on a card of
400 to 700 TFLOP/s is in the README, predicted; their limits leave room for starts and for what prediction leaves out.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from infsa_bench.errors import UnknownNameError
from infsa_bench.reference.sizes import FULL, Sizes
from infsa_models.registry import CONFIGS

Program = Literal["infsa-bench", "pytest", "python"]

GPU_TESTS = (
    "tests/bench/test_gpu.py",
    "tests/bench/test_gpu_energy.py",
    "tests/bench/test_gpu_latency.py",
    "tests/bench/test_queues.py",
    "tests/models/test_softmax_backends.py",
)
"""The files with tests that need a GPU and are short: to collect all of them would take longer than to run these."""

KERNELS_CHECK, KERNELS_STAGE = "kernels-check", "kernels"
"""The step that tries hand-written kernels out, and the stage that is about them."""

KERNELS = ("--option", "kernels=auto,torch")
SOFTMAX_BACKENDS = "softmax.backend=flash,mem-efficient,cudnn"

MAX_STAGE_SECONDS = 540.0
"""Nine minutes: a GPU is sometimes lent for ten minutes a command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command. ``words`` follow the name of the program; ``seconds`` is the most that it may take at a time.

    Attributes:
        run: folder that it writes, under that of the reference run; None where it writes its log only.
        needs_cuda: whether there is nothing to do on another device.
        comes_last: whether other stages go before it, where several are run: what it finds out changes no number.
        findings: exit codes that are a result as well, to be read in the log: a check that failed.
    """

    name: str
    words: tuple[str, ...]
    seconds: float
    program: Program = "infsa-bench"
    run: str | None = None
    needs_cuda: bool = False
    comes_last: bool = False
    findings: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Steps that belong together; ``seconds`` is the most that they may take in one go, all of them."""

    name: str
    title: str
    seconds: float
    steps: tuple[Step, ...]

    def key_of(self, step: Step) -> str:
        """Return the name of one of its steps among those of all stages."""
        return f"{self.name}/{step.name}"


PROBE = "probe"
DEFAULT_STAGES = (PROBE, "table1-4l", "table1-24l", "ladder")


def all_stages(out: str, device: str, sizes: Sizes = FULL) -> dict[str, Stage]:
    """Return every stage by name, those of a default run first, then those that are asked for by name."""
    sweeps = _Sweeps(out=out, device=device, sizes=sizes)
    is_full = sizes is FULL
    doctor = ("doctor", "--device", device)
    instruments = ("instruments", "--device", device, "--out", f"{out}/instruments.json")
    tests = ("-m", "gpu and not soak", "-v", "-p", "no:cacheprovider", *GPU_TESTS)
    stress = ("--res", sizes.stress, "--config", ",".join(CONFIGS), "--energy", "quick")
    # A cell with a budget has no further trials of its energy where three disagree, which is said of it.
    table = ("--res", sizes.table, "--energy", "quick", "--cell-budget", "20s")
    impl = ("--impl", "fast,reference")
    training = ("--phase", "train", "--res", sizes.table, "--energy", "quick")
    # What grows with the square of the tokens meets the time limit of a probe, a minute each time.
    searched = (
        "--mechanism",
        f"{sizes.linear},{sizes.quadratic}",
        "--device",
        device,
        "--max-res",
        sizes.search,
        "--resume",
    )
    stages = (
        Stage(
            name=PROBE,
            title="the instruments: what they cost, whether they agree with themselves; the tests that need a GPU",
            seconds=180.0,
            steps=(
                Step(name="doctor", words=doctor, seconds=60.0, findings=(1,)),
                # Wrong ones would cost every fast cell of what follows.
                Step(
                    name=KERNELS_CHECK,
                    program="python",
                    words=("-m", "infsa_models.kernels.tune", "--check"),
                    seconds=100.0,
                    needs_cuda=True,
                    findings=(1,),
                ),
                Step(name="instruments", words=instruments, seconds=120.0),
                Step(
                    name="gpu-tests",
                    program="pytest",
                    words=tests,
                    seconds=210.0,
                    needs_cuda=True,
                    comes_last=True,
                    findings=(1,),
                ),
                # It keeps nothing where it is cut off.
                Step(
                    name="selfcheck",
                    words=(*doctor, "--selfcheck"),
                    seconds=210.0,
                    needs_cuda=True,
                    comes_last=True,
                    findings=(1,),
                ),
                # A sweep measures them as well, before its first cell.
                Step(name="peaks", words=("peaks", "--device", device), seconds=60.0, comes_last=True),
            ),
        ),
        *(
            Stage(
                name=f"table1-{_short(config)}",
                title=f"Table 1, {config}: inference at 1024 x 1024, fast and reference, with energy",
                seconds=360.0,
                steps=sweeps.both("table1", 360.0, *table, "--config", config),
            )
            for config in CONFIGS
        ),
        Stage(
            name="ladder",
            title="4L-64H, fast, inference from 224 to 9216, without energy",
            seconds=480.0,
            steps=sweeps.ladder("4L-64H", "fast", 480.0),
        ),
        Stage(
            name="stress",
            title="the stress test: 9216 x 9216, both sizes of the model, with energy",
            seconds=MAX_STAGE_SECONDS,
            steps=(
                # What the paper has, before what it says does not fit.
                sweeps.step("paper", "table1", MAX_STAGE_SECONDS, "--mechanisms", "infsa-linear", *impl, *stress),
                *sweeps.both("table1", MAX_STAGE_SECONDS, "--mechanisms", sizes.linear, *stress),
            ),
        ),
        Stage(
            name="train-1024",
            title="Table 1, training at 1024 x 1024, with energy",
            seconds=MAX_STAGE_SECONDS,
            steps=tuple(
                sweeps.step(
                    f"{implementation}-{_short(config)}",
                    "table1",
                    MAX_STAGE_SECONDS,
                    *("--impl", implementation, "--config", config, *training),
                )
                for implementation in ("fast", "reference")
                for config in CONFIGS
            ),
        ),
        Stage(
            name="ladder-24l",
            title="24L-16H, fast, inference from 224 to 9216, without energy",
            seconds=MAX_STAGE_SECONDS,
            steps=sweeps.ladder("24L-16H", "fast", MAX_STAGE_SECONDS),
        ),
        Stage(
            name="ladder-reference",
            title="4L-64H, reference, inference from 224 to 9216, without energy",
            seconds=MAX_STAGE_SECONDS,
            steps=sweeps.ladder("4L-64H", "reference", MAX_STAGE_SECONDS),
        ),
        Stage(
            name="maxres-40gib",
            title="the largest image in 40 GiB, emulated",
            seconds=MAX_STAGE_SECONDS,
            steps=tuple(
                Step(
                    name=implementation,
                    words=(
                        *("maxres", *searched, "--impl", implementation, "--memory-limit", sizes.memory_limit),
                        *("--out", f"{out}/maxres-40gib-{implementation}"),
                    ),
                    seconds=MAX_STAGE_SECONDS,
                    run=f"maxres-40gib-{implementation}",
                )
                for implementation in ("fast", "reference")
            ),
        ),
        Stage(
            name="ablation",
            title="the ablation of Linear-InfSA: rho and its activation, 64 images of 224 x 224",
            seconds=300.0,
            steps=(
                Step(
                    name="ablation",
                    words=("table1", f"{out}/ablation", *sizes.ablation, "--device", device, "--resume"),
                    seconds=300.0,
                    run="ablation" if is_full else None,
                ),
            ),
        ),
        Stage(
            name="energy-full",
            title="Table 1, 4L-64H, inference at 1024 x 1024, energy watched for longer",
            seconds=MAX_STAGE_SECONDS,
            steps=(
                sweeps.step(
                    *("fast", "energy-full", MAX_STAGE_SECONDS, "--impl", "fast"),
                    *("--res", sizes.table, "--config", "4L-64H", "--energy", "full"),
                ),
            ),
        ),
        Stage(
            name="train-ladder",
            title="4L-64H, fast, training from 224 to 4096, without energy",
            seconds=MAX_STAGE_SECONDS,
            steps=(
                sweeps.step(
                    *("fast", "ladder", MAX_STAGE_SECONDS, "--impl", "fast", "--res", sizes.train_ladder),
                    *("--config", "4L-64H", "--phase", "train", "--energy", "none", "--cell-budget", "15s"),
                ),
            ),
        ),
        Stage(
            name="maxres-card",
            title="the largest image that the whole card holds",
            seconds=MAX_STAGE_SECONDS,
            steps=(
                Step(
                    name="fast",
                    words=("maxres", *searched, "--impl", "fast", "--out", f"{out}/maxres-card"),
                    seconds=MAX_STAGE_SECONDS,
                    run="maxres-card",
                ),
            ),
        ),
        Stage(
            name="noise",
            title="how much this machine's numbers scatter from process to process",
            seconds=MAX_STAGE_SECONDS,
            steps=(
                sweeps.step(
                    *("sweep", "noise", MAX_STAGE_SECONDS, "--impl", "fast", "--mechanisms", sizes.quadratic),
                    *("--res", sizes.table, "--config", "4L-64H", "--energy", "none", "--no-peaks"),
                    *("--replicates", str(sizes.replicates)),
                ),
                Step(name="aa", words=("aa", "--from", f"{out}/noise"), seconds=60.0),
            ),
        ),
        Stage(
            name=KERNELS_STAGE,
            title="hand-written kernels beside PyTorch's, as CUDA graphs",
            seconds=MAX_STAGE_SECONDS,
            steps=(
                Step(
                    name="tune",
                    program="python",
                    words=("-m", "infsa_models.kernels.tune", "--copy-to", f"{out}/tiles.json"),
                    seconds=300.0,
                    needs_cuda=True,
                ),
                *(
                    sweeps.step(
                        *(name, "kernels", MAX_STAGE_SECONDS, "--mechanisms", mechanisms, "--impl", implementation),
                        *("--res", resolution, "--config", ",".join(CONFIGS), "--execution", "cuda-graph"),
                        *("--energy", "none", "--cell-budget", "15s", *choices),
                        needs_cuda=True,
                    )
                    for name, mechanisms, implementation, resolution, choices in (
                        ("linear", "infsa-linear", "fast", sizes.kernels, KERNELS),
                        ("pure", "infsa-pure", "fast", sizes.table, KERNELS),
                        ("softmax", "softmax", "fast", sizes.table, (*KERNELS, "--option", SOFTMAX_BACKENDS)),
                        ("reference", "infsa-linear,infsa-pure,softmax", "reference", sizes.table, ()),
                    )
                ),
                Step(
                    name="gpu-tests",
                    program="pytest",
                    words=("-m", "gpu", "-v", "-p", "no:cacheprovider", "tests/models/test_kernels_gpu.py"),
                    seconds=300.0,
                    needs_cuda=True,
                    comes_last=True,
                    findings=(1,),
                ),
            ),
        ),
    )
    return {stage.name: stage for stage in stages}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweeps:
    """Makes the steps that are sweeps."""

    out: str
    device: str
    sizes: Sizes

    def step(self, name: str, run: str, seconds: float, *options: str, needs_cuda: bool = False) -> Step:
        """Return a sweep into ``run``, of all mechanisms if its options do not say of which."""
        mechanisms = () if "--mechanisms" in options else ("--mechanisms", self.sizes.mechanisms)
        words = ("sweep", *mechanisms, *options, *self.sizes.short, "--device", self.device)
        words += ("--no-report", "--resume", "--out", f"{self.out}/{run}")
        return Step(name=name, words=words, seconds=seconds, run=run, needs_cuda=needs_cuda)

    def both(self, run: str, seconds: float, *options: str) -> tuple[Step, ...]:
        """Return a sweep of the fast implementations, then one of the published ones."""
        return tuple(
            self.step(implementation, run, seconds, "--impl", implementation, *options)
            for implementation in ("fast", "reference")
        )

    def ladder(self, config: str, implementation: str, seconds: float) -> tuple[Step, ...]:
        """Return the sweeps of a ladder, the most telling sizes first."""
        sizes = self.sizes
        parts = (
            ("linear", sizes.linear, sizes.ladder),
            ("quadratic", sizes.quadratic, sizes.ladder_quadratic),
            ("softmax-top", "softmax", sizes.top),
            ("between", sizes.linear, sizes.between),
            ("quadratic-rest", sizes.quadratic, f"{sizes.between},{sizes.top}"),
        )
        options = ("--impl", implementation, "--config", config, "--energy", "none", "--cell-budget", "15s")
        return tuple(
            self.step(name, "ladder", seconds, "--mechanisms", mechanisms, "--res", resolutions, *options)
            for name, mechanisms, resolutions in parts
        )


def _short(config: str) -> str:
    return config.partition("-")[0].lower()


def chosen_stages(text: str | None) -> tuple[str, ...]:
    """Return the names of the stages in a comma-separated list, in the order of the table; None for the default ones.

    Raises:
        UnknownNameError: there is no such stage.
    """
    if text is None:
        return DEFAULT_STAGES
    known = tuple(all_stages("out", "cpu"))
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UnknownNameError("stage", name, known)
    return tuple(name for name in known if name in names)


def in_order(stages: Sequence[Stage]) -> tuple[tuple[Stage, Step], ...]:
    """Return the steps of several stages in the order in which they are run."""
    pairs = [(stage, step) for stage in stages for step in stage.steps]
    return tuple(sorted(pairs, key=lambda pair: pair[1].comes_last))
