"""What opens a storage, held so that nobody sees it who only looks at a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cloudpickle

_FLIPPED = bytes(range(255, -1, -1))
"""Each byte with all its bits the other way round."""


class Hidden:
    """Options that show in no repr, no JSON, and not in clear in a pickle; that is no encryption.

    Prefect writes the parameters of a flow into its database, and of an object that it does not know the
    `__dict__`: there is one, so that the rest of a dataset is shown, and it is empty.
    """

    __slots__ = ("__dict__", "_options")

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self._options = dict(options or {})

    def opened(self) -> Mapping[str, Any]:
        """Return the options; there may be secrets among them."""
        return self._options

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hidden) and self._options == other._options

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Hidden()" if not self._options else "Hidden(***)"

    def __deepcopy__(self, _: object) -> Hidden:
        # By `dataclasses.asdict`, of what may not be copied; and nobody changes it.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _read, (cloudpickle.dumps(self._options).translate(_FLIPPED),)


def _read(written: bytes) -> Hidden:
    return Hidden(cloudpickle.loads(written.translate(_FLIPPED)))
