"""Trainings side by side on one GPU: comparisons for which a CPU is too slow.

    python bench/gpu/trainings.py prepare DATA
    python bench/gpu/trainings.py run align_0 m2f_0 align_1 m2f_1 --minutes 4 --out OUT

DATA has `images`, `instances_train.json` and `instances_val.json` of one class of small objects.
`prepare` copies it, with the backbone's ImageNet weights in half precision, into
build/gpu_report/trainings: that folder travels to a machine without a network. A name is a kind of
KINDS and a seed. OUT gets the averaged weights of every run in half precision, and all logs in one
file. What follows `--` goes to every training: `-- --train.cuda-graphs`.

Every training has the same time, so the learning rate falls with the time, and the numbers of
iterations differ; they are in the logs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

STORE = Path(__file__).resolve().parent.parent.parent / "build" / "gpu_report" / "trainings"
WEIGHTS = "lite0.safetensors"
MASK2FORMER = (
    "--model.classification", "softmax", "--loss.class-weight", "2", "--without", "model.aligned-queries",
    "--model.score", "class*mask",
)  # fmt: skip
KINDS: dict[str, tuple[str, ...]] = {
    "align": (),
    "m2f": MASK2FORMER,
    "qfl": ("--without", "model.aligned-queries"),
    "pooled": ("--model.aligned-queries.mask-noise", "None"),
}
"""The recipe's AlignMask; Mask2Former; the quality focal loss alone; aligned queries that attend to
the masks that they predict, as in the paper."""


def prepare(data: Path, store: Path = STORE) -> None:
    import timm

    from alignmask.model.backbone import _load_lite0

    shutil.rmtree(store, ignore_errors=True)
    store.mkdir(parents=True)
    shutil.copytree(data / "images", store / "images")
    for part in ("train", "val"):
        shutil.copy(data / f"instances_{part}.json", store)
    network = timm.create_model("tf_efficientnet_lite0")
    _load_lite0(network)
    save_file({name: halved(x) for name, x in network.state_dict().items()}, store / WEIGHTS)
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    print(f"{store}: {size / 2**20:.0f} MiB")


def halved(tensor: torch.Tensor) -> torch.Tensor:
    """Matrices and filters; statistics and biases stay as they are."""
    return tensor.half().contiguous() if tensor.ndim > 1 else tensor.contiguous()


def command(name: str, given: argparse.Namespace, runs: Path, more: Sequence[str]) -> list[str]:
    kind, _, seed = name.rpartition("_")
    store: Path = given.store
    settings = {
        "--name": name, "--out": runs, "--train.seed": seed,
        "--data.train-images": store / "images", "--data.train-annotations": store / "instances_train.json",
        "--data.val-images": store / "images", "--data.val-annotations": store / "instances_val.json",
        "--data.workers": given.workers, "--model.backbone.pretrained": store / WEIGHTS,
        "--train.batch-size": given.batch, "--train.learning-rate": given.rate,
        "--train.max-minutes": given.minutes, "--train.iterations": given.iterations,
        "--train.evaluate-every": 10**9, "--train.checkpoint-every": 10**9,
    }  # fmt: skip
    told = [str(part) for pair in settings.items() for part in pair]
    start = [sys.executable, "-m", "alignmask.cli", "train", "nuclei_small"]
    return [*start, *told, "--train.trackers", *KINDS[kind], *more]


def run(given: argparse.Namespace, more: Sequence[str]) -> int:
    given.out.mkdir(parents=True, exist_ok=True)
    runs = given.out / "runs" if given.runs is None else given.runs
    runs.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    processes = {}
    for name in given.names:
        with open(runs / f"{name}.log", "w") as log:
            processes[name] = subprocess.Popen(
                command(name, given, runs, more), stdout=log, stderr=subprocess.STDOUT, env=environment
            )  # fmt: skip
    failed = [name for name, process in processes.items() if process.wait()]
    for name in given.names:
        print(name, "failed" if name in failed else "", collect(runs / name, given.out), flush=True)
        print("  ", *(runs / f"{name}.log").read_text().splitlines()[-3:], sep="\n   ")
    with tarfile.open(given.out / "logs.tar.gz", "w:gz") as tar:
        wanted = ("*.log", "*/metrics.jsonl", "*/config.json", "*/evaluation.json")
        for path in sorted(path for pattern in wanted for path in runs.glob(pattern)):
            tar.add(path, str(path.relative_to(runs)))
    return len(failed)


def collect(run_folder: Path, out: Path) -> str:
    """The averaged weights of the newest checkpoint, as OUT/NAME.safetensors."""
    found = sorted(run_folder.glob("checkpoints/*/ema.safetensors"))
    if not found:
        return "no checkpoint"
    weights = {name: halved(tensor) for name, tensor in load_file(found[-1]).items()}
    save_file(weights, out / f"{run_folder.name}.safetensors")
    return found[-1].parent.name


def a_name(text: str) -> str:
    kind, _, seed = text.rpartition("_")
    if kind not in KINDS or not seed.isdecimal():
        raise argparse.ArgumentTypeError(f"expected KIND_SEED with a kind of {', '.join(KINDS)}")
    return text


def main(arguments: Sequence[str]) -> int:
    own, more = list(arguments), []
    if "--" in own:
        at = own.index("--")
        own, more = own[:at], own[at + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=STORE)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("prepare").add_argument("data", type=Path)
    runner = verbs.add_parser("run")
    runner.add_argument("names", nargs="+", type=a_name)
    runner.add_argument("--minutes", type=float, default=4)
    runner.add_argument("--iterations", type=int, default=10**6, help="at most so many")
    runner.add_argument("--batch", type=int, default=8)
    runner.add_argument("--rate", type=float, default=1e-3)
    runner.add_argument("--workers", type=int, default=2)
    runner.add_argument("--runs", type=Path, help="the runs' folder (default: OUT/runs)")
    runner.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(own)
    if given.verb == "run":
        return run(given, more)
    prepare(given.data, given.store)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
