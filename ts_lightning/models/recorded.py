"""Modules that remember how they were made, so that a checkpoint can name them in plain values."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any


class Recorded:
    """Mixin: every instance keeps the arguments of its constructor in `init_args` (name -> value, as given)."""

    init_args: dict[str, Any]

    @property
    def class_path(self) -> str:
        """The dotted name of its class."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def argument(self, name: str, given: Mapping[str, Any]) -> Any:
        """`name` under the arguments `given`: theirs, or the default of the nearest class that has one (else None)."""
        made_by = (vars(cls)["__init__"] for cls in type(self).__mro__ if "__init__" in vars(cls))
        signatures = [inspect.signature(init).parameters for init in made_by]
        defaults = [s[name].default for s in signatures if name in s and s[name].default is not inspect.Parameter.empty]
        return given[name] if name in given else next(iter(defaults), None)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _recording(cls.__init__)  # type: ignore[method-assign]


def _recording(init: Any) -> Any:
    @functools.wraps(init)
    def recording_init(self: Any, *args: Any, **kwargs: Any) -> None:
        if "init_args" not in vars(self):  # the class that is built, not its bases
            signature = inspect.signature(init)
            given = dict(list(signature.bind(self, *args, **kwargs).arguments.items())[1:])
            for name, parameter in signature.parameters.items():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:  # they are arguments by their own names
                    given |= given.pop(name, {})
                elif parameter.kind is inspect.Parameter.VAR_POSITIONAL and name in given:
                    expected = "expected each by its name, by which a checkpoint builds the class again"
                    raise ValueError(f"{type(self).__name__}: seen {len(given[name])} values for *{name}, {expected}")
            vars(self)["init_args"] = given
        init(self, *args, **kwargs)

    return recording_init
