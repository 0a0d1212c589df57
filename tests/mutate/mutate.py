"""Mutation testing: plants small faults one at a time and asks whether a test notices. `make
mutate`; docs/log.md says why.

Faults are planted in copies of the working tree in a temporary folder. Test files run in the order
of their nearness: those named after the faulty file, then those that mention it, then the rest of
their folder.
"""

from __future__ import annotations

import argparse
import queue
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tests.mutate.copies import Copy
from tests.mutate.mutants import Mutant, cpp_mutants, fields_beside, python_mutants

T = TypeVar("T")
REPOSITORY = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
SOURCES = (
    *(
        f"python/alignmask/{folder}/**/*.py"
        for folder in ("loss", "model", "pretrained", "training", "evaluation")
    ),
    "python/alignmask/data/transforms.py",
    "python/alignmask/checkpoint.py",
    "python/alignmask/config.py",
    "python/alignmask/config_files.py",
    "python/alignmask/ops/*.py",
    "python/alignmask/ops/reference/*.py",
    "core/*/formula.h",
    "core/common/bilinear.h",
    "core/common/exp_log.h",
)
# Of what has no tests of its own name: whose tests are nearest.
TESTED_AS = {
    "bilinear": "masked_point_pool|ms_deform_attn",
    "exp_log": "quality_focal_loss",
    "_check": "mask_iou",
    "_backend": "backend",
    "_precision": "autocast",
    "__init__": "model|pretrained|operators",
}
TARGET = 95  # per cent


def all_mutants(repository: Path = REPOSITORY, only: str | None = None) -> list[Mutant]:
    """Of all sources, or of a file or folder."""
    settings = [p.read_text() for p in (repository / "python/alignmask").glob("**/config.py")]
    beside, mutants = fields_beside(*settings), []
    patterns = (only, f"{only}/**/*.py", f"{only}/**/formula.h") if only else SOURCES
    for file in sorted(
        {file for pattern in patterns for file in repository.glob(pattern) if file.is_file()}
    ):
        path, source = file.relative_to(repository).as_posix(), file.read_bytes()
        mutants += (
            python_mutants(path, source, beside)
            if file.suffix == ".py"
            else cpp_mutants(path, source)
        )
    return mutants


def files_near(path: str, repository: Path = REPOSITORY) -> tuple[list[str], list[str]]:
    """Test files: those nearest to a source file, and others."""
    parts = Path(path).with_suffix("").parts
    python = parts[0] == "python"
    folder = "ops" if not python else parts[2] if len(parts) > 3 else ""
    stem = TESTED_AS.get(parts[-1], parts[-1].strip("_") if python else parts[1])
    tests = repository / "tests"
    files = sorted((tests / folder).rglob("test_*.py"))
    named = [f for f in files if re.fullmatch(rf"test_({stem})(_.*)?", f.stem)]
    if folder:  # tests of several rooms stand beside the folders
        named += [f for f in sorted(tests.glob("test_*.py")) if re.search(rf"_({stem})\b", f.stem)]
    mention = (
        [f for f in files if f not in named and re.search(rf"\b({stem})\b", f.read_text())]
        if python
        else []
    )
    rest = [f for f in files if f not in named + mention] if python and folder else []
    groups = (named, mention + rest) if named else (mention, rest)
    nearest, others = ([f.relative_to(repository).as_posix() for f in group] for group in groups)
    return nearest, others


def equivalents(file: Path = EQUIVALENT) -> dict[tuple[str, str, str], str]:
    """Reviewed mutants that no test can notice: (path, before, after) -> reason. Four lines each,
    then an empty one."""
    entries = [
        entry.splitlines()
        for entry in re.sub("(?m)^#.*\n", "", file.read_text()).strip().split("\n\n")
    ]
    return {(path, before, after): reason for path, before, after, reason in filter(None, entries)}


