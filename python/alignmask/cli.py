"""The command line. Every command is a module of `alignmask.commands`, imported once it is chosen: so `alignmask info`
works, and `--help` is quick, without the extra `[train]`."""

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
    "train": "train a model by a recipe, or continue a stopped run",
    "eval": "COCO mask AP and alignment statistics of a checkpoint, or of any model's results file",
    "analyze": "how well scores follow mask quality, several models side by side: tables, plots, an interactive page",
    "predict": "segment images: overlay pictures, and predictions as COCO JSON",
    "ablate": "the paper's ablations, and others: a grid of runs, shared by any number of processes, and its table",
    "convert": "weights from and to Mask2Former's own code and Hugging Face",
    "demo": "train a small model on built-in synthetic images in minutes, evaluate it, draw pictures",
    "export": "write a checkpoint as a torch.export program or as ONNX",
    "flops": "parameters and multiply-adds of a recipe's model",
    "info": "versions, build, processor, GPUs, and what each op runs on",
}
WITHOUT_EXTRA = ("info",)
MODULES = {"eval": "evaluate"}
"""Modules that have another name than their command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 2 for a user's mistake (one message on stderr), 130 after Ctrl-C."""
    # Before torch is imported: threads that wait by spinning for long slow training down several times as soon as any
    # other process wants a core; a short spin costs nothing on a quiet machine (docs/log.md).
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
            code: int = importlib.import_module(f"alignmask.commands.{MODULES.get(name, name)}").main(rest)
        return code
    except SystemExit as stop:  # how the option parser ends after --help or a wrong option
        return stop.code if isinstance(stop.code, int) else USER_ERROR
    except BrokenPipeError:  # the reader of our output has gone (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:  # what mistakes and faulty data raise
        if _debugging():
            traceback.print_exc()
        return complain(_message(error))


def _message(error: Exception) -> str:
    """What the error says. torch repeats an error of a data-loading process with its whole traceback: of that the last part."""
    text = str(error) or type(error).__name__
    if re.match(r"Caught \w+ in DataLoader worker", text):
        text = re.split(r"\n[\w.]+(?:Error|Exception): ", text)[-1].strip()
    return text


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line, without the place in our code."""
    print(f"alignmask: warning: {message}", file=sys.stderr)


def _debugging() -> bool:
    return bool(os.environ.get("ALIGNMASK_DEBUG"))


def _usage() -> str:
    commands = "\n".join(f"  {name:<9} {summary}" for name, summary in COMMANDS.items())
    return (
        "usage: alignmask COMMAND ...\n\n"
        "AlignMask: task-aligned mask queries for instance segmentation.\n\n"
        f"{commands}\n\n"
        "`alignmask COMMAND --help` tells more. ALIGNMASK_DEBUG=1 shows the traceback of an error."
    )


if __name__ == "__main__":
    sys.exit(main())
