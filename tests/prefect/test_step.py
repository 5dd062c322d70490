from __future__ import annotations

import asyncio
import logging
import time

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from prefect_parallelrun import (
    ConfigError,
    EntryScriptError,
    FileDataset,
    ParallelRunConfig,
    ParallelRunError,
    ParallelRunStep,
    PipelineParameter,
)
from prefect_parallelrun.datasets import Dataset
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.report import overview
from prefect_parallelrun.work import Work


def _task_run_names(flow_run_id):
    """The names of a flow run's task runs, once the server has heard of one (it does so later)."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            if runs := client.read_task_runs(flow_run_filter=wanted):
                return [run.name for run in runs]
            time.sleep(0.05)
    return []


def test_in_a_flow(files, read_rows):
    """A step called in a flow runs to its end and returns its result, as one task run (R1, R240)."""

    @flow
    def score():
        result = files.step()()
        assert read_rows(result) == files.rows()
        return result

    state = score(return_state=True)
    result = state.result()

    assert (result.items.total, result.items.succeeded, result.items.failed) == (3, 3, 0)
    assert (result.mini_batches.total, result.mini_batches.succeeded) == (2, 2)
    assert result.reused is False
    assert [folder.name for folder in files.runs()] == [result.run_id]
    assert _task_run_names(state.state_details.flow_run_id) == ["score-files"]


def test_in_an_async_flow(files, read_rows):
    """A step can be called in an async flow (R240)."""

    @flow
    async def score():
        return files.step()()

    assert read_rows(asyncio.run(score())) == files.rows()


def test_in_a_plain_script(files, read_rows):
    """Outside of a flow the call is a task run all the same, and returns the result."""
    assert read_rows(files.step()()) == files.rows()


def test_output_folder(files, tmp_path, read_rows):
    """The output goes where the user said, with nothing else beside it (R28, R50)."""
    result = files.step(output=tmp_path / "out", config={"append_row_file_name": "rows.txt"})()

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rows.txt"]
    assert read_rows(result) == files.rows()


def test_submit_gives_a_future_to_other_tasks(files):
    """A submitted step's future flows to a downstream task, which gets the result (R240)."""

    @task
    def count(result):
        return result.items.succeeded

    @flow
    def score():
        future = files.step().submit()
        return count.submit(future).result(), future.result().reused

    assert score() == (3, False)


def test_submit_needs_a_flow(files):
    """Outside of a flow there is no task runner: submit() says so, and starts nothing."""
    with pytest.raises(ConfigError, match="outside of a flow"):
        files.step().submit()
    assert files.runs() == []


@pytest.mark.parametrize("submitted", [False, True], ids=["result", "future"])
def test_a_second_step_takes_the_firsts_result(files, read_rows, submitted):
    """A result, or a future of one, is an input of the next step, and a path in arguments (R240)."""

    @flow
    def chain():
        step = files.step("first-step")
        first = step.submit() if submitted else step()
        second = files.step("second-step", inputs=[first], arguments=["--word", first])
        return (first.result() if submitted else first), second()

    first, second = chain()

    line = "|".join(files.rows())
    assert read_rows(second) == [f"{first.output} parallel_run_step.txt {line}"]


@pytest.mark.parametrize("allow_reuse", [True, False])
def test_nothing_is_silent_before_there_is_a_run(files, monkeypatch, caplog, allow_reuse):
    """Listing the inputs and looking for earlier runs may take long: the log says that they do (R54)."""
    monkeypatch.setattr(overview, "PROGRESS_S", 0.05)
    caplog.set_level(logging.INFO)

    def until_told(line, do):
        def call(*args, **keywords):
            deadline = time.monotonic() + 20
            while line not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.01)
            return do(*args, **keywords)

        return call

    for owner, name, line in (
        (StepDefinition, "list_inputs", "Listing the inputs for 0:00:0"),
        (Work, "earlier_run", "Looking for earlier runs for 0:00:0"),
    ):
        monkeypatch.setattr(owner, name, until_told(line, getattr(owner, name)))
    assert files.step(allow_reuse=allow_reuse)().state == "Completed"
    assert "Listing the inputs for 0:00:0" in caplog.text
    assert "Looking for earlier runs for 0:00:0" in caplog.text


