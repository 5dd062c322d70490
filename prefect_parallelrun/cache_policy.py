"""When Prefect may take the stored result of an earlier task run for a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from prefect import get_run_logger
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.exceptions import TerminationSignal

from prefect_parallelrun import stopping
from prefect_parallelrun.errors import ParallelRunError
from prefect_parallelrun.report.ticker import ticking
from prefect_parallelrun.work import Work, of_task_run


@dataclass
class ReusePolicy(CachePolicy):
    """Takes an earlier result where the step is the same, nothing failed, and its output is intact.

    Every step has it. It can be combined with Prefect's own policies, such as `ReusePolicy() + RUN_ID`.

    The key names the completion whose output stands for the step as it is now; where there is none, one
    that is about to come. Which it is, run folders say: what is stored under other keys is never asked for.
    """

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str:
        """Return the name under which the result is looked for, and will be stored."""
        try:
            with stopping.FlowWatch(dask=False) as watch:
                work = Work.of(inputs, watch.check)
            with ticking("looking for an earlier result", get_run_logger()):
                completion = work.completion(allow_reuse=inputs["allow_reuse"])
        except TerminationSignal as error:
            # Only a task's body can end as Cancelled; raised here, the task run would be Crashed.
            of_task_run.set((task_ctx.task_run.id, error, ""))
            return f"parallelrun-{uuid4().hex}"
        except ParallelRunError:
            # The task's body most likely meets the same error, and raises it. None would not do: a larger
            # policy leaves it out, and stores under the rest of its key what is of this call alone.
            return f"parallelrun-{uuid4().hex}"
        if completion is None:
            completion = uuid4().hex
            of_task_run.set((task_ctx.task_run.id, work, completion))
        return f"parallelrun-{work.fingerprint}-{completion}"
