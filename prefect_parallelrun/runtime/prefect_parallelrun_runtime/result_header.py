"""The header of a result, as JSON: by a template, which takes a third of the time that `json` does.

There is one for each mini-batch, and what it costs is a tenth of the time between two empty ones.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_parallelrun_runtime.messages import Result

# Names of processes and outcomes need no escapes; the order is that of `messages.Result`.
_ALWAYS = (
    '{"position":%d,"process":"%s","outcome":"%s","items":%d,"rows":%d,"started_at":%.6f,'
    '"elapsed_s":%.6f,"cpu_s":%.6f,"load_s":%.6f,"run_s":%.6f'
)


def encode(result: Result) -> bytes:
    """Return the header of a result of which all times are known."""
    text = _ALWAYS % (
        result["position"],
        result["process"],
        result["outcome"],
        result["items"],
        result["rows"],
        result["started_at"],
        result["elapsed_s"],
        result["cpu_s"],
        result["load_s"],
        result["run_s"],
    )
    if "columns" in result:
        text = f'{text},"columns":{json.dumps(result["columns"])}'
    if "error" in result:
        text = f'{text},"error":{json.dumps(result["error"])}'
    return f"{text}}}".encode()
