"""The recipes for other people's clusters, against the packages that they are for (R230)."""

from __future__ import annotations

import inspect
import json
import logging
import signal
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from prefect_parallelrun import DaskComputeTarget, ParallelRunConfig
from prefect_parallelrun.driver import described
from tests.cluster_page import PAGE, arguments, blocks, config, saved

LOG = logging.getLogger("test")
STARTED = ("Kubernetes", "Slurm", "dask-cuda", "SSH", "Coiled")


@pytest.mark.parametrize(
    "section", ["A cluster that is there", "A cluster that is started for the run", *STARTED]
)
def test_the_step_file_says_what_the_python_says(section, tmp_path):
    """A recipe is the same in both, and what YAML has of it is what `save_to_yaml` would write."""
    made = config(section)

    assert ParallelRunConfig.from_saved(saved(section)) == made
    made.save_to_yaml(tmp_path / "config.yaml")
    assert ParallelRunConfig.load_yaml(tmp_path / "config.yaml") == made


def test_the_other_blocks_are_configs_too():
    """Every Python block of the page runs; those that start something by themselves are tried elsewhere."""
    _, encrypted = blocks("A cluster that is there", "python")
    [task_runner] = blocks("The cluster of the flow's task runner", "python")
    names: dict[str, object] = {}
    exec(encrypted, names)
    assert names["config"].compute_target.tls_key == "/srv/dask/flow-key.pem"
    exec(task_runner, names)
    assert names["config"].compute_target == "task-runner"


@pytest.mark.parametrize("section", STARTED)
def test_each_recipe_says_how_far_it_was_tried(section):
    """No recipe is there of which the reader cannot tell whether it ever ran (R2)."""
    part = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]

    assert part.count("Not run ") == 1


SCRIPT = """#!/usr/bin/env bash

#SBATCH -J dask-worker
#SBATCH -e {logs}/dask-worker-%J.err
#SBATCH -o {logs}/dask-worker-%J.out
#SBATCH -p gpu
#SBATCH -n 1
#SBATCH --cpus-per-task=32
#SBATCH --mem=112G
#SBATCH -t 08:00:00
#SBATCH --exclusive
#SBATCH --gres=gpu:2
export DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP=15s
/shared/venvs/score/bin/python -m distributed.cli.dask_worker {scheduler} --name dummy-name \
--nthreads 32 --memory-limit 111.76GiB --nanny --death-timeout 60 --resources GPU=2
"""


@pytest.fixture
def unimported(monkeypatch):
    """dask-jobqueue, as it is where no one has imported it yet."""
    version("dask-jobqueue")
    for name in [n for n in sys.modules if n.partition(".")[0] == "dask_jobqueue"]:
        monkeypatch.delitem(sys.modules, name)


