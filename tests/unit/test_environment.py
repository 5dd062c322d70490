"""What a user may give as `environment`, and what it decides (R35)."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest

from prefect_parallelrun import Environment, FileDataset, ParallelRunConfig, reuse
from prefect_parallelrun.blocks import ParallelRunConfigBlock
from prefect_parallelrun.definition import StepDefinition
from prefect_parallelrun.driver import inline
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.script_check import check_script
from prefect_parallelrun.step_file import load_step
from prefect_parallelrun.understanding import understood


@pytest.fixture
def step(tmp_path, monkeypatch):
    """Return a function that makes a definition with an environment; the script lies beside it."""
    (tmp_path / "score.py").write_text("def run(mini_batch):\n    return mini_batch\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")

    def call(environment):
        return StepDefinition(
            name="score-files",
            config=ParallelRunConfig(str(tmp_path / "score.py"), environment=environment),
            inputs=(FileDataset.from_files(str(tmp_path / "data")).as_named_input("data"),),
        )

    return call


@pytest.mark.parametrize(
    ("given", "python"),
    [
        ("/opt/venv", "/opt/venv"),
        ("venvs/one", "{here}/venvs/one"),
        (".venv", "{here}/.venv"),
        ("./one/../two", "{here}/two"),
        (Path("one"), "{here}/one"),
        ("one", "one"),
        ("python3.12", "python3.12"),
        ("~/venv", "~/venv"),
        (Path("~/venv"), "~/venv"),
    ],
)
def test_where_a_path_begins(given, python, tmp_path, monkeypatch):
    """At the working directory; a word is the name of a program, and `~` the home on the node."""
    monkeypatch.chdir(tmp_path)

    assert Environment(python=given).python == python.format(here=tmp_path)
    assert ParallelRunConfig("s.py", environment=given).environment == Environment(python=given)


@pytest.mark.parametrize(
    "here", ["config: {entry_script: score.py, ", "config: step-settings.yaml"]
)
def test_in_a_step_file_a_path_begins_at_its_folder(here, tmp_path, monkeypatch, step):
    """So does that of requirements; in a file of settings they begin at its own."""
    (tmp_path / "wanted.txt").write_text("tiny==1.0\n")
    environment = "{python: ./base, requirements: wanted.txt}"
    (tmp_path / "step-settings.yaml").write_text(
        f"parallel_run_config: {{entry_script: score.py, environment: {environment}}}"
    )
    inline = f"{here}environment: {environment}}}" if here.endswith(" ") else here
    (tmp_path / "step.yaml").write_text(f"name: score-files\n{inline}\ninputs: [{{files: data}}]\n")
    step(None)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    loaded = load_step(tmp_path / "step.yaml").parallel_run_config

    wanted = Environment(python=str(tmp_path / "base"), requirements=["tiny==1.0"])
    assert loaded.environment == wanted
    told = understood(tmp_path / "step.yaml")["settings"]
    assert any("tiny==1.0" in line for line in told)


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (["pandas  # ours", "", "# a comment", " numpy>=2 "], ["pandas", "numpy>=2"]),
        (["a==1 \\", "  --hash=sha256:aa \\", "  --hash=sha256:bb"], ["a==1 --hash=sha256:aa --hash=sha256:bb"]),
        (["--find-links https://host/torch.html", "torch"], ["--find-links https://host/torch.html", "torch"]),
        (["-f https://host/torch.html"], ["-f https://host/torch.html"]),
        (["git+ssh://git@host/a.git@v1#egg=a"], ["git+ssh://git@host/a.git@v1#egg=a"]),
        (["git+https://host/a.git@v1"], ["git+https://host/a.git@v1"]),
        (["git+https://host:8080/a.git@v1"], ["git+https://host:8080/a.git@v1"]),
        (["git+https://${TOKEN}:@host/a.git@v1"], ["git+https://${TOKEN}:@host/a.git@v1"]),
        (["--index-url https://me:${PASSWORD}@host/simple"], ["--index-url https://me:${PASSWORD}@host/simple"]),
        (["tiny @ file:///opt/wheels/tiny.whl"], ["tiny @ file:///opt/wheels/tiny.whl"]),
        (["a[x]>=1; python_version<'4'", "--pre"], ["a[x]>=1; python_version<'4'", "--pre"]),
    ],
)  # fmt: skip
def test_requirements_are_lines_as_pip_reads_them(given, lines, tmp_path):
    """In a list and in a file alike."""
    (tmp_path / "wanted.txt").write_text("\n".join(given))

    assert Environment(requirements=given).requirements == tuple(lines)
    assert Environment(requirements=tmp_path / "wanted.txt").requirements == tuple(lines)


@pytest.mark.parametrize(
    "line",
    ["-r more.txt", "-rmore.txt", "--constraint=c.txt", "-e .", "-e ./a", "--find-links ./w",
     "./tiny", "wheels/tiny.whl", "tiny-1.0.whl", "/opt/tiny.whl", "~/tiny"],
)  # fmt: skip
def test_files_of_the_flows_machine_are_refused(line):
    """The nodes do not have them."""
    with pytest.raises(ConfigError, match="names a file, which the nodes do not have"):
        Environment(requirements=[line])


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://me:hunter2@host/simple",
        "--extra-index-url=https://hunter2@host/simple",
        "git+https://me:hunter2@host/a.git",
        "git+ssh://git:hunter2@host/a.git",
        "--index-url https://me:hunter2/more@host/simple",
        "--index-url https://me:hunter2#@host/simple",
        "--index-url https://me:hunter2${X}@host/simple",
        "tiny @ https://host/tiny.whl?sv=2024&sig=hunter2",
        "https://host/tiny.whl?token=hunter2",
        "-r https://me:hunter2@host/r.txt",
    ],
)
def test_secrets_in_requirements_are_refused_and_not_shown(line, tmp_path):
    """They would stand in fingerprints, logs, reports and the run folder (R78)."""
    shapes = [
        {"requirements": [line]},
        {"requirements": line},
        {"requirements": {line}},
        {"requirement": [line]},
        [line],
    ]
    for shape in shapes:
        with pytest.raises(ConfigError) as caught:
            ParallelRunConfig("score.py", environment=shape)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [7, True, "", " ", "a\0b", {}, {"python": ""}, {"python": 7}, {"requirements": []}, ["a"],
     {"requirements": ["# none"]}, {"requirements": [7]}, {"requirements": "no-such-file.txt"},
     {"requirements": ["a\nb"]}, {"python": "python3", "version": "3.12"}, {"name": "x"},
     {"python": "python3", "name": " "}],
)  # fmt: skip
def test_what_is_no_environment(given):
    """It is refused where it is given, in our words."""
    with pytest.raises(ConfigError, match=r"[Ee]nvironment"):
        ParallelRunConfig("score.py", environment=given)


def test_it_survives_yaml_a_block_and_a_pickle(tmp_path):
    """In each form in which a step is kept."""
    for given in ("/opt/venv", {"requirements": ["a==1"], "name": "scoring"}):
        config = ParallelRunConfig("score.py", environment=given)
        config.save_to_yaml(tmp_path / "config.yaml")
        block = ParallelRunConfigBlock(entry_script="score.py", environment=config.environment)

        assert ParallelRunConfig.load_yaml(tmp_path / "config.yaml") == config
        assert block.environment == given or json.loads(block.environment) == given
        assert block.to_config().environment == config.environment
        assert pickle.loads(pickle.dumps(config.environment)) == config.environment


def test_in_a_block_it_is_a_text():
    """Which Prefect's pages can edit: a path, or JSON (R240)."""
    text = '{"requirements": ["a==1"]}'

    for given in (text, {"requirements": ["a==1"]}, Environment(requirements=["a==1"])):
        block = ParallelRunConfigBlock(entry_script="score.py", environment=given)
        assert json.loads(block.environment) == {"requirements": ["a==1"]}
        assert block.to_config().environment == Environment(requirements=["a==1"])
    with pytest.raises(ValueError, match="environment is no JSON") as caught:
        ParallelRunConfigBlock(entry_script="s.py", environment='{"requirements": hunter2')
    assert "hunter2" not in str(caught.value)
    for bad in ({"requirements": {"a"}, "other": 1}, {"requirements": ["https://me:hunter2@h/"]}):
        with pytest.raises(ValueError, match="nvironment") as caught:
            ParallelRunConfigBlock(entry_script="s.py", environment=bad)
        assert "hunter2" not in str(caught.value)


