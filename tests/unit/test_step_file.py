"""Steps in YAML files: what they say, and how they are refused (R109, R242)."""

from __future__ import annotations

import textwrap
import traceback
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_parallelrun import ConfigError, FileDataset, ParallelRunConfig, ParallelRunError
from prefect_parallelrun.pipeline_parameter import PipelineParameter
from prefect_parallelrun.step_file import load_config, load_step
from prefect_parallelrun.understanding import understood
from prefect_parallelrun.yaml_document import Place


@pytest.fixture
def folder(tmp_path):
    """A folder with a script, some data, and room for step files."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "score.py").write_text("def run(mini_batch):\n    return mini_batch\n")
    for name in ("data", "labels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("1\n")
    return tmp_path


@pytest.fixture
def load(folder):
    """Return a function that writes a step file and loads it."""

    def write_and_load(text):
        (folder / "step.yaml").write_text(textwrap.dedent(text))
        return load_step(folder / "step.yaml")

    return write_and_load


def test_a_whole_step(folder, load, monkeypatch):
    """Every part of the file comes to the step, with paths below the file's folder, wherever one is."""
    monkeypatch.chdir("/")
    step = load("""
        name: score-files
        config:
          entry_script: score.py
          source_directory: scripts
          mini_batch_size: 3
          node_count: {pipeline_parameter: {name: nodes, default_value: 2}}
        inputs:
          - files: data/*.txt
            name: images
            content: true
            partition_format: "{name}.txt"
        side_inputs:
          - files: [labels]
            name: labels
            mount: /mnt/labels
        arguments: [--labels, "${{inputs.labels}}", "--out=${{ outputs.scores }}", --rate, 0.5, --deep, true]
        output: {name: scores, destination: out}
        allow_reuse: false
        task_options: {retries: 2}
    """)

    config, (images,), (labels,) = step.parallel_run_config, step.inputs, step.side_inputs
    assert config.script_path == folder / "scripts" / "score.py"
    assert config.source_folder == folder / "scripts"
    assert (config.mini_batch_size, config.node_count) == (3, PipelineParameter("nodes", 2))
    assert (images.name, images.content, images.partition_keys) == ("images", True, ("name",))
    assert [file.path for file in images.list_files()] == [str(folder / "data" / "a.txt")]
    assert (labels.name, labels.delivery, labels.target_path) == ("labels", "mount", "/mnt/labels")
    option, output, *rest = step.arguments[2:]
    assert step.arguments[:2] == ["--labels", labels]
    assert (option, output.name, output.destination) == ("--out", "scores", str(folder / "out"))
    assert rest == ["--rate", 0.5, "--deep", True]
    assert step.output is output
    assert (step.allow_reuse, step.task_options) == (False, {"retries": 2})


@pytest.mark.parametrize(
    ("given", "attributes"),
    [
        (
            'delimited: t.csv\n    separator: ";"\n    column_types: {a: int64}',
            {"format": "delimited", "separator": ";", "header": True},
        ),
        ("json_lines: t.jsonl\n    encoding: latin-1", {"format": "json_lines"}),
        ("parquet: [t1.parquet, t2.parquet]", {"format": "parquet"}),
        (
            "sql: {connection: 'sqlite:///t.db', query: SELECT 1 AS a, partition_column: a}",
            {"format": "sql", "partition_column": "a"},
        ),
    ],
)
def test_tables(given, attributes, folder, load):
    """Tables have the options of their constructors, and relative paths are below the file's folder."""
    step = load(f"""
name: score-rows
config: {{entry_script: scripts/score.py}}
inputs:
  - name: rows
    {given}
""")

    (table,) = step.inputs
    assert {name: getattr(table.settings, name) for name in attributes} == attributes
    assert all(str(folder) in path for path in table.paths)
    assert table.name == "rows"


def test_a_configuration_of_its_own(folder, load):
    """`config` may name a file that `save_to_yaml` wrote; paths in it are below that file's folder."""
    (folder / "settings").mkdir()
    config = ParallelRunConfig("score.py", source_directory="../scripts", run_max_try=7)
    config.save_to_yaml(folder / "settings" / "config.yaml")

    step = load("""
        name: score-files
        config: settings/config.yaml
        inputs: [files: data]
    """)

    assert step.parallel_run_config.run_max_try == 7
    assert step.parallel_run_config.script_path == folder / "scripts" / "score.py"
    assert load_config(folder / "settings" / "config.yaml").script_path.is_file()