def test_slurm(unimported, tmp_path):
    """The job is one Dask worker with all cores of a machine; Ctrl-C stays the flow's (R210)."""
    handler = signal.getsignal(signal.SIGINT)
    target = DaskComputeTarget(
        cluster_class="dask_jobqueue.SLURMCluster",
        cluster_kwargs=arguments(
            "Slurm",
            n_workers=0,
            log_directory=str(tmp_path / "logs"),
            scheduler_options={"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
        ),
    )

    found = described.find(target, log=LOG, watch=None)
    try:
        script = found.place.job_script()
        scheduler = found.place.scheduler_address
    finally:
        found.end()

    expected = SCRIPT.format(logs=tmp_path / "logs", scheduler=scheduler)
    assert [line for line in script.splitlines() if line] == [
        line for line in expected.splitlines() if line
    ]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_module_that_wants_ctrl_c_for_itself_does_not_get_it(tmp_path, monkeypatch):
    """R210, R230: it can be imported all the same, and other threads set handlers meanwhile."""
    (tmp_path / "wants_ctrl_c.py").write_text(
        "import signal\n"
        "before = signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "class Cluster:\n"
        "    scheduler_address = 'tcp://10.0.0.4:8786'\n"
        "    def close(self): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    target = DaskComputeTarget(cluster_class="wants_ctrl_c.Cluster")

    assert described.find(target, log=LOG, watch=None).place.scheduler_address

    assert signal.getsignal(signal.SIGINT) is handler
    assert import_module("wants_ctrl_c").before is handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main thread's own
    assert signal.signal(signal.SIGINT, handler) is signal.SIG_IGN


def manifest():
    """The DaskCluster that the page has."""
    [found] = [b for b in map(yaml.safe_load, blocks("Kubernetes", "yaml")) if "kind" in b]
    return found


def test_the_manifest_agrees_with_itself_and_with_the_config():
    """One name, one image, as many Dask workers as nodes, as many GPUs declared as asked for."""
    found, spec = manifest(), manifest()["spec"]
    name = found["metadata"]["name"]
    [scheduler] = spec["scheduler"]["spec"]["containers"]
    [worker] = spec["worker"]["spec"]["containers"]
    [rule] = spec["worker"]["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]

    assert spec["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == name
    assert rule["labelSelector"]["matchLabels"]["dask.org/cluster-name"] == name
    assert scheduler["image"] == worker["image"]
    assert spec["worker"]["replicas"] == config("Kubernetes").node_count
    assert f"GPU={worker['resources']['limits']['nvidia.com/gpu']}" in worker["args"]
    threads = worker["args"][worker["args"].index("--nthreads") + 1]
    assert threads == worker["resources"]["requests"]["cpu"]


def test_dask_understands_the_commands_of_the_manifest():
    """`dask scheduler` and `dask worker` of the installed Dask take these options."""
    from distributed.cli import dask_scheduler, dask_worker

    [scheduler] = manifest()["spec"]["scheduler"]["spec"]["containers"]
    [worker] = manifest()["spec"]["worker"]["spec"]["containers"]
    for container, command in ((scheduler, dask_scheduler.main), (worker, dask_worker.main)):
        program, name, *options = container["args"]
        assert (program, name) == ("dask", command.name)
        command.make_context(name, options)


def test_kubernetes_against_its_package():
    """The manifest fits the resource definition of dask-kubernetes, whose controller makes pods of it."""
    package = pytest.importorskip("dask_kubernetes", reason="dask-kubernetes is not installed")
    jsonschema = pytest.importorskip("jsonschema")
    controller = import_module("dask_kubernetes.operator.controller.controller")
    [crd] = Path(package.__file__).parent.glob("operator/deployment/helm/*/crds/daskcluster.yaml")
    [version] = yaml.safe_load(crd.read_text())["spec"]["versions"]
    found = manifest()
    spec, name = found["spec"], found["metadata"]["name"]

    jsonschema.validate(found, version["schema"]["openAPIV3Schema"])
    deployment = controller.build_worker_deployment_spec(
        f"{name}-default", "default", name, "0a1b", spec["worker"]["spec"], {}, {}
    )

    pod = deployment["spec"]["template"]
    rule = pod["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ][0]
    assert rule["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    environment = {e["name"]: e["value"] for e in pod["spec"]["containers"][0]["env"]}
    assert environment["DASK_SCHEDULER_ADDRESS"].startswith(f"tcp://{name}-scheduler.")
    assert environment["DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP"] == "15s"


@pytest.mark.parametrize("section", ["Kubernetes", "dask-cuda", "Coiled"])
def test_arguments_are_those_of_the_class(section):
    """What the recipe names, the constructor takes; nothing is started, and no account is needed."""
    path = config(section).compute_target.cluster_class
    module, _, name = path.rpartition(".")
    cluster = getattr(pytest.importorskip(module, reason=f"{module} is not installed"), name)
    given = arguments(section)
    taken = inspect.signature(cluster.__init__)
    rest = taken.parameters.get("kwargs")
    if rest is not None:  # passed on to Dask's own LocalCluster
        import distributed

        known = {*taken.parameters, *inspect.signature(distributed.LocalCluster).parameters}
        known |= {*inspect.signature(distributed.Worker).parameters}
        assert given.keys() <= known, json.dumps(sorted(given.keys() - known))
    taken.bind(None, **given)
