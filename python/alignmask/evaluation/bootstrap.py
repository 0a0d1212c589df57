"""How certain a measure is: percentile bootstrap over images, of one model and of the difference of
two.

Predictions of one image depend on one another, so whole images are drawn. Shapes: I images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Measured = Mapping[str, float | None]
Measure = Callable[[np.ndarray | None], Measured]
"""Named numbers of a data set in which image i counts weight_I[i] times; None: each once."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; None where the measure is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is certain: its interval is all above or all below 0."""
        return self.low is not None and self.high is not None and self.low * self.high > 0

    def signed(self) -> str:
        """A difference, with its sign."""
        return self._signed(1, 3)

    def signed_percent(self) -> str:
        """Likewise, of percentages: in points."""
        return self._signed(100, 1)

    def _signed(self, factor: float, digits: int) -> str:
        if self.value is None:
            return "-"
        ends = [end for end in (self.low, self.high) if end is not None]
        value, *shown = (f"{factor * number:+.{digits}f}" for number in (self.value, *ends))
        return f"{value} [{', '.join(shown)}]" if shown else value

    def percent(self) -> str:
        """In percent, with one decimal."""
        if self.value is None:
            return "-"
        if self.low is None or self.high is None:
            return f"{100 * self.value:.1f}"
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def intervals(
    measure: Measure, images: int, *, resamples: int = 500, level: float = 0.95, seed: int = 0
) -> dict[str, Estimate]:
    """Every number that `measure` gives, with its percentile interval over resamples of the images.

    Resamples in which a number is not defined are left out of its interval. 0 resamples: no
    intervals.
    """
    value = measure(None)
    draws = [measure(weight_I) for weight_I in _weights(images, resamples, seed)]
    return {name: _estimate(value[name], [draw[name] for draw in draws], level) for name in value}


def paired_intervals(
    one: Measure,
    other: Measure,
    images: int,
    *,
    resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """The difference other - one of every number that both give, on the same resamples of the same
    images."""

    def difference(weight_I: np.ndarray | None) -> Measured:
        a, b = one(weight_I), other(weight_I)
        return {name: _minus(b[name], a[name]) for name in a if name in b}

    return intervals(difference, images, resamples=resamples, level=level, seed=seed)


def _weights(images: int, resamples: int, seed: int) -> np.ndarray:
    """int64 [resamples, I]: how often each image is drawn."""
    return np.random.default_rng(seed).multinomial(
        images, np.full(images, 1 / images), size=resamples
    )


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _estimate(value: float | None, draws: list[float | None], level: float) -> Estimate:
    defined = [draw for draw in draws if draw is not None]
    if value is None or not defined:
        return Estimate(value)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))
