"""What Prefect's API keeps, and what is said where it does not give it out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.blocks.core import Block
from prefect.exceptions import ObjectNotFound, PrefectException
from pydantic import ValidationError

from prefect_parallelrun.errors import ConfigError


def load(name: str, what: str) -> Block:
    """Return a block that was saved.

    Args:
        name: `<slug of the block's type>/<name of the block>`.
        what: it is needed for; the beginning of the error.

    Raises:
        ConfigError: there is no such block, it cannot be read, or Prefect's API does not answer.
    """
    with answered(what):
        try:
            # Without this, an async flow would be given a coroutine.
            block: Block = Block.load(name, _sync=True)  # type: ignore[call-arg, assignment]
        except RuntimeError as error:
            if not isinstance(error.__cause__, ValidationError):
                raise
            complaints = _complaints(error.__cause__)
            raise ConfigError(
                f"{what} cannot be read: the block does not fit its type: {complaints}; edit it on the "
                "Blocks page, or save it again"
            ) from None
        except ValueError as error:
            if not isinstance(error.__cause__, ObjectNotFound):
                # Never its text: it may quote what the block holds.
                raise ConfigError(
                    f"{what} cannot be read: the block does not fit its type, or the "
                    f"collection with that type is not installed ({type(error).__name__})"
                ) from None
            raise ConfigError(
                f"{what}: there is no such block in Prefect; make it with "
                f"block.save({name.partition('/')[2]!r}), or on the Blocks page"
            ) from None
    return block


def _complaints(error: ValidationError) -> str:
    """Say what does not fit. Of what is not ours, only where: a message may quote what the block holds."""
    texts = []
    for one in error.errors(include_input=False, include_url=False):
        cause = one.get("ctx", {}).get("error")
        field = ".".join(map(str, one["loc"]))
        texts.append(str(cause) if isinstance(cause, ConfigError) else f"{field} ({one['type']})")
    return "; ".join(texts)


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Say of whatever goes wrong with Prefect's API what it was needed for.

    Raises:
        ConfigError: something did.
    """
    try:
        yield
    except ConfigError:
        raise
    except (httpx.HTTPError, PrefectException, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{what}: Prefect's API, which keeps it, gave no answer that helps "
            f"({type(error).__name__}); set PREFECT_API_URL to a server that runs"
        ) from None
