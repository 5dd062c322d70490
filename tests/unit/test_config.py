from __future__ import annotations

import ast
import inspect
import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from prefect_parallelrun import config as config_module
from prefect_parallelrun.config import ParallelRunConfig
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.pipeline_parameter import PipelineParameter


class _Cluster:
    scheduler_address = "tcp://10.0.0.4:8786"


def test_defaults():
    """A config of a script alone has the defaults that the design promises (R21-R38)."""
    config = ParallelRunConfig("score.py")

    assert config.model_dump() == {
        "entry_script": "score.py",
        "source_directory": None,
        "mini_batch_size": None,
        "partition_keys": None,
        "error_threshold": None,
        "allowed_failed_count": None,
        "allowed_failed_percent": None,
        "output_action": "append_row",
        "append_row_file_name": "parallel_run_step.txt",
        "output_format": "text",
        "output_order": "input",
        "compute_target": None,
        "node_count": 1,
        "process_count_per_node": None,
        "environment": None,
        "environment_variables": None,
        "logging_level": "INFO",
        "run_invocation_timeout": 60,
        "run_max_try": 3,
        "isolate_failures": False,
        "speculative_copies": False,
        "gpus_per_process": None,
        "source_limits": ("300MB", 2000),
        "description": None,
    }
    assert list(inspect.signature(ParallelRunConfig).parameters) == list(config.model_dump())


def test_the_signature_that_editors_see():
    """The signature for type checkers has the parameters and defaults of the fields, in their order."""
    tree = ast.parse(Path(config_module.__file__).read_text())
    written = next(
        n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__init__"
    )
    names = [argument.arg for argument in written.args.kwonlyargs]
    defaults = [ast.literal_eval(default) for default in written.args.kw_defaults]

    fields = ParallelRunConfig("score.py").model_dump(exclude={"entry_script"})
    assert list(zip(names, defaults, strict=True)) == list(fields.items())


GOOD = [
    ({"mini_batch_size": 5}, 5, "files"),
    ({"mini_batch_size": "10"}, "10", "digits"),
    ({"mini_batch_size": "10 mb"}, "10 mb", "a size, in any case of letters, one space"),
    ({"partition_keys": ["store", "brand"]}, ("store", "brand"), "names"),
    ({"partition_keys": '["store", "brand"]'}, ("store", "brand"), "JSON, as Azure has it"),
    ({"error_threshold": -1}, -1, "tolerates all"),
    ({"error_threshold": 0}, 0, "tolerates none"),
    ({"allowed_failed_count": 3}, 3, "mini-batches"),
    ({"allowed_failed_percent": 12.5}, 12.5, "a fraction"),
    ({"output_action": "Append_Row"}, "append_row", "any case, as in Azure's SDK"),
    ({"output_action": "SUMMARY_ONLY"}, "summary_only", "any case"),
    ({"append_row_file_name": "predictions.txt"}, "predictions.txt", "a plain name"),
    ({"append_row_file_name": None}, "parallel_run_step.txt", "None is the default in Azure's SDK"),
    ({"logging_level": "debug"}, "DEBUG", "any case"),
    ({"logging_level": None}, "INFO", "None is the default in Azure's SDK"),
    ({"run_invocation_timeout": 0.5}, 0.5, "fractions of a second"),
    ({"run_invocation_timeout": None}, 60, "None is the default in Azure's SDK"),
    ({"run_max_try": 1}, 1, "no retry"),
    ({"process_count_per_node": 4}, 4, "processes"),
    ({"environment_variables": {"OMP_NUM_THREADS": 1}}, {"OMP_NUM_THREADS": "1"}, "YAML's numbers"),
    ({"compute_target": "tls://host:8786"}, "tls://host:8786", "an address"),
    ({"source_limits": ["1GB", 5000]}, ("1GB", 5000), "YAML's list"),
]


@pytest.mark.parametrize(("given", "kept", "reason"), GOOD, ids=[str(row[0]) for row in GOOD])
def test_good_values(given, kept, reason):
    """A value that can work is kept in one form, whatever form it was given in."""
    config = ParallelRunConfig("score.py", **given)

    assert getattr(config, *given) == kept, reason