def test_a_failing_step_shows_the_scripts_own_error(files, caplog):
    """The exception and the flow's log hold the script's error with its stack trace (R206)."""
    files.script.write_text("def run(mini_batch):\n    raise ValueError('no such flavour')\n")

    @flow
    def score():
        return files.step(config={"run_max_try": 1})()

    with caplog.at_level(logging.INFO), pytest.raises(ParallelRunError) as error:
        score()

    assert "no such flavour" in str(error.value)
    assert "score.py" in str(error.value)
    # Both mini-batches fail in the same way, and either may be the first.
    assert any(name in str(error.value) for name in ("a.txt", "c.txt"))
    assert error.value.run_id == files.runs()[0].name
    assert str(error.value.logs_directory).startswith(str(files.runs()[0]))
    assert "no such flavour" in caplog.text


def test_refusals_come_before_the_task_run(files):
    """What is known to be wrong raises where the step is made: nothing has been started (R46)."""
    files.script.write_text("def init(): ...\n")
    with pytest.raises(EntryScriptError, match="defines no run"):
        files.step()

    data = [FileDataset.from_files(str(files.data))]
    for wrong in [
        {"name": "No"},
        {"inputs": []},
        {"inputs": data[0]},
        {"inputs": ["data"]},
        {"arguments": ["--output", "x"]},
        {"arguments": "--word row"},
        {"output": 3},
        {"allow_reuse": 1},
    ]:
        with pytest.raises(ConfigError, match=f"^{next(iter(wrong))}="):
            files.step(**wrong)
    with pytest.raises(ConfigError, match=r"^parallel_run_config="):
        ParallelRunStep("score-files", "score.py", data)
    assert files.runs() == []


def test_a_missing_input_fails_the_task(files):
    """An input that is not there is named, before any worker starts."""
    (files.data / "a.txt").unlink()
    step = files.step(inputs=[FileDataset.from_files(str(files.data / "a.txt"))])

    with pytest.raises(ParallelRunError, match=r"a\.txt"):
        step()


def test_pipeline_parameters(files):
    """A pipeline parameter is the flow's parameter of that name, else its default (R39)."""
    config = {
        "mini_batch_size": PipelineParameter("size", 2),
        "run_max_try": PipelineParameter("tries", 1),
    }

    @flow
    def score(size: int = 3, tries: int = 1):
        return files.step(config=config)()

    @flow
    def without():
        return files.step(config=config, allow_reuse=False)()

    assert score().mini_batches.total == 1
    assert score(size=1).mini_batches.total == 3
    assert without().mini_batches.total == 2
    with pytest.raises(ConfigError, match=r"run_max_try=0 .*the flow's parameter 'tries'"):
        score(tries=0)


@pytest.mark.parametrize(
    ("where", "default", "wrong"),
    [
        ("mini_batch_size", 2, "1MB"),
        ("partition_keys", None, ["q"]),
        ("arguments", "--word", "--output"),
        ("side_inputs", FileDataset.from_files("/data"), {"parquet": "/rows"}),
    ],
)
def test_an_error_names_the_flows_parameter(files, where, default, wrong):
    """What only the whole step shows to be wrong names the flow's parameter as well (R39)."""
    chosen = PipelineParameter("given", default)
    if where in ("arguments", "side_inputs"):
        step = files.step(**{where: [chosen]})
    else:
        step = files.step(config={"mini_batch_size": None, where: chosen})

    @flow
    def score(given):
        step.definition()

    score(default)
    named = rf"\({where} is the flow's parameter 'given'\)$"
    with pytest.raises(ConfigError, match=f"^{where}=.*{named}"):
        score(wrong)


