"""The command line as its user meets it: help, info, flops, demo, exit codes; one clear line for
every mistake."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import alignmask
from alignmask import cli
from alignmask._extras import _TRAIN_MODULES
from alignmask.commands import train as train_command
from alignmask.commands._console import choose_device
from alignmask.data import CocoError
from alignmask.recipes import RECIPES
from tests.commands.terminal import Terminal, photo, train_arguments

# -- help
# --------------------------------------------------------------------------------------------------

HELP = {
    "train": ("r50_50ep", "mask2former_r50_50ep", "torchrun"),
    "train shapes_tiny": (
        "--train.learning-rate",
        "--model.aligned-queries.point-sets",
        "--dry-run",
        "--no-resume",
    ),
    "eval": ("CHECKPOINT", "--results FILE", "--annotations FILE", "--per-class"),
    "analyze": (
        "CHECKPOINT|RESULTS",
        "--annotations FILE",
        "--images DIR",
        "--fraction",
        "report.html",
    ),
    "calibrate": (
        "CHECKPOINT|RESULTS",
        "--annotations FILE",
        "--precision SHARE",
        "--method",
        "--out FILE",
    ),
    "predict": (
        "CHECKPOINT",
        "IMAGE|DIR",
        "--out DIR",
        "--threshold",
        "--colours {instance,class}",
    ),
    "ablate": ("table3", "table4", "components", "nuclei_small"),
    "ablate table4 nuclei_small": (
        "--seeds",
        "--only",
        "--dry-run",
        "--retry",
        "--train.iterations",
    ),
    "data": ("check", "stats", "split", "tile", "from-yolo", "to-yolo", "from-cvat"),
    "data check": ("ANNOTATIONS ...", "--images DIR", "--fix FILE", "--show"),
    "data stats": ("ANNOTATIONS", "--picture FILE", "--queries"),
    "data split": ("ANNOTATIONS", "--out DIR", "--share", "--group"),
    "data tile": ("ANNOTATIONS", "--images DIR", "--out DIR", "--tile", "--stride"),
    "data from-yolo": ("DIR", "--out FILE", "--images DIR"),
    "data to-yolo": ("ANNOTATIONS", "--out DIR"),
    "data from-labelme": ("DIR", "--out FILE", "--images DIR", "--classes NAME", "--extract DIR"),
    "data to-labelme": ("ANNOTATIONS", "--out DIR", "--images DIR"),
    "data from-voc": ("DIR", "--out FILE", "--split", "--images DIR", "--classes NAME"),
    "data to-voc": ("ANNOTATIONS", "--out DIR", "--split", "--images DIR"),
    "data from-cvat": ("XML", "--out FILE", "--classes NAME"),
    "data to-cvat": ("ANNOTATIONS", "--out FILE"),
    "convert": ("SRC", "DST", "--to", "--annotations FILE"),
    "demo": ("--minutes", "--out DIR"),
    "export": (
        "CHECKPOINT",
        "--format {torch,onnx}",
        "--out FILE",
        "--images DIR",
        "--sampling {gather,grid-sample}",
        "--half",
    ),
    "bench": ("FILE", "--size H W", "--threads", "--runs"),
    "reproduce": ("RUN", "RUN-reproduced"),
    "replay": ("FOLDER", "--device DEVICE", "non_finite_step_N"),
    "flops": ("RECIPE", "--size H W", "--aligned-queries"),
    "info": ("usage: alignmask info",),
}


def test_help_is_tested_of_every_command() -> None:
    assert {command.split()[0] for command in HELP} == set(cli.COMMANDS)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_usage_lists_every_command(alignmask_: Terminal, flag: str) -> None:
    assert alignmask_(flag) == 0
    for name, summary in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", alignmask_.out, re.MULTILINE)
    assert alignmask_() == 2
    assert alignmask_.out.startswith("usage: alignmask COMMAND")


@pytest.mark.parametrize("command", HELP)
def test_help(alignmask_: Terminal, command: str) -> None:
    assert alignmask_(*command.split(), "--help") == 0
    assert alignmask_.err == ""
    assert alignmask_.out.startswith(f"usage: alignmask {command}")
    for words in HELP[command]:
        assert words in alignmask_.out, words
    for ugly in ("NoneType", "MISSING", "Annotated", "<function", "object at 0x"):
        assert ugly not in alignmask_.out, ugly


def test_the_settings_that_one_needs_come_first(alignmask_: Terminal) -> None:
    """Ten, on a line each, before all others, among which each of them is again."""
    for command in (["train"], ["train", "nuclei_small"]):
        assert alignmask_(*command, "--help") == 0
        head, options = alignmask_.out.split(" options ", maxsplit=1)
        named = re.findall(r"^ +(--\S+).* {2,}\S", head, re.MULTILINE)
        assert named == [option.split()[0] for option in train_command.MOST_NEEDED]
        assert len(named) == 10
        if len(command) > 1:
            assert all(re.search(rf"{name}\b", options) for name in named)


def test_help_needs_no_torch() -> None:
    """Which takes seconds to import. Of all commands in one process: it stays without them."""
    code = f"""
