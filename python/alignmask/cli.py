"""The command line.

Every command is a module of `alignmask.commands`, which is imported only when the command is
chosen. `alignmask info` therefore works without the extra `[train]`, and `--help` is quick.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from alignmask._extras import require_train
from alignmask._version import __version__
from alignmask.commands._console import INTERRUPTED, USER_ERROR, complain

COMMANDS = {
    "train": "train a model with the settings of a recipe, or continue a stopped run",
    "eval": "measure COCO mask AP and alignment statistics of a checkpoint, an exported file, or any model's results file",
    "analyze": "show how well scores follow mask quality, several models side by side: tables, plots, an interactive page",
    "calibrate": "which mask IoU to expect of a score, and which scores to trust, of a checkpoint or a results file",
    "predict": "segment images: write overlay pictures, COCO JSON, label maps, GeoJSON outlines",
    "data": "check, mend, describe, split, tile and convert data sets",
    "ablate": "run the paper's ablations and others: a grid of runs, shared by any number of processes, and its table",
    "convert": "convert weights from and to Mask2Former's own code and Hugging Face",
    "demo": "train a small model on built-in synthetic images in minutes, evaluate it, draw pictures",
    "export": "write a checkpoint as a torch.export program or as ONNX",
    "bench": "time an exported file",
    "replay": "repeat a training step whose loss was not finite, and say where that began",
    "reproduce": "train a run again from its folder, and say where it differs first",
    "flops": "count parameters and multiply-adds of a recipe's model",
    "info": "show versions, build, processor, GPUs, and what each op runs on",
}
WITHOUT_EXTRA = ("info",)
MODULES = {"eval": "evaluate"}
"""The modules whose name is not that of their command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 0; 2 for a user's mistake, with one message on
    stderr; or 130 after Ctrl-C."""
    # This must be set before torch is imported. Threads that spin for a long time while they wait
    # make training several times slower as soon as another process wants a core; a short spin costs
    # nothing on a quiet machine (docs/log.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else USER_ERROR
    if arguments[0] in ("-V", "--version"):
        print(f"alignmask {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return complain(f"unknown command {name!r}: expected one of {', '.join(COMMANDS)}")
    try:
        if name not in WITHOUT_EXTRA:
            require_train(f"alignmask {name}")
        with warnings.catch_warnings():
            if not _debugging():
                warnings.showwarning = _show_warning
            code: int = importlib.import_module(
                f"alignmask.commands.{MODULES.get(name, name)}"
            ).main(rest)
        return code
    except SystemExit as stop:  # how the option parser ends after --help or a wrong option
        return stop.code if isinstance(stop.code, int) else USER_ERROR
    except BrokenPipeError:  # the reader of our output has gone (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except (
        ValueError,
        OSError,
        ImportError,
        FloatingPointError,
    ) as error:  # what mistakes and faulty data raise
        if _debugging():
            traceback.print_exc()
        return complain(_message(error))


def _message(error: Exception) -> str:
    """The text of an error. torch repeats the whole traceback of an error in a data-loading
    process; only its end is kept."""
    text = str(error) or type(error).__name__
    if re.match(r"Caught \w+ in DataLoader worker", text):
        text = re.split(r"\n[\w.]+(?:Error|Exception): ", text)[-1].strip()
    return text


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Show a warning as one line, without its place in the source."""
    print(f"alignmask: warning: {message}", file=sys.stderr)


def _debugging() -> bool:
    return bool(os.environ.get("ALIGNMASK_DEBUG"))


def _usage() -> str:
    commands = "\n".join(f"  {name:<9} {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: alignmask COMMAND ...\n\n"
        "AlignMask: task-aligned mask queries for instance segmentation.\n\n"
        f"{commands}\n\n"
        "`alignmask COMMAND --help` describes a command. ALIGNMASK_DEBUG=1 shows the traceback of "
        "an error."
    )


if __name__ == "__main__":
    sys.exit(main())
