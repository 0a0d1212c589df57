"""Calls with one wrong argument, and the errors that they must give."""

from __future__ import annotations

from collections.abc import Callable

Change = Callable[[list], None]
"""Makes one of the arguments of a call wrong, in place."""


class Errors(dict[str, tuple[type[Exception], str, Change]]):
    """By the name of the change: the type of the error, a pattern of its message, the change."""

    def expects(self, error: type[Exception], message: str) -> Callable[[Change], Change]:
        """Decorates a change that must give this error."""

        def add(change: Change) -> Change:
            self[change.__name__] = (error, message, change)
            return change

        return add
