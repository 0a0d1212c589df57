"""One command for a machine with an NVIDIA GPU: builds or finds the package, tests, times and
profiles it; `make gpu-report`.

It needs this interpreter's torch, numpy and pytest; whatever else is not there is left out, with
the reason. Sections come by worth, each under a limit of its own and all under --budget seconds;
whatever happens to one, the later ones run. Timings run alone, tests side by side. The report is
bench/results/<gpu>-<date>.md with its numbers in a .json beside it; if OUT names a folder, both go
there, too, with the log, the profiler's counters and its tables of kernels: at most seven files.

`--device cpu` goes through the motions at small shapes. `python bench/gpu/install.py prepare`
first, on a machine with a network, makes what a machine without one needs: copy
build/gpu_report/carried to that machine together with the sources.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import summary

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
SKIPPED = 77
SUITE = (
    "mask_iou", "mask_points", "mask_rle", "masked_point_pool", "ms_deform_attn", "ms_deform_attn_from_offsets",
    "quality_focal_loss",
)  # fmt: skip
KERNELS = (
    "regex:ms_deform_attn|mask_iou|mask_points|mask_rle|masked_point_pool|quality_focal|gradient"
)
COUNTERS = (
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "Occupancy",
    "SchedulerStats",
    "WarpStateStats",
)


@dataclass(frozen=True)
class Section:
    name: str
    limit: int
    """Seconds."""
    command: Sequence[str | Path]
    environment: dict[str, str] = field(default_factory=dict)
    program: str = ""
    """That it needs on the PATH."""
    gpu_only: bool = False
    checks: bool = False
    """Does its failure mean that something is wrong?"""


@dataclass
class Outcome:
    status: str
    """passed, failed, skipped, out of time, not started."""
    seconds: float
    text: str
    """What it printed."""


class Report:
    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.budget = options.device, options.budget
        self.only, self.start = options.only, time.monotonic()
        self.work = Path(options.work or PROJECT / "build" / "gpu_report" / "work").resolve()
        self.out = Path(os.environ.get("OUT") or self.work / "out")
        self.site = self.work / "site"
        self.kept = self.work / "sections.json"
        if not self.only:
            shutil.rmtree(self.work / "results", ignore_errors=True)
            self.kept.unlink(missing_ok=True)
        for folder in (self.work / "results", self.out):
            folder.mkdir(parents=True, exist_ok=True)
        (self.out / "log.txt").write_text("")
        self.outcomes: dict[str, Outcome] = {}
        self.environment = self._environment()

    def _environment(self) -> dict[str, str]:
        nsight = sorted(Path("/opt/nvidia").glob("nsight-compute/*"))
        places = ["/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", *map(str, nsight)]
        path = [
            str(Path(sys.executable).parent),
            str(self.site / "bin"),
            os.environ["PATH"],
            *places,
        ]
        return os.environ | {
            "PATH": ":".join(path),
            "PYTHONPATH": f"{self.site}:{PROJECT}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "ALIGNMASK_CACHE": str(self.work / "cache"),
            "GPU_REPORT_DEVICE": self.device,
            "GPU_REPORT_WORK": str(self.work),
            "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "Agg",
        }

    # ---- what there is to do

    def plan(self) -> list[list[Section]]:
        """Sections of one list run side by side."""
        python = sys.executable
        architecture = str(self._architecture())

        def program(
            name: str, limit: int, *arguments: str, as_: str = "", **more: object
        ) -> Section:
            return Section(as_ or name, limit, [python, HERE / f"{name}.py", *arguments], **more)  # type: ignore[arg-type]

        def tests(
            name: str, limit: int, *arguments: str, workers: int = 0, **more: object
        ) -> Section:
            command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
            if importlib.util.find_spec("pytest_timeout"):
                command.append("--timeout=100")
            if workers and importlib.util.find_spec("xdist"):
                command += ["-n", str(min(workers, os.cpu_count() or 1)), "-p", "no:benchmark"]
            return Section(name, limit, command, checks=True, **more)  # type: ignore[arg-type]

        def sanitizer(tool: str) -> Section:
            command = [
                "compute-sanitizer",
                "--tool",
                tool,
                "--kernel-regex",
                "kns=alignmask",
                "--error-exitcode",
                "9",
            ]
            command += ["--print-limit", "10", python, HERE / "smoke.py", "small"]  # type: ignore[list-item]
            return Section(
                f"sanitizer_{tool}", 60, command, program=command[0], gpu_only=True, checks=True
            )

        install = [
            python,
            HERE / "install.py",
            "install",
            "--site",
            self.site,
            "--device",
            self.device,
        ]
        suite = [f"tests/ops/test_{name}.py" for name in SUITE]
        ncu = [
            "ncu",
            "--clock-control",
            "none",
            "--target-processes",
            "all",
            "--kernel-name-base",
            "function",
            "-k",
            KERNELS,
        ]
        ncu += [part for name in COUNTERS for part in ("--section", name)]
        ncu += [
            "--csv",
            "--page",
            "details",
            "--log-file",
            self.work / "results" / "ncu.csv",
            python,
            HERE / "one_call.py",
        ]
        jit = {"ALIGNMASK_CUDA": "jit"}
        return [
            [program("facts", 30)],
            [Section("install", 240, install, checks=True)],
            [program("smoke", 60, checks=True)],
            [
                tests(
                    "tests",
                    120,
                    "tests/gpu/test_ops.py",
                    "tests/gpu/test_model_on_gpu.py",
                    "tests/gpu/test_training_on_gpu.py",
                    "-k",
                    self.device,
                    workers=6,
                ),
                tests("suite", 120, *suite, workers=8, gpu_only=True),
                program("expected", 120, architecture, gpu_only=True),
                program("compile_all", 120, architecture, as_="jit_compile", gpu_only=True),
                program("peers", 120, "build", as_="peers_build", program="ninja", gpu_only=True),
                program("step", 110, "compiled", "warm", as_="compiled_warm", gpu_only=True),
            ],
            # Alone: one of them looks at the time.
            [
                tests(
                    "tests_cuda",
                    60,
                    "tests/gpu/test_cuda.py",
                    "-k",
                    "not sanitizer and not both_ways",
                    gpu_only=True,
                )
            ],
            [program("ops_times", 100, as_="bench")],
            [program("peers", 90)],
            [program("whole_models", 80, as_="hf")],
            [program("step", 90)],
            [program("step", 90, "compiled", as_="compiled_step", gpu_only=True)],
            [
                tests(
                    "jit",
                    60,
                    "tests/gpu/test_ops.py",
                    "-k",
                    "cuda",
                    workers=6,
                    environment=jit,
                    gpu_only=True,
                )
            ],
            [Section("ncu", 70, ncu, program="ncu", gpu_only=True)],
            [program("whole_models", 150, "compiled", as_="compiled", gpu_only=True)],
            *([sanitizer(tool)] for tool in ("memcheck", "racecheck", "synccheck")),
        ]

    def _architecture(self) -> int:
        """90 for sm_90, which is also what is said where there is no GPU."""
        command = [
            sys.executable,
            "-c",
            "import torch; print('%d%d' % torch.cuda.get_device_capability())",
        ]
        asked = (
            self.device == "cuda"
            and subprocess.run(command, capture_output=True, text=True).stdout.strip()
        )
        return int(asked or 90)

    # ---- doing it

    def run(self) -> int:
        plan, carried = self.plan(), PROJECT / "build" / "gpu_report" / "carried" / "expected.json"
        for group in plan:
            group = [section for section in group if not self.only or section.name in self.only]
            if carried.exists() and any(section.name == "expected" for section in group):
                shutil.copy(carried, self.work / "results")
                group = [section for section in group if section.name != "expected"]
            self._run_side_by_side(group)
            if "install" in self.outcomes and self.outcomes["install"].status == "failed":
                print("no package: nothing else can run")
                break
        self._write()
        checks = [section.name for group in plan for section in group if section.checks]
        failed = [name for name in checks if self._status(name) in ("failed", "out of time")]
        print(
            f"gpu-report: failed: {', '.join(failed)}"
            if failed
            else "gpu-report: every check that ran passed"
        )
        return bool(failed)

    def _status(self, name: str) -> str:
        return self.outcomes[name].status if name in self.outcomes else "not started"

    def _run_side_by_side(self, group: list[Section]) -> None:
        running = []
        for section in group:
            if reason := self._why_not(section):
                self._finish(section.name, Outcome("skipped", 0, reason))
                continue
            limit = min(section.limit, self.budget - (time.monotonic() - self.start))
            if limit < min(5, section.limit):
                self._finish(section.name, Outcome("not started", 0, "no time was left"))
                continue
            print(
                f"== {section.name} (at {time.monotonic() - self.start:.0f} s, at most {limit:.0f} "
                "s)",
                flush=True,
            )
            with open(self.work / f"{section.name}.txt", "w") as file:
                process = subprocess.Popen(
                    [str(part) for part in section.command], cwd=PROJECT, env=self.environment | section.environment,
                    stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            running.append((section, process, time.monotonic(), limit))
        while running:
            for entry in list(running):
                section, process, began, limit = entry
                taken = time.monotonic() - began
                if process.poll() is None and taken < limit:
                    continue
                running.remove(entry)
                status = {0: "passed", SKIPPED: "skipped"}.get(process.poll(), "failed")  # type: ignore[arg-type]
                if process.poll() is None:
                    status = "out of time"
                    end(process)
                text = (self.work / f"{section.name}.txt").read_text(errors="replace")
                self._finish(section.name, Outcome(status, taken, text))
            time.sleep(0.05)

    def _why_not(self, section: Section) -> str:
        if section.gpu_only and self.device != "cuda":
            return "it needs a GPU"
        if section.program and not shutil.which(section.program, path=self.environment["PATH"]):
            return f"there is no {section.program}"
        return ""

    def _finish(self, name: str, outcome: Outcome) -> None:
        self.outcomes[name] = outcome
        with open(self.out / "log.txt", "a") as log:
            log.write(f"\n===== {name}: {outcome.status}, {outcome.seconds:.0f} s\n{outcome.text}")
        print(f"-- {name}: {outcome.status}, {outcome.seconds:.0f} s")
        for line in outcome.text.splitlines()[-6:]:
            print(f"   {line[:180]}")
        sys.stdout.flush()
        self._write()  # as it comes: nothing is lost if this process is stopped

    def _write(self) -> None:
        sections = {
            name: {
                "status": o.status,
                "seconds": round(o.seconds, 1),
                **summary.of_output(o.text, o.status),
            }
            for name, o in self.outcomes.items()
        }
        if self.kept.exists():  # what an earlier run of other sections found stays in the report
            sections = json.loads(self.kept.read_text()) | sections
        self.kept.write_text(json.dumps(sections))
        written = summary.write(self.work / "results", sections, [self.out])
        if self.device == "cuda" and written:
            folder = PROJECT / "bench" / "results"
            folder.mkdir(parents=True, exist_ok=True)
            for path in written:
                shutil.copy(path, folder)
        for found in ("ncu.csv", "step_profile*.txt"):
            for path in (self.work / "results").glob(found):
                shutil.copy(path, self.out)


def end(process: subprocess.Popen) -> None:
    """With all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
        return


def has_gpu() -> bool:
    """Asked in a process of its own: this one must not hold memory of the GPU."""
    command = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    return subprocess.run(command).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        help="these sections alone (install first, on a fresh machine)",
    )
    parser.add_argument(
        "--work", help="folder for what is built and found (default: build/gpu_report/work)"
    )
    options = parser.parse_args()
    if options.device == "cuda" and not has_gpu():
        print(
            "gpu-report: there is no GPU that torch can use (DEVICE=cpu goes through the motions)"
        )
        return 1
    return Report(options).run()


if __name__ == "__main__":
    sys.exit(main())
