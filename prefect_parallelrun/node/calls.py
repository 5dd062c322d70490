"""What the driver has run on a Dask worker: functions for `Client.run`, and the only Dask tasks of a run.

A bundle is pinned to one Dask worker and names one agent by its id, so that Dask can never run an attempt
a second time: a worker that came back at the same address has no agent of that id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import distributed

from prefect_parallelrun.node.agent import STALE, NodeAgent, name_of, remove
from prefect_parallelrun.node.homeward import Taken
from prefect_parallelrun.node.interpreters import NoEnvironment
from prefect_parallelrun.node.own_thread import in_own_thread
from prefect_parallelrun.node.sources import Sources
from prefect_parallelrun.node.transfer import Unavailable
from prefect_parallelrun_runtime import messages


async def admit_node(
    agent_id: str,
    settings: messages.Settings,
    run_folder: str,
    topic: str,
    sources: Sources,
    dask_worker: distributed.Worker,
) -> None:
    """Let this Dask worker know of the node that it is to be (sent by `Client.run`, past whatever is queued).

    Nothing is started yet: the lease is to come first, so that no driver can die in between and leave
    something that runs.
    """
    agent = NodeAgent(agent_id, settings, Path(run_folder), topic, sources)
    await dask_worker.plugin_add(plugin=agent, name=name_of(agent_id))
    agent.begin()


async def start_node(agent_id: str, dask_worker: distributed.Worker) -> dict[str, Any]:
    """Make this Dask worker the node that it was admitted as (sent by `Client.run`).

    A failure is returned, as text: Dask would log the arguments of a function that raises, and they
    hold the user's environment variables.
    """
    agent = dask_worker.plugins.get(name_of(agent_id))
    if not isinstance(agent, NodeAgent):
        return {"failure": "it was let go of before it was started", "has_ended": True}
    try:
        return await in_own_thread(agent.start)
    except Exception as error:
        has_ended = {"has_ended": True} if agent.has_ended else {}
        home = await in_own_thread(agent.take_home, 0)
        await in_own_thread(agent.stop, gracefully=False)
        await remove(agent_id, dask_worker)
        if isinstance(error, Unavailable | NoEnvironment):
            lacking = "side inputs" if isinstance(error, Unavailable) else "environment"
            return {"failure": agent.at_home(str(error)), "lacking": lacking, "home": home}
        return {"failure": f"{type(error).__name__}: {error}", "home": home, **has_ended}


async def stop_node(
    agent_id: str, gracefully: bool, keep: bool, dask_worker: distributed.Worker
) -> list[dict[str, Any]]:
    """End the run on this node (sent by `Client.run`); see `NodeAgent.stop`.

    Nothing of it is left, unless it is to keep what is to come home until `forget_node`.
    """
    agent = dask_worker.plugins.get(name_of(agent_id))
    if not isinstance(agent, NodeAgent):
        return []
    news = await in_own_thread(agent.stop, gracefully=gracefully, keep=keep)
    if not keep:
        await remove(agent_id, dask_worker)
    return news


async def forget_node(agent_id: str, dask_worker: distributed.Worker) -> None:
    """Remove all that a node kept after its end (sent by `Client.run`)."""
    await remove(agent_id, dask_worker)


async def take_home(agent_id: str, arrived: int, dask_worker: distributed.Worker) -> Taken | None:
    """Return what a node has for the run folder that it does not see (sent by `Client.run`).

    None: there is no such node.
    """
    agent = dask_worker.plugins.get(name_of(agent_id))
    if not isinstance(agent, NodeAgent):
        return None
    return await in_own_thread(agent.take_home, arrived)


async def answered(
    agent_id: str,
    number: int,
    data: bytes,
    error: tuple[int, str] | None,
    dask_worker: distributed.Worker,
) -> None:
    """Bring a node what it has asked of the driver (sent by `Client.run`); see `Requests`."""
    agent = dask_worker.plugins.get(name_of(agent_id))
    if isinstance(agent, NodeAgent):
        agent.requests.answered(number, data, error)


def hold_node(agent_id: str) -> None:
    """Dask task: the driver's lease on a node, as long as both live.

    Nothing else tells a Dask worker that a client is gone: Dask then releases this task, within
    milliseconds (measured), and the agent ends the node.
    """
    agent = distributed.get_worker().plugins.get(name_of(agent_id))
    if isinstance(agent, NodeAgent):
        distributed.secede()
        agent.hold()


def run_bundle(agent_id: str, number: int, header: messages.BundleHeader, tasks: bytes) -> bytes:
    """Dask task: run one bundle; return its frames, or `STALE`."""
    agent = distributed.get_worker().plugins.get(name_of(agent_id))
    if not isinstance(agent, NodeAgent):
        return STALE
    # Waiting costs no thread of the Dask worker: other people's tasks go on.
    distributed.secede()
    return agent.run(number, header, tasks)
