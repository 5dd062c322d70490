"""A setting or an argument of a step that the flow run's parameter gives (R39)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from prefect_parallelrun import checks
from prefect_parallelrun.errors import ConfigError, refuse


@dataclass(frozen=True, slots=True)
class PipelineParameter:
    """A value that the flow run's parameter `name` gives, or `default_value` where it has none."""

    name: str
    """The flow's parameter."""
    default_value: Any = None
    """What holds in a flow without that parameter, and outside of flows."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise checks.unfit("PipelineParameter.name", self.name, "a parameter of the flow")

    @classmethod
    def of(cls, fields: Any) -> Self:
        """Return the one that was written as a mapping.

        Raises:
            ConfigError: it is no mapping of name and default_value.
        """
        known = {"name", "default_value"}
        if not isinstance(fields, Mapping) or not {"name"} <= set(fields) <= known:
            raise refuse(
                "pipeline_parameter", fields, "it must be a mapping of name and default_value"
            )
        return cls(**fields)

    def value(self, parameters: Mapping[str, Any]) -> Any:
        """Return the value under these parameters of a flow run."""
        return parameters.get(self.name, self.default_value)


@contextmanager
def blamed(*given: tuple[str, PipelineParameter]) -> Iterator[None]:
    """Let errors of values name the flow's parameters as well.

    Args:
        given: the parameter of ours that has such a value, and what it is the value of.
    """
    try:
        yield
    except ConfigError as error:
        if not given:
            raise
        named = ", ".join(f"{where} is the flow's parameter {one.name!r}" for where, one in given)
        raise ConfigError(f"{error} ({named})") from None