def test_a_folder_that_looks_like_a_glob(tmp_path, folder):
    """The name of the file's own folder means nothing in a glob below it."""
    odd = tmp_path / "v[1]"
    (odd / "data").mkdir(parents=True)
    (odd / "data" / "a.txt").write_text("")
    (odd / "step.yaml").write_text(
        "name: odd-folder\nconfig: {entry_script: ../scripts/score.py}\ninputs: [files: data/*.txt]\n"
    )

    (dataset,) = load_step(odd / "step.yaml").inputs
    assert [file.path for file in dataset.list_files()] == [str(odd / "data" / "a.txt")]


GOOD = """
name: score-files
config: {entry_script: scripts/score.py}
inputs:
  - {files: data, name: images}
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("config:", "confg:", "step.yaml: confg is no key here: did you mean config?"),
        ("inputs:", "input:", "step.yaml: input is no key here: did you mean inputs?"),
        ("name: score-files\n", "", "step.yaml: name is missing: 3 to 32"),
        (
            "name: score-files",
            "name: Score",
            "step.yaml: name='Score' cannot be used: it must be 3",
        ),
        (
            "files: data",
            "file: data",
            "inputs[0]={'file': '…', 'name': '…'} cannot be used: it must be a",
        ),
        ("files: data", "file: data", "did you mean files?"),
        (
            "files: data",
            "files: 3",
            "step.yaml: inputs[0].files=3 cannot be used: it must be a file, a",
        ),
        (
            "name: images",
            "nam: images",
            "step.yaml: inputs[0].nam is no key here: did you mean name?",
        ),
        (
            "{files: data, name: images}",
            "data",
            "step.yaml: inputs[0]='data' cannot be used: it must",
        ),
        (
            "{entry_script: ",
            "{entry_scrip: ",
            "config: entry_scrip is no parameter of ParallelRunConfig",
        ),
        ("scripts/score.py", "scripts/sore.py", "step.yaml: entry_script="),
        (
            "{entry_script: ",
            "{node_count: none, entry_script: ",
            "step.yaml: config: node_count='none' cannot be used: it must be a whole number",
        ),
        (
            "inputs:",
            "arguments: [--a, '${{inputs.image}}']\ninputs:",
            "arguments[1]='${{inputs.image}}' cannot be used: there is no such name: did you mean "
            "${{inputs.images}}?",
        ),
        (
            "inputs:",
            "arguments: [--a, 'x${{inputs.images}}y']\ninputs:",
            "arguments[1]='x${{inputs.images}}y' cannot be used: a reference stands alone",
        ),
        (
            "inputs:",
            "task_options: {retry: 2}\ninputs:",
            "task_options.retry is no key here: did you mean retries?",
        ),
        (
            "inputs:",
            "task_options: {retries: many}\ninputs:",
            "task_options.retries='many' cannot be used: it must be a whole number",
        ),
        (
            "inputs:",
            "task_options: {cache_expiration: 1 day}\ninputs:",
            "task_options.cache_expiration='1 day' cannot be used: it must be a number of seconds",
        ),
        ("inputs:", "task_options: {tags: 5}\ninputs:", "task_options.tags=5 cannot be used"),
        ("inputs:", "task_options: {timeout_seconds: .inf}\ninputs:", "timeout_seconds=inf cannot"),
        ("inputs:", "task_options: {name: x}\ninputs:", "task_options.name is no key here"),
        ("inputs:", "task_options: {on_failure: x}\ninputs:", "task_options.on_failure is no key"),
        ("inputs:", "task_options: {cache_policy: x}\ninputs:", "task_options.cache_policy is no"),
        ("name: score-files", "name: 2026-13-45", "line 2, column 7: it is no timestamp"),
        ("name: score-files", "name: !!bool 7", "line 2, column 7: it is no bool"),
        (
            "inputs:",
            "allow_reuse: perhaps\ninputs:",
            "allow_reuse='perhaps' cannot be used: it must be",
        ),
        ("inputs:", "name: again\ninputs:", "the key 'name' is there twice"),
        (
            "inputs:",
            "side_inputs: [{files: labels, name: images}]\ninputs:",
            "two inputs have the name 'images'",
        ),
        (
            "{files: data, name: images}",
            "{sql: {query: SELECT 1}}",
            "inputs[0].sql.connection is missing",
        ),
        (
            "{files: data, name: images}",
            "{sql: 'postgresql://me:secret@host/db'}",
            "inputs[0].sql must be a mapping",
        ),
        (
            "{files: data, name: images}",
            "{files: 's3://b/c', storage_options: secret}",
            "inputs[0].storage_options='…' cannot be used",
        ),
    ],
)
def test_what_is_refused(before, after, said, load):
    """An error names the file, the key, the value and what would be right, and shows no secret (R78)."""
    assert load(GOOD).name == "score-files"
    assert before in GOOD
    with pytest.raises(ConfigError) as refused:
        load(GOOD.replace(before, after))
    assert said in str(refused.value)
    assert "step.yaml" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_none(folder, load):
    """What is no YAML, no mapping, or not there is refused by name."""
    for text in ("a: [", "- a\n"):
        with pytest.raises(ConfigError, match=r"step\.yaml"):
            load(text)
    for name in ("nowhere.yaml", "~nobody-of-this-name/nowhere.yaml"):
        for loading in (load_step, load_config, understood):
            with pytest.raises(ConfigError, match=r"nowhere\.yaml.* cannot be read"):
                loading(Path(name))


def test_task_options(load):
    """What a file can say of Prefect's options comes to the task as Prefect takes it."""
    step = load(
        GOOD + "task_options: {retries: 1, retry_delay_seconds: [1, 2.5], tags: [a, b],"
        " cache_expiration: 90, log_prints: true, task_run_name: mine}\n"
    )

    task = step._task
    assert (task.retries, task.retry_delay_seconds, task.tags) == (1, [1, 2.5], {"a", "b"})
    assert (task.cache_expiration, task.log_prints) == (timedelta(seconds=90), True)
    assert task.task_run_name == "mine"