def test_a_size_or_keys_as_the_flow_says(files):
    """Size and keys may both be the flow's parameters, as long as it gives one of them (R39)."""
    step = files.step(
        config={
            "mini_batch_size": PipelineParameter("size", None),
            "partition_keys": PipelineParameter("keys", None),
        }
    )

    @flow
    def score(size=None, keys=None):
        return step.definition().config.mini_batch_size

    assert score(size=3) == 3
    both = "mini_batch_size is the flow's parameter 'size', partition_keys is the flow's .* 'keys'"
    with pytest.raises(ConfigError, match=rf"give one of the two \({both}"):
        score(size=3, keys=["a"])


def test_pipeline_parameters_of_a_subflow(files):
    """In a subflow its own parameters count, also where the step is submitted, or the flow is async (R39)."""
    step = files.step(config={"mini_batch_size": PipelineParameter("size", 2)})

    @flow
    def below(size: int):
        return step.submit().result().mini_batches.total

    @flow
    async def in_async(size: int):
        return step().mini_batches.total

    @flow
    def above(size: int = 3):
        return below(1), step().mini_batches.total, asyncio.run(in_async(1))

    assert above() == (3, 1, 3)


def test_an_input_as_pipeline_parameter(files, tmp_path, read_rows):
    """A dataset, too, can be changed with the flow's parameter, by its path (R39)."""
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "d.txt").write_text("D")
    inputs = [PipelineParameter("data", FileDataset.from_files(str(files.data)))]

    @flow
    def score(data: str):
        return files.step(inputs=inputs)()

    assert read_rows(files.step(inputs=inputs)()) == files.rows()
    assert read_rows(score(str(tmp_path / "more"))) == ["row d.txt D"]


def test_with_options(files):
    """Other options of the task leave the step as it is."""
    step = files.step(task_options={"retries": 1})
    other = step.with_options(retries=2, name="other-step")

    assert (other.name, other.task_options) == ("other-step", {"retries": 2})
    assert (step.name, step.task_options) == ("score-files", {"retries": 1})
    assert other().name == "other-step"


def test_return_state(files):
    """With return_state a failure is a state, not an exception."""
    files.script.write_text("def run(mini_batch):\n    raise ValueError('no')\n")

    state = files.step(config={"run_max_try": 1})(return_state=True)

    assert state.is_failed()
    assert isinstance(state.result(raise_on_failure=False), ParallelRunError)


def test_a_step_is_found_from_another_folder(files, monkeypatch, read_rows):
    """Paths are settled when the step is made: a change of folder does not change the step."""
    monkeypatch.chdir(files.folder)
    step = ParallelRunStep(
        "score-files",
        ParallelRunConfig("score.py", source_directory="scripts", process_count_per_node=1),
        [FileDataset.from_files("data")],
        output="out",
    )
    monkeypatch.chdir("/")

    assert read_rows(step()) == files.rows()
    assert (files.folder / "out").is_dir()


def test_plan_runs_nothing(files):
    """A plan has the mini-batches that would run, and starts no run."""
    plan = files.step().plan()

    assert len(plan) == 2
    assert [len(one.work["files"]) for one in plan] == [2, 1]
    assert files.runs() == []


def test_debug_runs_in_this_process(files):
    """debug() returns what run() returned, and raises the script's own exception (R1)."""
    assert files.step().debug(mini_batches=2) == [files.rows()[:2], files.rows()[2:]]

    files.script.write_text("def run(mini_batch):\n    raise ValueError('no')\n")
    with pytest.raises(ValueError, match=r"^no$"):
        files.step().debug()
    with pytest.raises(ConfigError, match="mini_batches=0"):
        files.step().debug(0)


