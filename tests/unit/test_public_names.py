from __future__ import annotations

import subprocess
import sys

import pytest

import prefect_parallelrun

NAMES = [
    "AzureAccountKeyCredentials",
    "AzureSasCredentials",
    "ClusterError",
    "ConfigError",
    "DaskComputeTarget",
    "DaskComputeTargetBlock",
    "DatasetError",
    "EntryScript",
    "EntryScriptError",
    "Environment",
    "ErrorThresholdExceeded",
    "FileDataset",
    "HttpCredentials",
    "InitFailed",
    "NoProgress",
    "OutputError",
    "OutputFileDatasetConfig",
    "ParallelRunConfig",
    "ParallelRunConfigBlock",
    "ParallelRunError",
    "ParallelRunResult",
    "ParallelRunStep",
    "PipelineParameter",
    "RegisteredDataset",
    "ReusePolicy",
    "RunCancelled",
    "S3Credentials",
    "ServicePrincipalCredentials",
    "SqlConnection",
    "TabularDataset",
]


def _in_a_fresh_process(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_public_names_are_these():
    """The package has the names that are documented, and lists them."""
    assert sorted(prefect_parallelrun.__all__) == NAMES
    assert set(NAMES) <= set(dir(prefect_parallelrun))


@pytest.mark.parametrize("name", NAMES)
def test_each_name_resolves(name):
    """Each public name is a class that is called so."""
    assert getattr(prefect_parallelrun, name).__name__ == name


def test_unknown_name():
    """A name that is not there raises what Python raises."""
    with pytest.raises(AttributeError, match="Nonsense"):
        prefect_parallelrun.Nonsense  # noqa: B018


def test_importing_the_package_is_cheap():
    """Neither Prefect nor Dask nor pandas is imported with the package, its configs and datasets."""
    _in_a_fresh_process(
        "import sys, prefect_parallelrun as p\n"
        "p.ParallelRunConfig('score.py', mini_batch_size='1MB')\n"
        "p.FileDataset.from_files('x'), p.TabularDataset.from_delimited_files('x.csv')\n"
        "p.OutputFileDatasetConfig, p.PipelineParameter('a', 1), p.ConfigError, p.ParallelRunResult\n"
        "import prefect_parallelrun.definition\n"
        "heavy = {'prefect', 'dask', 'distributed', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )


def test_entry_script_is_one_object_by_every_import():
    """Scripts get the same singleton under each name (R67)."""
    out = _in_a_fresh_process(
        "from prefect_parallelrun import EntryScript\n"
        "from azureml_user.parallel_run import EntryScript as Azures\n"
        "print(EntryScript is Azures, EntryScript() is Azures())\n"
    )

    assert out.split() == ["True", "True"]
