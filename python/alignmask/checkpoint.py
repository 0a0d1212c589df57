"""Checkpoints: written atomically, read without executing code.

A checkpoint is a folder: model.safetensors (weights), ema.safetensors (their moving average, if
there is one), state.pt (optimizer and loss scale), config.json (all settings of the run), meta.json
(step, classes, metrics), checksums.json (SHA-256 of the tensors' files; older checkpoints have
none).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignmask._files import sha256, write_json
from alignmask.config import Config
from alignmask.config_files import config_from_dict, config_to_dict
from alignmask.safe_load import read_pickled

MODEL, EMA, STATE, CONFIG, META = (
    "model.safetensors",
    "ema.safetensors",
    "state.pt",
    "config.json",
    "meta.json",
)
CHECKSUMS = "checksums.json"
CALIBRATION = "calibration.json"
_OLD = ".old"
"""What the name of a checkpoint ends with that is about to be removed."""
RELEASED = Path(__file__).parent / "released"
"""Checkpoints that come with the package, each in a folder of its name."""


def save(
    folder: Path,
    config: Config,
    weights: dict[str, Tensor],
    meta: dict[str, Any],
    ema: dict[str, Tensor] | None = None,
    state: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint to `folder`, replacing one that is there. If the process is killed, the
    old or the new one remains.

    Raises OSError that names the folder if it cannot be written, for lack of space for example.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        try:
            save_file(_storable(weights), temporary / MODEL)
            if ema is not None:
                save_file(_storable(ema), temporary / EMA)
            if state is not None:
                torch.save(state, temporary / STATE)
        except (SafetensorError, RuntimeError) as error:  # both are raised for a full disk
            raise OSError(f"checkpoint {folder}: cannot be written: {error}") from error
        checksums = {file.name: sha256(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / CHECKSUMS, checksums, indent=2)
        write_json(temporary / CONFIG, config_to_dict(config), indent=2)
        write_json(temporary / META, meta, indent=2)
        for file in temporary.iterdir():
            os.chmod(file, 0o644)
            _fsync(file)
        os.chmod(temporary, 0o755)  # mkdtemp makes it readable by its owner alone
        _fsync(temporary)
        _replace(temporary, folder)
        _fsync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`. A folder cannot replace a non-empty one, so the old one
    is renamed first."""
    if not folder.exists():
        os.rename(new, folder)
        return
    aside = folder.with_name(f".{folder.name}{_OLD}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    os.rename(new, folder)
    shutil.rmtree(aside)


def _storable(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DamagedCheckpoint(ValueError):
    """A file of a checkpoint is not what was written."""


def check(folder: Path) -> None:
    """Raises ValueError or FileNotFoundError that names a file which is missing, not what `save`
    wrote, or no JSON.

    Of checkpoints that older versions wrote, without checksums, only the JSON files are checked.
    """
    for name in _checksums(folder):
        _check_file(folder / name)
    load_config(folder)
    load_meta(folder)


def _check_file(path: Path) -> None:
    expected = _checksums(path.parent).get(path.name)
    if expected is None:
        return
    if not path.is_file():
        raise DamagedCheckpoint(f"checkpoint {path.parent}: {path.name} is missing")
    if sha256(path) != expected:
        raise DamagedCheckpoint(
            f"checkpoint file {path} is damaged: it is not what was written, by {CHECKSUMS}. Take "
            "another checkpoint, or copy this one again. If the file was changed on purpose, "
            f"remove {CHECKSUMS}"
        )


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    try:
        return _read_json(path)
    except ValueError as error:
        raise DamagedCheckpoint(f"checkpoint file {path} is damaged: {error}") from error


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run; None without one."""
    found = sorted((run / "checkpoints").glob("step_*"))
    return found[-1] if found else None


def prune(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for folder in sorted((run / "checkpoints").glob("step_*"))[:-keep]:
        # Killed while it removes files, it would leave half a checkpoint behind.
        hidden = folder.rename(folder.with_name(f".{folder.name}{_OLD}"))
        shutil.rmtree(hidden)


def tidy(run: Path) -> None:
    """Remove what killed processes left half written or half removed in a run that no process
    trains, and put back a checkpoint that was about to be replaced."""
    for left in [*run.glob(".best.*"), *run.glob("checkpoints/.step_*"), *run.glob(".*.part*")]:
        name = left.name.removeprefix(".")
        whole = left.with_name(name.removesuffix(_OLD))
        if name == f"best{_OLD}" and not whole.exists():
            left.rename(whole)
        elif left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def released() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(file.parent.name for file in RELEASED.glob(f"*/{MODEL}"))


def resolve(path: Path) -> Path:
    """The checkpoint that `path` names: a checkpoint's folder, a file in it, a run (its best one,
    otherwise its newest), or a model that comes with the package, if nothing else has that name.

    Raises FileNotFoundError for anything else, and ValueError for a Hugging Face folder.
    """
    if not path.exists():
        if str(path) in released():
            return RELEASED / path
        raise FileNotFoundError(
            f"checkpoint {path}: no such file or folder, and no model of the package "
            f"({', '.join(released())})"
        )
    foreign = (
        f"To convert weights of Mask2Former or Hugging Face into one: alignmask convert {path} DIR"
    )
    own = (MODEL, EMA, STATE, CONFIG, META, CALIBRATION, CHECKSUMS)
    if path.is_file() and path.name not in own:
        raise FileNotFoundError(f"checkpoint {path}: not a file of a checkpoint folder. {foreign}")
    best = path / "best"
    candidates = (
        [path.parent]
        if path.is_file()
        else [path, best if best.exists() else path / f".best{_OLD}", latest(path)]
    )
    for candidate in candidates:
        if candidate is None or not (candidate / MODEL).is_file():
            continue
        if (candidate / CONFIG).is_file() and "model_type" in _read_json(candidate / CONFIG):
            raise ValueError(f"checkpoint {path}: not a checkpoint of AlignMask. {foreign}")
        return candidate
    raise FileNotFoundError(
        f"checkpoint {path}: neither a checkpoint nor a run with one (no {MODEL} in it). {foreign}"
    )


def load_config(folder: Path) -> Config:
    return config_from_dict(_read_json(folder / CONFIG), source=str(folder / CONFIG))


def load_meta(folder: Path) -> dict[str, Any]:
    return _read_json(folder / META)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"checkpoint {path.parent}: {path.name} is missing") from None
    except (ValueError, RecursionError) as error:  # of JSON or of UTF-8
        raise ValueError(f"checkpoint file {path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"checkpoint file {path}: expected a JSON object")
    return found


def load_weights(folder: Path, ema: bool = True) -> dict[str, Tensor]:
    """The moving average if `ema` and there is one, otherwise the trained weights."""
    path = folder / EMA if ema and (folder / EMA).is_file() else folder / MODEL
    _check_file(path)
    try:
        return load_file(path)
    except Exception as error:  # safetensors' own error type carries no path
        raise ValueError(f"checkpoint file {path} cannot be read: {error}") from error


def load_state(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {folder}: {STATE} is missing, so training cannot be resumed from it"
        )
    _check_file(path)
    return read_pickled(path)


def write_config(run: Path, config: Config) -> None:
    """Write the resolved configuration into the folder of a run."""
    write_json(run / CONFIG, config_to_dict(config), indent=2)