def test_what_changes_the_rows_changes_the_fingerprint(step):
    """Another interpreter, other requirements; not what it is called (R210)."""
    environments = [
        None,
        "/opt/one",
        "/opt/two",
        {"requirements": ["a==1"]},
        {"requirements": ["a==2"]},
        {"requirements": ["a==1"], "python": "python3.12"},
    ]

    def part(environment):
        parts = reuse.fingerprint_parts(step(environment), source_sha256="", seen=())
        return parts["environment"]

    assert len({part(one) for one in environments}) == len(environments)
    assert part({"requirements": ["a==1"], "name": "scoring"}) == part({"requirements": ["a==1"]})


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"python": "/a"}, {"python": "/b"}, ["python was '/a', and is '/b'"]),
        ({"requirements": ["a"]}, {"requirements": ["a"], "python": "/b"}, ["python was not given, and is '/b'"]),
        ({"requirements": ["a", "b==1"]}, {"requirements": ["a", "b==2"]}, ["b==2 (new)", "b==1 (gone)"]),
        ({"requirements": ["a", "b"]}, {"requirements": ["b", "a"]}, ["the order of its requirements"]),
    ],
)  # fmt: skip
def test_what_is_another_in_it(before, now, told):
    """Named by line, also where the name stays."""
    now = Environment(**now, name="scoring")

    assert now.changes(Environment(**before, name="scoring")) == told


