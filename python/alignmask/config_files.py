"""Settings as JSON, read back and compared."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignmask.config import Config


@dataclass(frozen=True)
class RemovedField:
    """A setting of earlier versions. It can be read where it has the default, which is what the
    code does today."""

    default: Any
    last_commit: str
    """The last commit whose code has the setting."""


REMOVED_FIELDS = {
    "model.aligned_queries.outline_share": RemovedField(0.0, "70a9a1b"),
    "model.aligned_queries.noised_sets": RemovedField(0, "70a9a1b"),
    "model.aligned_queries.noise": RemovedField(0.3, "70a9a1b"),
}


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain JSON values; `config_from_dict` reads them back."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def config_from_dict(values: dict[str, Any], source: str = "config") -> Config:
    """Raises ValueError that names `source` and the field for an unknown field, a missing value or
    a wrong type."""
    import dacite

    try:
        known = _without_removed(values, source)
        return dacite.from_dict(Config, known, dacite.Config(cast=[Path, tuple], strict=True))
    except (dacite.DaciteError, TypeError) as error:  # TypeError: of a path that is a number, ...
        raise ValueError(f"{source}: {error}") from error


def _without_removed(values: dict[str, Any], source: str, prefix: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        removed = REMOVED_FIELDS.get(name)
        if removed is None:
            kept[key] = (
                _without_removed(value, source, f"{name}.") if isinstance(value, dict) else value
            )
        elif value != removed.default:
            raise ValueError(
                f"{source}: {name} = {value} is not supported any more; commit "
                f"{removed.last_commit} is the last that has it"
            )
    return kept


@dataclass(frozen=True)
class Change:
    """A setting in which two configs differ."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new}"


def changed_fields(old: Config, new: Config, may_differ: Collection[str] = ()) -> list[Change]:
    """The settings in which two configs differ, other than those named in `may_differ`."""
    return [change for change in _changes(old, new, "") if change.name not in may_differ]


def _changes(old: Any, new: Any, name: str) -> Iterator[Change]:
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        for inner in dataclasses.fields(old):
            yield from _changes(
                getattr(old, inner.name),
                getattr(new, inner.name),
                f"{name}.{inner.name}".lstrip("."),
            )
    elif old != new:
        yield Change(name, old, new)


def without_pretrained(config: Config) -> Config:
    """The same config, but with random initial weights in the backbone, for a model whose weights
    come from elsewhere."""
    backbone = dataclasses.replace(config.model.backbone, pretrained=False)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=backbone))