def report(results: list[tuple[Mutant, str]]) -> float:
    """Prints a table by folders and the survivors; returns how many per cent of what is not
    equivalent were noticed."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant, verdict in results:
        counts[str(Path(mutant.path).parent).removeprefix("python/alignmask/")][verdict] += 1
    counts["all"] = sum(counts.values(), Counter())
    columns = ("noticed", "survived", "timed out", "equivalent", "does not build")
    print("\n" + f"{'':28}" + "".join(f"{column:>16}" for column in columns))
    for folder, count in counts.items():
        print(f"{folder:28}" + "".join(f"{count[column]:16}" for column in columns))
    for mutant in sorted(mutant for mutant, verdict in results if verdict == "survived"):
        print(
            f"\nsurvived: "
            f"{mutant.path}:{mutant.line}\n{mutant.path}\n{mutant.before}\n{mutant.after}"
        )
    found, missed = counts["all"]["noticed"] + counts["all"]["timed out"], counts["all"]["survived"]
    share = 100 * found / max(found + missed, 1)
    print(f"\n{found} of {found + missed} noticed: {share:.1f} %; the aim is {TARGET} %")
    return share


def mutate(
    chosen: list[Mutant], workers: int, repository: Path = REPOSITORY
) -> list[tuple[Mutant, str]]:
    """Each mutant's verdict."""
    known = equivalents()
    results = [(m, "equivalent") for m in chosen if (m.path, m.before, m.after) in known]
    rest = [m for m in chosen if (m.path, m.before, m.after) not in known]
    native, python = (
        [m for m in rest if m.path.endswith(".py") == is_python] for is_python in (False, True)
    )
    plan = {mutant.path: files_near(mutant.path, repository) for mutant in rest}
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    copies: list[Copy] = []

    def files_of(mutants: list[Mutant]) -> list[str]:
        return sorted({file for mutant in mutants for group in plan[mutant.path] for file in group})

    def judge(copy: Copy, mutant: Mutant, seconds: dict[str, float]) -> None:
        began, verdict = time.monotonic(), copy.judge(mutant, plan[mutant.path], seconds)
        results.append((mutant, verdict))
        at = f"[{len(results)}/{len(chosen)}] {time.monotonic() - began:4.0f} s  {verdict}"
        print(f"{at:36} {mutant.path}:{mutant.line}  {mutant.after}")

    def judge_native(copy: Copy) -> None:
        copy.configure()
        seconds = copy.baseline(files_of(native))
        for mutant in native:
            judge(copy, mutant, seconds)

    def borrow(action: Callable[[Copy], T]) -> T:
        copy = free.get()
        try:
            return action(copy)
        finally:
            free.put(copy)

    with (
        tempfile.TemporaryDirectory(prefix="mutate-") as folder,
        ThreadPoolExecutor(workers) as pool,
    ):
        try:
            copies = [
                Copy(Path(folder) / str(i), repository) for i in range(workers + bool(native))
            ]
            for copy in copies[:workers]:
                free.put(copy)
            jobs: list[Future[None]] = [pool.submit(judge_native, copies[-1])] if native else []
            by_folder = defaultdict(list)
            for file in files_of(python):
                by_folder[Path(file).parent].append(file)
            timings = [
                pool.submit(borrow, lambda copy, f=files: copy.baseline(f))
                for files in by_folder.values()
            ]
            seconds = {file: spent for timing in timings for file, spent in timing.result().items()}
            left_out = set.union(set(), *(copy.left_out for copy in copies[:workers]))
            for copy in copies[:workers]:
                copy.left_out = left_out
            print(
                f"{sum(seconds.values()):.0f} s of tests; left out, as they fail without a fault: "
                f"{sorted(left_out)}"
            )
            jobs += [
                pool.submit(borrow, lambda copy, m=mutant: judge(copy, m, seconds))
                for mutant in python
            ]
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for copy in copies:
                copy.close()
            raise
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=200, help="how many mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument(
        "--only", help="a source file or folder; also of those that are not mutated by default"
    )
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    mutants = all_mutants(only=options.only)
    chosen = random.Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(f"{len(chosen)} of {len(mutants)} mutants, seed {options.seed}")
    sys.exit(report(mutate(chosen, options.workers)) < TARGET)


if __name__ == "__main__":
    main()
