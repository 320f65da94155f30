"""Looking up what a `config.json` says, and telling all that is wrong with it in one error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vlm_jax.errors import UserError

CONFIG, IMAGES = "config.json", "preprocessor_config.json"
"""Files of a model folder that say what the model is and how images are prepared for it."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu2": "relu2",
    "silu": "silu",
}
"""What `transformers` calls our activations; of two names of one, the first is written."""


def activation_name(activation: str) -> str:
    """What `transformers` calls one of our activations."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation)


class Fields:
    """Fields of a config; problems are collected until `finish`.

    Attributes:
      config: the mapping itself.
      where: what to call the file in errors.
      name: path to this part of the file, with a dot at its end, or "".
    """

    def __init__(self, config: Mapping[str, Any], where: str, name: str = "") -> None:
        self.config, self.where, self.name = config, where, name
        self.problems: list[str] = []

    def part(self, name: str) -> Fields:
        """A nested mapping, whose problems are counted with the rest.

        Raises:
          UserError: there is none.
        """
        if not isinstance(self.config.get(name), Mapping):
            raise UserError(f"{self.where}: '{self.name}{name}' is missing")
        part = Fields(self.config[name], self.where, f"{self.name}{name}.")
        part.problems = self.problems
        return part

    def get(self, name: str, default: Any = None) -> Any:
        """A field, or the default where it is missing or null."""
        value = self.config.get(name)
        return default if value is None else value

    def __getitem__(self, name: str) -> Any:
        """A field that must be there.

        Raises:
          UserError: it is missing or null.
        """
        if self.config.get(name) is None:
            self.wrong(name, "is missing")
            self.finish()
        return self.config[name]

    def wrong(self, name: str, what: str) -> None:
        """Notes a problem with a field."""
        self.problems.append(f"{self.name}{name} {what}")

    def need(self, name: str, value: Any, default: Any) -> None:
        """Notes a problem unless the field has the one value that our code has."""
        found = self.get(name, default)
        if found != value:
            self.wrong(name, f"must be {value!r}, is {found!r}")

    def count(self, name: str, default: int | None = None) -> int:
        """A field that must hold a positive whole number (missing or null is an error where there is no default).

        Raises:
          UserError: it holds something else.
        """
        value = self[name] if default is None else self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.wrong(name, f"must be a positive whole number, is {value!r}")
            self.finish()
        return value

    def layer(self, name: str, default: int) -> int:
        """A field that must hold the number of a hidden state, possibly counted from the end (errors as `count`)."""
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            self.wrong(name, f"must be a whole number, is {value!r}")
            self.finish()
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A field that must hold a positive finite number (errors as `count`)."""
        value = self[name] if default is None else self.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            self.wrong(name, f"must be a positive number, is {value!r}")
            self.finish()
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """A field that must be true or false (errors as `count`)."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            self.wrong(name, f"must be true or false, is {value!r}")
            self.finish()
        return value

    def choice(self, name: str, known: Mapping[str, Any]) -> Any:
        """Our word for one of theirs.

        Raises:
          UserError: it is none of the known.
        """
        value = self[name]
        if not isinstance(value, str) or value not in known:
            self.wrong(name, f"must be one of {', '.join(known)}, is {value!r}")
            self.finish()
        return known[value]

    def activation(self, name: str) -> Any:
        """Our name of an activation."""
        return self.choice(name, ACTIVATIONS)

    def square(self, name: str) -> int:
        """The side of a size given as a number or as two equal ones."""
        value = self[name]
        sides = value if isinstance(value, list | tuple) else [value, value]
        if len(set(sides)) != 1:
            self.wrong(name, f"must be square, is {value!r}")
        return sides[0]

    def finish(self) -> None:
        """Raises what was noted.

        Raises:
          UserError: naming every problem.
        """
        if self.problems:
            raise UserError(f"{self.where}: {'; '.join(self.problems)}")
