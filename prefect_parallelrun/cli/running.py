"""Commands that run something: run, debug, resume, retry-failed, replay, validate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefect_parallelrun.cli.app import RUN, Exit, app, tell
from prefect_parallelrun.errors import refuse

if TYPE_CHECKING:
    from prefect_parallelrun.result import ParallelRunResult

Json = Annotated[bool, Parameter(name="--json", negative=())]
Flag = Annotated[bool, Parameter(negative=())]


@app.command(group=RUN)
def run(step: Path, /, *, json: Json = False) -> int:
    """Run a step that a YAML file describes; what an earlier run has done is not done again.

    It is a task run of Prefect, like a step that a flow calls. Ctrl-C ends it; run it again to go on.

    Examples:

        parallelrun run step.yaml
        parallelrun run step.yaml --json | jq .items.failed

    Parameters
    ----------
    step
        The step file, ours or a parallel job of Azure's.
    json
        Print the result as JSON.
    """
    from prefect_parallelrun.step_file import load_step

    loaded = load_step(step)
    with _said_once():
        result = loaded()
    return _told(result, as_json=json)


@app.command(group=RUN)
def debug(step: Path, /, *, mini_batches: int = 1, index: int = 0, pdb: Flag = False) -> int:
    """Try a step's script on one mini-batch, in this process.

    A `breakpoint()` in the script stops in the debugger, and what the script raises is shown as it is.
    Nothing is kept: the output folder is a temporary one. No time-outs, no retries, no other processes.

    Examples:

        parallelrun debug step.yaml
        parallelrun debug step.yaml --index 12 --pdb

    Parameters
    ----------
    step
        The step file.
    mini_batches
        So many mini-batches, one after the other.
    index
        The first of them, from 0; `parallelrun plan` shows which there are.
    pdb
        Open the debugger where the script raises.
    """
    from prefect_parallelrun import stopping
    from prefect_parallelrun.step_file import load_step

    loaded = load_step(step)
    with stopping.stops_on_sigterm(), script_errors(pdb) as on_error:
        results = loaded.debug(mini_batches, index=index, on_error=on_error)
        for number, result in enumerate(results, start=index):
            _show(number, result)
        return Exit.DONE
    return Exit.FAILED


@app.command(group=RUN)
def replay(
    run: str,
    mini_batch: int,
    /,
    *,
    items: str | None = None,
    as_it_was: Flag = False,
    with_current_inputs: Flag = False,
    pdb: Flag = False,
) -> int:
    """Run one mini-batch of a run once more, in this process, with its exact input and arguments.

    The script is the one that is in its place now, so that it can be mended and tried again. Nothing in the
    run changes.

    Examples:

        parallelrun replay score-files 17 --pdb
        parallelrun replay score-files 17 --items 3:4 --as-it-was

    Parameters
    ----------
    run
        The run folder, the run's id, or the name of a step for its newest run.
    mini_batch
        Its number, as in `parallelrun errors` and all logs.
    items
        Only its items from the first number up to the second, from 0: `3:7` are four.
    as_it_was
        Take the script that the run has kept.
    with_current_inputs
        Although files that the run reads have changed since.
    pdb
        Open the debugger where the script raises.
    """
    from prefect_parallelrun import settings, stopping
    from prefect_parallelrun.driver import replay as replaying

    paths, part = settings.run_paths(run), None if items is None else _part(items)
    with stopping.stops_on_sigterm(), script_errors(pdb) as on_error:
        result = replaying.replay(
            paths,
            mini_batch,
            items=part,
            as_it_was=as_it_was,
            with_current_inputs=with_current_inputs,
            tell=lambda text: print(f"note: {text}", file=sys.stderr),
            on_error=on_error,
        )
        _show(mini_batch, result)
        return Exit.DONE
    return Exit.FAILED


@app.command(group=RUN)
def resume(run: str, /, *, with_current_script: Flag = False, json: Json = False) -> int:
    """Go on with a run that failed, was cancelled or killed, from its folder alone.

    What is done is not run again. No flow and no step file is needed.

    Examples:

        parallelrun resume score-files
        parallelrun resume 20261122T021500-3f9c2a71-b0d4 --with-current-script

    Parameters
    ----------
    run
        The run folder, the run's id, or the name of a step for its newest run.
    with_current_script
        Although the script has changed since. The rows are of two scripts then.
    json
        Print the result as JSON.
    """
    from prefect_parallelrun.driver.resume import resume as go_on

    return _driven(run, go_on, as_json=json, with_current_script=with_current_script)


@app.command(group=RUN)
def retry_failed(run: str, /, *, json: Json = False) -> int:
    """Run again what failed in a run, with the script as it is now, into the same output.

    Example:

        parallelrun retry-failed score-files

    Parameters
    ----------
    run
        The run folder, the run's id, or the name of a step for its newest run.
    json
        Print the result as JSON.
    """
    from prefect_parallelrun.driver.retry_failed import retry_failed as retry

    return _driven(run, retry, as_json=json)


@app.command(group=RUN)
def validate(file: Path, /, *, json: Json = False) -> int:
    """Check a step file, or a saved configuration, without running anything, and print what it says.

    That is everything that can be known before a run: settings, script, source, inputs and how they
    are cut, arguments, output.

    Examples:

        parallelrun validate step.yaml
        parallelrun validate config.yaml

    Parameters
    ----------
    file
        A step file, a parallel job of Azure's, or what `ParallelRunConfig.save_to_yaml` wrote.
    json
        Print what was understood as JSON.
    """
    from prefect_parallelrun.understanding import understood

    found = understood(file)
    if json:
        tell(found)
        return Exit.DONE
    width = max(map(len, found))
    for name, value in found.items():
        first, *more = value if isinstance(value, list) and value else [value or "-"]
        print(f"{name:{width}}  {first}")
        for line in more:
            print(f"{'':{width}}  {line}")
    return Exit.DONE


def _driven(
    run: str, drive: Callable[..., ParallelRunResult], *, as_json: bool, **options: Any
) -> Exit:
    """Let a run be gone on with in this process, with its progress on the terminal."""
    import logging

    from prefect.settings import get_current_settings

    from prefect_parallelrun import settings, stopping
    from prefect_parallelrun.report.terminal import TerminalBar

    paths = settings.run_paths(run)
    level = logging.getLevelNamesMapping()[get_current_settings().logging.level]
    log = logging.getLogger("prefect_parallelrun.cli")
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    step = paths.root.parent.name
    with stopping.stops_on_sigterm(), TerminalBar(step, level=level) as bar:
        result = drive(paths, log=log, observers=(bar,), **options)
    return _told(result, as_json=as_json)


@contextmanager
def _said_once() -> Iterator[None]:
    """Keep Prefect from writing the error of a run to the terminal, twice: we do that at the end."""
    import logging

    from prefect_parallelrun.errors import ParallelRunError

    def is_new(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        ends = str(record.msg).startswith("Finished in state") and record.levelno >= logging.ERROR
        return not (ends or isinstance(error, ParallelRunError))

    handlers = [*logging.getLogger("prefect").handlers, *logging.getLogger().handlers]
    streams = [one for one in handlers if isinstance(one, logging.StreamHandler)]
    for handler in streams:
        handler.addFilter(is_new)
    try:
        yield
    finally:
        for handler in streams:
            handler.removeFilter(is_new)


def _told(result: ParallelRunResult, *, as_json: bool) -> Exit:
    """Print what a run came to."""
    from prefect_parallelrun.report.summary import account

    if as_json:
        # The stored form of a result says that it was reused, whatever happened.
        told = {"state": result.state, **result.model_dump(mode="json"), "reused": result.reused}
        tell(told)
    else:
        print(f"{result.state}; output: {result.append_row_file or result.output}")
        again = ", all of them reused" if result.reused else ""
        print(f"{account(result.items)} (items{again})")
        print(f"logs: {result.logs_directory}")
        if result.report is not None:
            print(f"report: {result.report}")
    failed = result.items.failed or result.mini_batches.failed
    return Exit.FAILED_ITEMS if failed else Exit.DONE


@contextmanager
def script_errors(pdb: bool) -> Iterator[Callable[[BaseException], None]]:
    """Show what a script raises, as it would look if that had been called by hand; `with` ends then.

    `sys.exit()` in it is an error like others: no worker process may end like that.

    Args:
        pdb: whether to open the debugger there.
    """
    import bdb
    import traceback
    from pdb import post_mortem

    from prefect_parallelrun.stopping import Terminated

    raised: list[BaseException] = []

    def on_error(error: BaseException) -> None:
        if isinstance(error, (KeyboardInterrupt, Terminated, bdb.BdbQuit)):
            return
        raised.append(error)
        traceback.print_exception(type(error), error, _below_ours(error))
        if pdb:
            post_mortem(error.__traceback__)

    try:
        yield on_error
    except bdb.BdbQuit:
        raise KeyboardInterrupt from None
    except BaseException as error:
        if error not in raised:
            raise


def _below_ours(error: BaseException) -> TracebackType | None:
    """Return where an exception was raised, without the frames of this package above the script's own.

    None: none was of the script; then the text of the error says by itself what is wrong.
    """
    ours = str(Path(__file__).parents[1])
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((ours, "<frozen")):
        trace = trace.tb_next
    return trace


def _show(index: int, result: Any) -> None:
    """Print what `run()` returned, some screens of it at most."""
    from rich.pretty import pretty_repr

    count = len(result)
    shown = pretty_repr(result, max_length=20, max_string=500)
    print(f"mini-batch {index}: {type(result).__name__} with {count:,} element{'s' * (count != 1)}")
    print(shown)


def _part(items: str) -> tuple[int, int]:
    first, colon, stop = items.partition(":")
    if colon and first.isdecimal() and stop.isdecimal() and int(first) < int(stop):
        return int(first), int(stop)
    raise refuse(
        "items", items, "give the first item and the one after the last, from 0, such as 3:7"
    )