def bomb(line, first="[x, x, x, x, x, x, x, x, x]"):
    """YAML of some lines that are nine times as much each, when their aliases are written out."""
    lines = [f"a0: &a0 {first}"]
    return "\n".join(lines + [line.format(n=n, m=n - 1) for n in range(1, 10)]) + "\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            bomb("a{n}: &a{n} [" + ", ".join(["*a{m}"] * 9) + "]"),
            "with its aliases it has more than",
        ),
        (
            bomb("a{n}: &a{n} {{<<: [" + ", ".join(["*a{m}"] * 9) + "]}}", "{x: 1}"),
            "with its aliases it has more than",
        ),
        ("type: parallel\ntask: &a {x: *a}\n", "line 2, column 7: it is nested in"),
        ("a: " + "[" * 3000 + "]" * 3000, "it is nested too deeply"),
        ("a: " + "[" * 300 + "]" * 300, "it is nested "),
    ],
)
@pytest.mark.timeout(20)
def test_yaml_without_end(text, said, folder, load):
    """What is small as a file and endless as a value is refused at once, with a short word (R242)."""
    (folder / "config.yaml").write_text(text)
    for loading in (lambda: load(text), lambda: load_config(folder / "config.yaml")):
        with pytest.raises(ConfigError, match="cannot be read as YAML") as refused:
            loading()
        assert said in str(refused.value)
        assert len(str(refused.value)) < 400


@pytest.mark.timeout(20)
def test_a_value_without_end():
    """An error writes no more of a value than it shows (R242)."""
    value = "x"
    for _ in range(20):
        value = [value] * 9

    refused = Place("step.yaml").at("inputs").refuse(value, "too much")
    assert str(refused).startswith("step.yaml: inputs=[[[[")
    assert len(str(refused)) < 300


def test_merged_mappings(load):
    """What YAML merges into a mapping is its own, also where it was merged into another before (R242)."""
    step = load("""
        name: score-files
        config: {<<: &more {<<: &base {run_max_try: 2, node_count: 2}, node_count: 3}, entry_script: scripts/score.py}
        inputs: [{files: data}]
    """)

    assert (step.parallel_run_config.run_max_try, step.parallel_run_config.node_count) == (2, 3)


