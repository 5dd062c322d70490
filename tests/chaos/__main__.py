"""`python -m tests.chaos --rounds N --seed S [--keep]`: many rounds, a line for each, and a table."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.chaos import disk, leaks
from tests.chaos.cluster import ChaosCluster
from tests.chaos.faults import Kind
from tests.chaos.judge import disturbed
from tests.chaos.plan import Plan, make_plan
from tests.chaos.round import Outcome, Round
from tests.chaos.server import PrefectServer

COLUMNS = ("faults", "missed", "rounds", "lost", "doubled", "innocent", "leaked", "hung", "wrong")


def main() -> int:
    """Run the rounds; 1 if any of them broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--seed", type=int, default=None, help="of the first round (default: any)")
    parser.add_argument("--only", default="", help="kinds of faults, by a part of their name")
    parser.add_argument(
        "--flow-every",
        type=int,
        default=8,
        help="one round in so many goes through a real Prefect flow; 0: none (default: 8)",
    )
    parser.add_argument("--keep", action="store_true", help="keep the folders of good rounds too")
    arguments = parser.parse_args()
    # Else a SIGTERM would leave the cluster, the server and the small disk behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    seed = arguments.seed if arguments.seed is not None else random.randrange(1_000_000)
    kinds = [kind for kind in Kind if arguments.only in kind]
    if not disk.may_mount():
        print("A tmpfs cannot be mounted here: no round has a full disk; file sizes are limited.")
        kinds = [kind for kind in kinds if kind != Kind.DISK_FULL]
    every = arguments.flow_every
    flow_at = min(arguments.rounds, every) - 1
    plans = (
        make_plan(seed + n, kinds=kinds, in_flow=every > 0 and n % every == flow_at)
        for n in range(arguments.rounds)
    )
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"{arguments.rounds} rounds from seed {seed} in {folder}", flush=True)
    outcomes: list[Outcome] = []
    for outcome in play(plans, folder, keep=arguments.keep):
        print("\n".join(told(outcome)), flush=True)
        outcomes.append(outcome)
    print("\n".join(table(outcomes)))
    good = all(outcome.verdict.good for outcome in outcomes)
    if good and not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


def play(plans: Iterable[Plan], folder: Path, *, keep: bool) -> Iterator[Outcome]:
    """Run rounds on one cluster; after one that went wrong, on a new one."""
    server = PrefectServer(folder)
    cluster = None
    try:
        for plan in plans:
            if cluster is None:
                cluster = ChaosCluster(folder / f"cluster-{plan.seed}")
            cluster.wait_whole()
            round_folder = folder / plan.name
            outcome = Round(plan, cluster, round_folder, server).run()
            yield outcome
            if not outcome.verdict.good:
                cluster.close()
                leaks.kill_processes(cluster, plan.name)
                cluster = None
            elif not keep:
                shutil.rmtree(round_folder)
    finally:
        if cluster is not None:
            cluster.close()
        server.close()


def told(outcome: Outcome) -> Iterator[str]:
    """Yield a round's line, and what is wrong with it."""
    plan, verdict = outcome.plan, outcome.verdict
    kinds = Counter(disturbed(fault) for fault in outcome.faults)
    what = ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items())) or "no fault hit"
    how = (
        f"{plan.mini_batches} mini-batches of {plan.shape.items_per_mini_batch} ({plan.shape.kind}"
    )
    how += f", {plan.shape.bad} bad items" if plan.shape.bad else ""
    how += ", Prefect flow)" if plan.in_flow else ")"
    yield (
        f"{'ok ' if verdict.good else 'BAD'} seed {plan.seed}: {how}; {what}; "
        f"{outcome.sittings} sittings, {verdict.reruns} explained re-runs"
        f" (of finished work {verdict.repeated_s:.2f} s), {outcome.seconds:.1f} s"
    )
    for complaint in verdict.complaints[:12]:
        yield f"    {complaint}"
    if len(verdict.complaints) > 12:
        yield f"    … and {len(verdict.complaints) - 12} more"


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """Yield the totals by kind of fault, in Markdown; what went wrong in a round counts for all its kinds."""
    yield f"| fault | {' | '.join(COLUMNS)} |"
    yield f"|---|{'---:|' * len(COLUMNS)}"
    for kind in Kind:
        those = [o for o in outcomes if any(fault.kind == kind for fault in o.faults)]
        hits = sum(fault.kind == kind for o in outcomes for fault in o.faults)
        yield _row(kind, hits, sum(o.missed[kind] for o in outcomes), those)
    hits = sum(len(o.faults) for o in outcomes)
    yield _row("**all**", hits, sum(o.missed.total() for o in outcomes), outcomes)


def _row(name: str, hits: int, missed: int, outcomes: list[Outcome]) -> str:
    verdicts = [outcome.verdict for outcome in outcomes]
    numbers = [
        hits,
        missed,
        len(outcomes),
        sum(v.lost for v in verdicts),
        sum(v.doubled for v in verdicts),
        sum(v.innocent for v in verdicts),
        sum(v.leaked for v in verdicts),
        sum(v.hung for v in verdicts),
        sum(not v.good for v in verdicts),
    ]
    return f"| {name} | {' | '.join(map(str, numbers))} |"


if __name__ == "__main__":
    sys.exit(main())