def test_inputs_are_listed_once(files, monkeypatch):
    """The reuse key and the run see the same listing, which no later run sees (design 5)."""
    listed = []
    original = FileDataset.list_files

    def counted(self):
        listed.append(self)
        return original(self)

    monkeypatch.setattr(FileDataset, "list_files", counted)
    assert isinstance(FileDataset.from_files(str(files.data)), Dataset)

    files.step()()
    assert len(listed) == 1
    (files.data / "d.txt").write_text("D")
    assert files.step()().items.total == 4
    assert len(listed) == 2


def test_a_failing_file_whose_name_is_not_utf8(files):
    """Such a name reaches Prefect in a form that it can send: the run ends as Failed (R206)."""
    (files.data / b"\xff\xfe.txt".decode("utf-8", "surrogateescape")).write_text("x")
    files.script.write_text("def run(mini_batch): raise ValueError(mini_batch[-1])")
    step = files.step(config={"run_max_try": 1, "error_threshold": 0, "mini_batch_size": 100})

    @flow
    def score():
        return step()

    state = score(return_state=True)

    assert state.is_failed()
    with pytest.raises(ParallelRunError, match=r"\\udcff\\udcfe\.txt"):
        state.result()


def test_rank_mini_batches_take_the_place_of_inputs(files, read_rows):
    """`--rank_mini_batch_count N` gives N mini-batches of nothing, whatever the inputs are (R105)."""
    files.script.write_text("def run(mini_batch, context): return [context.minibatch_index]")
    step = files.step(arguments=["--rank_mini_batch_count", 3])

    assert len(step.plan()) == 3
    assert step.debug(mini_batches=9) == [[0], [1], [2]]
    assert read_rows(step()) == ["0", "1", "2"]


def test_debug_takes_the_helpers_of_its_own_step_as_they_are_now(files):
    """A helper module of another step, or from before an edit, is never taken for this one's (R1)."""
    files.script.write_text("import helper\ndef run(mini_batch): return [helper.WORD]")
    helper = files.script.with_name("helper.py")

    seen = []
    for word in ("first", "another"):
        helper.write_text(f"WORD = {word!r}")
        seen += files.step().debug()

    assert seen == [["first"], ["another"]]


@pytest.mark.parametrize("options", [{}, {"refresh_cache": True}], ids=["reuse", "refresh"])
@pytest.mark.parametrize("allow_reuse", [True, False])
def test_retries_of_the_task_go_on_with_the_run(files, tmp_path, read_rows, allow_reuse, options):
    """Prefect's own `retries` resume the run of the same task run, also without reuse (R201, R240)."""
    files.script.write_text(
        "import os\n"
        f"flag = {str(tmp_path / 'flag')!r}\n"
        "def run(mini_batch):\n"
        "    if mini_batch[0].endswith('c.txt') and not os.path.exists(flag):\n"
        "        open(flag, 'w').close()\n"
        "        raise OSError('not yet')\n"
        "    return mini_batch\n"
    )
    step = files.step(
        config={"run_max_try": 1},
        allow_reuse=allow_reuse,
        task_options={"retries": 1, **options},
    )

    @flow
    def score():
        return step()

    result = score()

    assert len(read_rows(result)) == 3
    assert (result.attempts, result.mini_batches.reused) == (3, 1)
    assert len(files.runs()) == 1
    assert not step().reused if options or not allow_reuse else step().reused


def test_dask_does_not_drown_the_flows_log(files):
    """What a flow logs at INFO is Prefect's and ours, not Dask's; and Dask's level is as it was afterwards."""
    dask_log = logging.getLogger("distributed")
    before = dask_log.level
    levels = []

    class Spy(logging.Handler):
        def emit(self, record):
            levels.append(record.levelno)

    spy = Spy()
    dask_log.addHandler(spy)
    try:
        files.step()()
    finally:
        dask_log.removeHandler(spy)

    assert [level for level in levels if level < logging.CRITICAL] == []
    assert dask_log.level == before