@pytest.mark.parametrize(
    "line",
    [
        "storage: {account_key: secret: x}",
        "key: 'secret",
        "key: *secret",
        "key: !secret x",
        "key: !secret!x y",
        "key: &secret 1\nother: &secret 2",
        "%TAG !secret! x\n%TAG !secret! x\n--- {}",
        "key: @secret",
        "key: secret\n- secret",
        'key: "\\qsecret"',
        "key: !!int secret",
        "[secret]: 1",
    ],
)
def test_a_file_that_is_no_yaml_is_not_quoted(line, folder, load):
    """Errors name line and column, not what stands there: it may be a secret (R78)."""
    (folder / "config.yaml").write_text(line)
    for loading in (lambda: load(line), lambda: load_config(folder / "config.yaml")):
        with pytest.raises(ConfigError, match=r"line [123], column [0-9]+: ") as refused:
            loading()
        assert "secret" not in "".join(traceback.format_exception(refused.value, chain=True))


AZURE = """
    $schema: https://azuremlschemas.azureedge.net/latest/pipelineJob.schema.json
    type: pipeline
    display_name: digits
    settings: {default_compute: azureml:cpu-cluster}
    inputs:
      images: {type: uri_folder, path: ./data}
      word: a b
    jobs:
      score_digits:
        type: parallel
        compute: azureml:cpu-cluster
        inputs:
          images: ${{parent.inputs.images}}
          model: {type: uri_folder, path: ./labels, mode: download}
          word: ${{parent.inputs.word}}
        outputs:
          rows: {type: uri_file, path: ./out/rows.csv, mode: rw_mount}
        input_data: ${{inputs.images}}
        mini_batch_size: "5"
        resources: {instance_count: 2}
        max_concurrency_per_instance: 3
        logging_level: "debug"
        error_threshold: 5
        mini_batch_error_threshold: 4
        retry_settings: {max_retries: 2, timeout: 50}
        environment_variables: {LETTER: "x"}
        is_deterministic: false
        task:
          type: run_function
          code: ./scripts
          entry_script: score.py
          environment: {image: mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu20.04}
          program_arguments: >-
            --model ${{inputs.model}} --word=${{ inputs.word }}
            --allowed_failed_percent 30
            --resource_monitor_interval 20
          append_row_to: ${{outputs.rows}}
"""


def test_a_job_of_azure(folder, load):
    """Azure's parallel job is the same step, alone or in its pipeline; a retry is one after the first try."""
    step = load(AZURE)

    config = step.parallel_run_config
    assert step.name == "score-digits"
    assert {
        "script": config.script_path,
        "source": config.source_folder,
        "size": config.mini_batch_size,
        "nodes": config.node_count,
        "processes": config.process_count_per_node,
        "level": config.logging_level,
        "items": config.error_threshold,
        "mini-batches": config.allowed_failed_count,
        "percent": config.allowed_failed_percent,
        "tries": config.run_max_try,
        "timeout": config.run_invocation_timeout,
        "variables": config.environment_variables,
        "file": config.append_row_file_name,
        "action": config.output_action,
    } == {
        "script": folder / "scripts" / "score.py",
        "source": folder / "scripts",
        "size": "5",
        "nodes": 2,
        "processes": 3,
        "level": "DEBUG",
        "items": 5,
        "mini-batches": 4,
        "percent": 30,
        "tries": 3,
        "timeout": 50,
        "variables": {"LETTER": "x"},
        "file": "rows.csv",
        "action": "append_row",
    }
    (images,), (model,) = step.inputs, step.side_inputs
    assert (images.name, images.to_path()) == ("images", str(folder / "data"))
    assert (model.name, model.delivery, model.to_path()) == (
        "model", "download", str(folder / "labels"),
    )  # fmt: skip
    assert step.arguments == [
        "--model", model, "--word=a b", "--resource_monitor_interval", "20",
    ]  # fmt: skip
    assert step.output.destination == str(folder / "out")
    assert step.allow_reuse is False