import sys
from alignmask.cli import main
for command in {[["--help"], *([*command.split(), "--help"] for command in HELP)]}:
    assert main(command) == 0
    slow = {{"torch", "numpy", "scipy", "matplotlib"}} & sys.modules.keys()
    assert not slow, (command, slow)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", HELP)
def test_every_option_has_a_text(
    alignmask_: Terminal, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """One paragraph of whole sentences, on lines that are wide enough for it.

    Commands with the settings of a run have several columns on wide lines; only the beginning of
    their own texts is seen.
    """
    settings = command.startswith(("train ", "ablate "))
    monkeypatch.setenv("COLUMNS", "110" if settings else "400")
    text_form = r"[A-Z]" if settings else r"[A-Za-z].*[.?]( \((default|required).*\))?$"
    assert alignmask_(*command.split(), "--help") == 0
    lines = [line.strip("│| ") for line in alignmask_.out.splitlines()]
    options = [
        number for number, line in enumerate(lines) if re.match(r"--[a-z][a-z-]*( |$)", line)
    ]
    assert options or command in ("info", "ablate", "train", "data", "reproduce")
    for number in options:
        text = re.split(r" {2,}", lines[number])[1:] or [lines[number + 1]]
        if not lines[number].startswith(("--name ", "--out PATH")):
            assert re.match(text_form, text[0]), lines[number : number + 2]


@pytest.mark.parametrize("command", ["train shapes_small", "ablate table4 nuclei_small"])
def test_texts_of_settings_fill_their_lines(
    alignmask_: Terminal, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """A line ends only where the next line's first word did not fit: a docstring's line breaks do
    not survive."""
    monkeypatch.setenv("COLUMNS", "110")
    assert alignmask_(*command.split(), "--help") == 0
    lines = [line[2:-2] for line in alignmask_.out.splitlines()]  # without the frame
    texts = [line if re.match(r" {6}\S", line) else None for line in lines]
    pairs = [(above, below) for above, below in pairwise(texts) if above and below]
    assert len(pairs) > 20
    for above, below in pairs:
        assert len(f"{above.rstrip()} {below.split()[0]}") > len(above), (above, below)


def test_version(alignmask_: Terminal) -> None:
    for flag in ("--version", "-V"):
        assert alignmask_(flag) == 0
        assert alignmask_.out == f"alignmask {alignmask.__version__}\n"


def test_every_recipe_is_a_subcommand(alignmask_: Terminal) -> None:
    alignmask_("train", "--help")
    for name in RECIPES:
        assert f"• {name} " in alignmask_.out


# -- info, flops
# --------------------------------------------------------------------------------------------------


def test_info(alignmask_: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNMASK_CUDA", "OFF")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert alignmask_("info") == 0
    assert re.search(
        rf"^alignmask +{alignmask.__version__} in {Path(alignmask.__file__).parent}$",
        alignmask_.out,
        re.MULTILINE,
    )
    assert re.search(
        r"^variables .*ALIGNMASK_CUDA=OFF.*, OMP_NUM_THREADS=7", alignmask_.out, re.MULTILINE
    )
    assert f", numpy {np.__version__}\n" in alignmask_.out
    assert re.search(rf"^torch +{re.escape(torch.__version__)}", alignmask_.out, re.MULTILINE)
    for op in alignmask.ops.OPS:
        assert re.search(rf"^{op} +(kernel|reference)", alignmask_.out, re.MULTILINE)
    assert alignmask_("info", "extra") == 2


WITHOUT_EXTRA = """
import sys
MISSING = sys.argv[1:]
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in MISSING else find_spec(name, *rest)
sys.meta_path.insert(0, Missing())
from alignmask.cli import main
assert main(["info"]) == 0
assert main(["--help"]) == 0
sys.exit(main(["train", "shapes_tiny"]))
"""


def test_without_the_extra_there_is_info_and_advice() -> None:
    """In a process of its own, in which the extra's packages cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_EXTRA, *_TRAIN_MODULES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    advice = f"needs {', '.join(_TRAIN_MODULES)}: install them with `pip install '.[train]'` in AlignMask's folder."
    assert f"extra [train]  it {advice}" in done.stdout  # of info
    assert done.stderr == f"alignmask: alignmask train {advice}\n"


def test_flops(alignmask_: Terminal) -> None:
    assert alignmask_("flops", "r50_50ep", "--size", 800, 1333, "--aligned-queries", 100) == 0
    first, second, *table = alignmask_.out.splitlines()
    assert first == "r50_50ep: 44.2 M parameters"
    assert (
        second
        == "one image of 800 x 1333 (padded to 800 x 1344), 100 object queries and 100 aligned queries"
    )
    assert max(map(len, alignmask_.out.splitlines())) <= 100
    values = {
        line.rsplit(maxsplit=1)[0].split(":")[0].strip(): line.split()[-1]
        for line in table
        if line.strip()
    }
    parts = [
        float(values[n])
        for n in ("backbone", "pixel decoder", "query decoder", "mask logits of the last output")
    ]
    assert float(values["total"]) == pytest.approx(sum(parts), abs=0.2)
    assert float(values["plain total"]) > float(values["total"])


def test_flops_at_the_recipes_own_size(alignmask_: Terminal) -> None:
    assert alignmask_("flops", "shapes_tiny") == 0
    assert "one image of 96 x 128 (padded to 96 x 128), 20 object queries\n" in alignmask_.out
    for line in alignmask_.out.splitlines():
        assert not line.strip().endswith(" 0.0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("r51",), "unknown recipe 'r51': expected one of r50_50ep, "),
        (("r50_50ep", "--size", "0", "32"), "--size: expected positive sides, got 0 32"),
        (
            ("r50_50ep", "--aligned-queries", "-1"),
            "--aligned-queries -1: r50_50ep cannot have fewer than 0",
        ),
        (
            ("mask2former_r50_50ep", "--aligned-queries", "1"),
            "--aligned-queries 1: mask2former_r50_50ep has none",
        ),
    ],
)
def test_flops_mistakes(alignmask_: Terminal, arguments: tuple[str, ...], message: str) -> None:
    assert message in alignmask_.complaint("flops", *arguments)


# -- demo
# --------------------------------------------------------------------------------------------------


def test_demo_from_nothing_to_pictures(
    alignmask_: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_recipe(tmp_path)
    monkeypatch.setattr("alignmask.commands.demo.shapes_tiny", lambda: config)
    assert alignmask_("demo", "--minutes", "0.01", "--out", tmp_path / "demo") == 0
    pictures = re.findall(r"^[\w ]+: (.*\.png)$", alignmask_.out, re.MULTILINE)
    assert len(pictures) == 3
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 100
    assert "mask AP (%), 3 images" in alignmask_.out
    assert f"alignmask predict {tmp_path / 'demo' / 'run'} " in alignmask_.out


def tiny_recipe(folder: Path) -> Any:
    """The config that the tiny command line makes."""
    caught: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "run", lambda config, **_: caught.append(config) or 0)
        assert cli.main(train_arguments(folder, iterations=3)) == 0
    return caught[0]


def test_demo_mistakes(alignmask_: Terminal) -> None:
    assert "--minutes: expected more than 0, got -1" in alignmask_.complaint(
        "demo", "--minutes", "-1"
    )


# -- the end of a command
# ------------------------------------------------------------------------------------------------


def test_unknown_command(alignmask_: Terminal) -> None:
    assert (
        alignmask_.complaint("trian")
        == f"unknown command 'trian': expected one of {', '.join(cli.COMMANDS)}"
    )


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "alignmask: interrupted"),
        (ValueError("so and so"), 2, "alignmask: so and so"),
        (
            FileNotFoundError(2, "No such file", "x.json"),
            2,
            "alignmask: [Errno 2] No such file: 'x.json'",
        ),
        (ValueError(), 2, "alignmask: ValueError"),
        (FloatingPointError("loss is not finite"), 2, "alignmask: loss is not finite"),
        (
            CocoError(
                "Caught CocoError in DataLoader worker process 0.\nOriginal Traceback (most recent "
                "call last):\n"
                '  File "images.py", line 4, in open\nPIL.UnidentifiedImageError: cannot identify it\n\nThe above '
                "exception was the direct cause of the following exception:\n\nTraceback (most "
                "recent call last):\n"
                '  File "coco.py", line 9, in load\nalignmask.data.index.CocoError: a.json: image 3: a.png: damaged\n'
            ),
            2,
            "alignmask: a.json: image 3: a.png: damaged",
        ),
    ],
)
def test_exit_codes(
    alignmask_: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
    line: str,
) -> None:
    def fail(_: list[str]) -> int:
        raise raised

    monkeypatch.setattr("alignmask.commands.info.main", fail)
    assert alignmask_("info") == code
    assert alignmask_.err.strip() == line
    monkeypatch.setenv("ALIGNMASK_DEBUG", "1")
    assert alignmask_("info") == code
    assert ("Traceback" in alignmask_.err) == (code == 2)


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: list[str]) -> int:
        raise TypeError("ours")

    monkeypatch.setattr("alignmask.commands.info.main", fail)
    with pytest.raises(TypeError):
        cli.main(["info"])


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device 'cpus' cannot be used"):
        choose_device("cpus")


def test_as_a_program_with_ctrl_c(workshop: Path) -> None:
    """The one test that starts the program itself: Ctrl-C while it loads or predicts ends it with
    130, in one line."""
    images = workshop / "many"
    for k in range(400):
        photo(images / f"{k}.png", (60, 60 + k % 7))
    command = [
        sys.executable,
        "-m",
        "alignmask.cli",
        "predict",
        workshop / "run",
        images,
        "--out",
        workshop / "stopped",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and what they start, ignore Ctrl-C: `make test &` must not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 90
        while not list((workshop / "stopped").glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "alignmask: interrupted"
    assert "Traceback" not in err
