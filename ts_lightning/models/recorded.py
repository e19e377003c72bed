"""Modules that remember how they were made, so that a checkpoint can name them in plain values."""

import functools
import inspect
from typing import Any


class Recorded:
    """Mixin: every instance keeps the arguments of its constructor in `init_args` (name -> value, as given)."""

    init_args: dict[str, Any]

    @property
    def class_path(self) -> str:
        """The dotted name of its class."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]


def _recording(init: Any) -> Any:
    @functools.wraps(init)
    def recording_init(self: Any, *args: Any, **kwargs: Any) -> None:
        if "init_args" not in vars(self):  # the class that is built, not its bases
            given = inspect.signature(init).bind(self, *args, **kwargs).arguments
            vars(self)["init_args"] = dict(list(given.items())[1:])
        init(self, *args, **kwargs)

    return recording_init