def test_a_table_of_azure(folder, load):
    """An mltable is read as its file MLTable says; without append_row_to the script keeps its own output."""
    table = folder / "table"
    table.mkdir()
    (table / "a.csv").write_text("1;2\n")
    (table / "MLTable").write_text(
        "paths: [{file: ./a.csv}]\n"
        "transformations:\n"
        "- read_delimited: {delimiter: ';', header: no_header}\n"
        "- extract_columns_from_partition_format: {partition_format: '{name}.csv'}\n"
    )
    step = load("""
        type: parallel
        name: Train Models
        inputs: {rows: {type: mltable, path: ./table, mode: direct}}
        outputs: {models: {type: uri_folder}}
        input_data: ${{inputs.rows}}
        partition_keys: [name]
        task: {code: scripts, entry_script: score.py, program_arguments: "--to ${{outputs.models}}"}
    """)

    (rows,) = step.inputs
    assert (rows.settings.format, rows.settings.separator, rows.settings.header) == (
        "delimited", ";", False,
    )  # fmt: skip
    assert [file.path for file in rows.list_files()] == [str(table / "a.csv")]
    assert step.name == "train-models"
    assert step.parallel_run_config.output_action == "summary_only"
    assert step.parallel_run_config.error_threshold == -1  # as Azure has it
    assert step.arguments[1] is step.output
    assert step.output.destination is None


@pytest.mark.parametrize(
    "transformations",
    [
        "",
        "- {}",
        "- drop_columns: a",
        "- read_delimited: {include_path_column: true}",
        "- read_avro",
        "- [read_delimited, a]",
        "- 7",
        "  7",
        "- read_parquet\npaths: 5",
    ],
)
def test_what_of_an_mltable_is_refused(transformations, folder, load):
    """What would change the rows and is not understood is refused, never left out (R109)."""
    paths = "" if "paths:" in transformations else "paths: [{file: a.csv}]\n"
    (folder / "MLTable").write_text(f"{paths}transformations:\n{transformations}\n")
    with pytest.raises(ConfigError, match="MLTable"):
        load("""
            type: parallel
            name: train
            inputs: {rows: {type: mltable, path: .}}
            input_data: ${{inputs.rows}}
            task: {code: scripts, entry_script: score.py}
        """)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            "./data}",
            "'azureml:digits:1'}",
            "inputs.images.path='azureml:digits:1' cannot be used: assets",
        ),
        (
            "${{parent.inputs.images}}",
            "${{parent.jobs.x.outputs.y}}",
            "only inputs and outputs of the",
        ),
        (
            "input_data: ${{inputs.images}}",
            "input_data: ${{inputs.image}}",
            "did you mean ${{inputs.images}}?",
        ),
        ("./out/rows.csv", "azureml://datastores/d/paths/rows.csv", "outputs.rows.path="),
        (
            "append_row_to: ${{outputs.rows}}",
            "append_row_to: ${{outputs.row}}",
            "did you mean ${{outputs.rows}}?",
        ),
        (
            "retry_settings: {max_retries",
            "retry_settings: {max_retrys",
            "retry_settings.max_retrys is no key",
        ),
        (
            "mini_batch_size:",
            "minibatch_size:",
            "jobs.score_digits.minibatch_size is no key here: did you",
        ),
        ("type: parallel", "type: command", "has 0 parallel jobs"),
        ('"5"', '"a few"', "config: mini_batch_size"),
        ("--word=${{ inputs.word }}", "--word=${{inputs.wrd}}", "there is no such name"),
    ],
)
def test_what_of_azure_is_refused(before, after, said, load):
    """What lives in a workspace, and what nobody understands, is refused by file and key (R109)."""
    assert before in AZURE
    with pytest.raises(ParallelRunError) as refused:
        load(AZURE.replace(before, after))
    assert said in str(refused.value)
    assert "step.yaml" in str(refused.value)


def test_the_example_of_the_documentation(tmp_path):
    """The complete example in docs/reference/step-file.md loads."""
    import re

    page = Path(__file__).parents[2] / "docs" / "reference" / "step-file.md"
    examples = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "score.py").write_text("def run(mini_batch):\n    return mini_batch\n")
    loaded = []
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.yaml"
        path.write_text(example)
        loaded.append(load_step(path))

    assert len(loaded) == 2  # ours, and Azure's
    for step in loaded:
        assert isinstance(step.inputs[0], FileDataset)
        assert step.side_inputs