def test_the_environment_of_a_job_of_azure_is_not_used_and_that_is_said(tmp_path, step, caplog):
    """An image or an asset of a workspace: nobody can see whether the nodes have the like (R109)."""
    step(None)
    (tmp_path / "job.yaml").write_text(
        """
        type: parallel
        name: score-files
        inputs: {data: {type: uri_folder, path: ./data}}
        input_data: ${{inputs.data}}
        task: {entry_script: score.py, environment: {image: example, conda_file: ./conda.yaml}}
        """
    )

    loaded = load_step(tmp_path / "job.yaml")

    assert loaded.parallel_run_config.environment is None
    (warning,) = caplog.messages
    assert "job.yaml: task.environment is not used: the worker processes have the Python" in warning


def test_the_syntax_of_a_newer_python_is_for_its_nodes_to_judge(tmp_path):
    """This program may be an older one; without another interpreter, it is refused here."""
    (tmp_path / "score.py").write_text("def run(mini_batch):\n    newer syntax\n")

    check_script(ParallelRunConfig(str(tmp_path / "score.py"), environment="python3.99"))
    with pytest.raises(Exception, match="invalid syntax"):
        check_script(
            ParallelRunConfig(str(tmp_path / "score.py"), environment={"requirements": ["a"]})
        )


def test_what_runs_in_this_process_does_not_use_it_and_says_so(step, caplog):
    """debug, replay and plan --time: else rows of another pandas would be taken for those of a run."""
    inline.debug(step(None), mini_batches=1)
    assert not caplog.messages

    inline.debug(step({"requirements": ["a==1"], "name": "scoring"}), mini_batches=1)

    told = f"environment ('scoring') is not used here: the script runs in this program's own Python, {sys.executable}"
    assert caplog.messages == [told]