BAD = [
    ("entry_script", ""),
    ("entry_script", 3),
    ("source_directory", ""),
    ("mini_batch_size", "10 apples"),
    ("mini_batch_size", 0),
    ("mini_batch_size", True),
    ("mini_batch_size", 2.5),
    ("partition_keys", "store"),
    ("partition_keys", '["store"'),
    ("partition_keys", "[1]"),
    ("partition_keys", []),
    ("partition_keys", ["a", "a"]),
    ("error_threshold", -2),
    ("error_threshold", True),
    ("error_threshold", "10"),
    ("allowed_failed_count", 1.5),
    ("allowed_failed_percent", 101),
    ("allowed_failed_percent", -1),
    ("allowed_failed_percent", float("nan")),
    ("output_action", "append"),
    ("output_action", None),
    ("append_row_file_name", "folder/file.txt"),
    ("append_row_file_name", "a|b"),
    ("append_row_file_name", ""),
    ("append_row_file_name", ".."),
    ("append_row_file_name", "x" * 201),
    ("output_format", "xml"),
    ("output_order", "random"),
    ("compute_target", "local"),
    ("compute_target", 3),
    ("node_count", 0),
    ("node_count", None),
    ("node_count", True),
    ("process_count_per_node", 0),
    ("environment", 7),
    ("environment_variables", ["A=1"]),
    ("environment_variables", {"A=B": "1"}),
    ("logging_level", "ERROR"),
    ("run_invocation_timeout", 0),
    ("run_invocation_timeout", float("inf")),
    ("run_invocation_timeout", "60"),
    ("run_max_try", 0),
    ("isolate_failures", "yes"),
    ("gpus_per_process", -1),
    ("source_limits", "300MB"),
    ("source_limits", ("300MB", 0)),
    ("source_limits", ("3 apples", 10)),
    ("description", 3),
    ("error_threshold", PipelineParameter("t", 1)),
    ("node_count", PipelineParameter("nodes", 0)),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{row[0]}={row[1]!r:.20}" for row in BAD])
def test_bad_values(name, value):
    """A refusal names the parameter and the value, and says what would be right."""
    settings = {"entry_script": "score.py", name: value}

    with pytest.raises(
        ConfigError, match=f"^{name}=.* cannot be used: (it must be|give|only) "
    ) as error:
        ParallelRunConfig(**settings)

    assert isinstance(error.value, ValueError)
    assert not isinstance(error.value.__context__, ValidationError)
    assert pickle.loads(pickle.dumps(error.value)).args == error.value.args


def test_secrets_in_environment_variables_are_not_shown():
    """A bad environment variable is refused by its name, never by its value (R78)."""
    with pytest.raises(ConfigError, match=r"environment_variables\['TOKEN'\]") as error:
        ParallelRunConfig("score.py", environment_variables={"TOKEN": ["hunter2"]})

    assert "hunter2" not in str(error.value)


def test_unknown_parameter():
    """A misspelt parameter is refused with the name that was meant."""
    with pytest.raises(ConfigError, match="did you mean node_count"):
        ParallelRunConfig("score.py", nodecount=2)
    with pytest.raises(ConfigError, match="entry_script is missing"):
        ParallelRunConfig()


def test_partition_keys_exclude_mini_batch_size():
    """Each combination of key values is one mini-batch, so a size beside them is refused (R100)."""
    with pytest.raises(ConfigError, match="partition_keys"):
        ParallelRunConfig("score.py", partition_keys=["user"], mini_batch_size=3)


def test_frozen():
    """A config does not change once it is made."""
    config = ParallelRunConfig("score.py")

    with pytest.raises(ValueError, match="frozen"):
        config.node_count = 3  # type: ignore[misc]


def test_resolved_takes_the_flows_value_or_the_default():
    """A pipeline parameter is the flow's value where it has one, else the default (R39)."""
    config = ParallelRunConfig(
        "score.py",
        mini_batch_size=PipelineParameter("size", 5),
        node_count=PipelineParameter("nodes", 2),
    )

    resolved = config.resolved({"size": "7", "other": 1})

    assert (resolved.mini_batch_size, resolved.node_count) == ("7", 2)
    assert ParallelRunConfig("score.py", mini_batch_size="7", node_count=2) == resolved


@pytest.mark.parametrize(
    ("setting", "default", "value"),
    [
        ("run_max_try", 3, 0),
        ("node_count", 1, "2"),
        ("node_count", 1, None),
        ("mini_batch_size", 10, "many"),
        ("mini_batch_size", 10, 2.5),
        ("process_count_per_node", 2, True),
        ("logging_level", "INFO", "LOUD"),
        ("run_invocation_timeout", 60, float("nan")),
        ("partition_keys", ["store"], "store"),
        ("node_count", 1, {"name": "nodes", "default_value": 3}),
    ],
)
def test_resolved_checks_as_if_written_directly(setting, default, value):
    """A bad value from a flow run is refused with the same words as in the code, and its own name (R39)."""
    config = ParallelRunConfig("score.py", **{setting: PipelineParameter("chosen", default)})

    with pytest.raises(ConfigError) as from_flow:
        config.resolved({"chosen": value})

    said = str(from_flow.value)
    assert said.endswith(f" ({setting} is the flow's parameter 'chosen')")
    if not isinstance(value, dict):  # written directly, that would be a PipelineParameter
        with pytest.raises(ConfigError) as direct:
            ParallelRunConfig("score.py", **{setting: value})
        assert said.startswith(str(direct.value))


@pytest.mark.parametrize(
    ("setting", "default", "value", "kept"),
    [
        ("mini_batch_size", 10, None, None),
        ("mini_batch_size", 10, "1MB", "1MB"),
        ("run_max_try", 5, None, 3),
        ("logging_level", "INFO", "debug", "DEBUG"),
        ("run_invocation_timeout", 60, 0.5, 0.5),
        ("process_count_per_node", 2, None, None),
        ("partition_keys", ["store"], ["store", "brand"], ("store", "brand")),
        ("partition_keys", ["store"], '["brand"]', ("brand",)),
    ],
)
def test_resolved_keeps_what_would_be_kept(setting, default, value, kept):
    """A value from a flow run, None too, becomes what it would become in the code (R39)."""
    config = ParallelRunConfig("score.py", **{setting: PipelineParameter("chosen", default)})

    resolved = config.resolved({"chosen": value})

    assert getattr(resolved, setting) == kept
    assert resolved == ParallelRunConfig("score.py", **{setting: value})


def test_yaml_loses_nothing(tmp_path):
    """A config that was saved and loaded again is equal, with its pipeline parameters (R108)."""
    config = ParallelRunConfig(
        "score.py",
        source_directory="scripts",
        mini_batch_size=PipelineParameter("size", "10"),
        error_threshold=10,
        allowed_failed_count=-1,
        allowed_failed_percent=2.5,
        output_action="summary_only",
        append_row_file_name="vorhersagen-ä.txt",
        output_order="completion",
        compute_target="tcp://10.0.0.4:8786",
        node_count=2,
        process_count_per_node=3,
        environment_variables={"name": "1", "default_value": "yes"},
        logging_level="debug",
        run_invocation_timeout=0.5,
        run_max_try=1,
        source_limits=("1GB", 5000),
        description="two\nlines, a\x85b",
    )
    config.save_to_yaml(tmp_path / "config.yml")

    assert ParallelRunConfig.load_yaml(tmp_path / "config.yml") == config


def test_yaml_of_partition_keys(tmp_path):
    """Keys that are pipeline parameters are saved as lists, which they are again when loaded."""
    config = ParallelRunConfig("score.py", partition_keys=PipelineParameter("keys", ["a", "b"]))
    config.save_to_yaml(tmp_path / "config.yml")

    assert ParallelRunConfig.load_yaml(tmp_path / "config.yml") == config


def test_yaml_refuses_a_cluster_object(tmp_path):
    """An object cannot be said in YAML: nothing is saved rather than something else."""
    config = ParallelRunConfig("score.py", compute_target=_Cluster())

    with pytest.raises(ConfigError, match="scheduler_address"):
        config.save_to_yaml(tmp_path / "config.yml")

    assert not (tmp_path / "config.yml").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("parallel_run_config: [", "cannot be read as YAML"),
        ("entry_script: score.py", "parallel_run_config"),
        ("parallel_run_config:\n  entry_script: a.py\n  node_count: 0", "node_count=0"),
        ("parallel_run_config:\n  node_count: 2", "entry_script is missing"),
        (
            "parallel_run_config:\n  entry_script: a.py\n  node_count: {pipeline_parameter: 3}",
            "pipeline_parameter=3",
        ),
    ],
)
def test_yaml_that_is_wrong(tmp_path, content, complaint):
    """A YAML file that cannot be used is refused with what is wrong in it."""
    (tmp_path / "config.yml").write_text(content)

    with pytest.raises(ConfigError, match=complaint):
        ParallelRunConfig.load_yaml(tmp_path / "config.yml")


def test_json_form_is_accepted():
    """A config that went through JSON, as a flow's parameter does, is the same again."""
    config = ParallelRunConfig("score.py", node_count=PipelineParameter("nodes", 2))

    assert ParallelRunConfig.model_validate_json(config.model_dump_json()) == config


def test_paths(tmp_path, monkeypatch):
    """The script is relative to source_directory; without one, its own folder is the source (R20, R30)."""
    monkeypatch.chdir(tmp_path)

    alone = ParallelRunConfig("scripts/score.py")
    below = ParallelRunConfig("steps/score.py", source_directory="scripts")

    assert (alone.source_folder, alone.script_path) == (
        tmp_path / "scripts",
        tmp_path / "scripts/score.py",
    )
    assert (below.source_folder, below.script_path) == (
        tmp_path / "scripts",
        tmp_path / "scripts/steps/score.py",
    )
    located = below.located()
    monkeypatch.chdir("/")
    assert (located.source_folder, located.script_path) == (
        tmp_path / "scripts",
        tmp_path / "scripts/steps/score.py",
    )
