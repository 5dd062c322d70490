"""Which GPUs a node finds (R40): of NVML, the Dask worker's resource and `CUDA_VISIBLE_DEVICES`."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from prefect_parallelrun import ParallelRunConfig
from prefect_parallelrun.errors import ConfigError
from prefect_parallelrun.node import gpus
from prefect_parallelrun.node.nvml import Devices
from prefect_parallelrun.node.readings import Machine
from tests.nvml_stand_in import Card, Library, cards

LOST = Card("GPU-lost", error=pynvml.NVML_ERROR_GPU_IS_LOST)
FOREIGN = Card("GPU-foreign", error=pynvml.NVML_ERROR_NO_PERMISSION)
DIVIDED = Card("GPU-divided", instances=("MIG-aaaa-1", "MIG-aabb-2"))
ZERO, ONE, TWO, THREE = (card.uuid for card in cards(4))


@pytest.fixture
def host(monkeypatch):
    """Return a function that puts GPUs into this host."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(*present, **more):
        return Library(*present, **more).put_in_place(monkeypatch)

    return put


@pytest.fixture
def no_library(monkeypatch):
    """A host without NVIDIA's driver."""

    def refuse(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", refuse)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def shown(found):
    return [gpu["visible"] for gpu in found.gpus]


def keys(found):
    return [gpu["key"] for gpu in found.gpus]


def test_nvml_counts_them(host):
    """By index, known by UUID, and NVML is let go of."""
    library = host(*cards(3))

    found = gpus.find({})

    assert (shown(found), keys(found)) == (["0", "1", "2"], [ZERO, ONE, TWO])
    assert (found.count, found.trouble, library.opened) == (3, "", 0)


def test_a_host_without_a_driver_has_none(no_library):
    """That is no trouble, unless GPUs are asked for: then it says what NVML says."""
    assert gpus.find({}) == gpus.Found((), 0)
    assert "NVML" in gpus.find({}, wanted=1).trouble


@pytest.mark.parametrize(
    ("refusal", "wanted", "told"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, None, ""),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, 0.5, "Driver Not Loaded"),
        # After an update of the driver without a restart: there are GPUs, and nobody would know why not.
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, None, "version mismatch"),
        (pynvml.NVML_ERROR_UNKNOWN, 0, "Unknown Error"),
    ],
)
def test_a_driver_that_does_not_answer(host, refusal, wanted, told):
    """A driver that is there and fails is told of; one that is not there, only if GPUs are asked for."""
    host(*cards(1), refusal=refusal)

    found = gpus.find({}, wanted=wanted)

    assert (found.gpus, found.count) == ((), 0)
    assert told in found.trouble
    assert bool(found.trouble) is bool(told)


def test_without_the_package_there_are_none(monkeypatch):
    """A broken installation runs without GPUs, and the monitor too; who asks for them learns why."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    assert gpus.find({}).trouble == ""
    assert "nvidia-ml-py is not installed" in gpus.find({}, wanted=1).trouble
    assert len(Devices()) == 0


def test_instances_stand_in_place_of_a_divided_gpu(host):
    """MIG; the whole GPU beside it goes by its UUID, since nobody says how CUDA counts then."""
    host(DIVIDED, *cards(1))

    found = gpus.find({})

    assert shown(found) == ["MIG-aaaa-1", "MIG-aabb-2", ZERO]
    assert (found.count, found.trouble) == (3, "")


def test_a_divided_gpu_without_instances_is_none(host):
    """It is told of: no process could use it."""
    host(Card("GPU-empty", instances=()))

    found = gpus.find({})

    assert (found.count, found.trouble) == (0, "GPU 0 is in MIG mode, and has no instance")


@pytest.mark.parametrize(
    ("dead", "told"), [(LOST, "GPU 1 does not answer: GPU is lost"), (FOREIGN, "")]
)
def test_the_others_of_a_host_where_one_does_not_answer(host, dead, told):
    """By UUID, since nobody says whether CUDA counts it; one that is somebody else's is no trouble."""
    host(cards(3)[0], dead, cards(3)[2])

    found = gpus.find({})

    assert (shown(found), found.count, found.trouble) == ([ZERO, TWO], 2, told)


@pytest.mark.parametrize(
    ("visible", "expected", "told"),
    [
        ("2,0", [("2", TWO), ("0", ZERO)], ""),  # in this order
        ("1,2,3,0", [("1", ONE), ("2", TWO), ("3", THREE), ("0", ZERO)], ""),  # dask-cuda's
        (f" 1 , {ZERO}", [("1", ONE), (ZERO, ZERO)], ""),
        ("GPU-3", [("GPU-3", THREE)], ""),  # as much of a UUID as it takes
        ("0,2,-1,1", [("0", ZERO), ("2", TWO)], ""),  # CUDA stops at what is no device
        ("", [], ""),
        ("-1", [], ""),
        ("NoDevFiles", [], ""),  # Slurm's, of a job without GPUs
        ("GPU-", [], "names GPU-, which is several GPUs here"),
        ("1,7,0", [("1", ONE)], "names 7, which is no GPU here"),
        ("1,1", [("1", ONE)], "names 1 twice"),
        (f"1,{ONE}", [("1", ONE)], "twice"),
    ],
)
def test_only_what_the_dask_worker_may_see(host, visible, expected, told):
    """`CUDA_VISIBLE_DEVICES` as CUDA reads it."""
    host(*cards(4))

    found = gpus.find({}, {"CUDA_VISIBLE_DEVICES": visible})

    assert list(zip(shown(found), keys(found), strict=True)) == expected
    assert told in found.trouble
    assert bool(found.trouble) is bool(told)


@pytest.mark.parametrize(
    ("visible", "expected", "told"),
    [
        ("MIG-aabb", ["MIG-aabb"], ""),
        ("MIG-aa", [], "several GPUs"),
        ("0", [], "names 0, a GPU that is divided into instances (MIG): name these"),
        ("1", ["1"], ""),
    ],
)
def test_instances_are_named_by_their_uuids(host, visible, expected, told):
    """An index cannot name one."""
    host(DIVIDED, *cards(1))

    found = gpus.find({}, {"CUDA_VISIBLE_DEVICES": visible})

    assert (shown(found), told in found.trouble) == (expected, True)


@pytest.mark.parametrize(
    ("declared", "visible", "seen", "count", "told"),
    [
        (2, None, ["0", "1", "2", "3"], 2, ""),  # others of its host declare the rest
        (4, None, ["0", "1", "2", "3"], 4, ""),
        (6, None, ["0", "1", "2", "3"], 4, "declares 6 GPUs, and NVML shows 4"),
        (1, "3,1", ["3", "1"], 1, ""),
        (2, "3", ["3"], 1, "declares 2 GPUs, and CUDA_VISIBLE_DEVICES='3' shows 1"),
        (0.5, None, ["0", "1", "2", "3"], 0, "declares 0.5 GPUs: only whole ones count"),
        (0, None, ["0", "1", "2", "3"], 0, ""),  # it sees them, and has none: they are hidden
    ],
)
def test_a_dask_worker_declares_how_many_are_its_own(host, declared, visible, seen, count, told):
    """More than there are is told of."""
    host(*cards(4))
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}

    found = gpus.find({"GPU": declared}, environment)

    assert (shown(found), found.count) == (seen, count)
    assert told in found.trouble
    assert bool(found.trouble) is bool(told)


def test_what_is_declared_is_believed_where_nvml_is_silent(no_library):
    """So a container without NVML has its GPUs; and those that the variable names are the ones."""
    assert shown(gpus.find({"GPU": 2})) == ["0", "1"]
    assert shown(gpus.find({"GPU": 2}, {"CUDA_VISIBLE_DEVICES": "5,MIG-x/1/0"})) == [
        "5",
        "MIG-x/1/0",
    ]
    assert gpus.find({}, {"CUDA_VISIBLE_DEVICES": "0,1"}).count == 0


def test_an_index_is_another_gpu_on_another_host(no_library):
    """Hosts that share their temporary folder would else lease each other's away; Dask workers of one agree."""
    (declared,) = keys(gpus.find({"GPU": 1}))
    host = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    assert declared == f"{host}-0"
    assert keys(gpus.find({"GPU": 1}, {"CUDA_VISIBLE_DEVICES": "0"})) == [declared]


def test_the_users_variable_chooses(host):
    """`environment_variables` take the place of the Dask worker's variable; fewer is no trouble then."""
    host(*cards(4))
    own = {"CUDA_VISIBLE_DEVICES": "0,1"}

    found = gpus.find({"GPU": 2}, own, given={"CUDA_VISIBLE_DEVICES": "3"})

    assert (shown(found), found.count, found.trouble) == (["3"], 1, "")


def test_a_worker_of_dask_cuda_has_the_first_it_sees(host):
    """Each of its workers sees all of the host, turned so that its own comes first, and declares nothing."""
    host(*cards(4))
    turned = {"CUDA_VISIBLE_DEVICES": "2,3,0,1"}

    assert shown(gpus.find({}, turned, is_of_dask_cuda=True)) == ["2"]
    assert gpus.find({"GPU": 2}, turned, is_of_dask_cuda=True).count == 2


def test_the_monitor_keeps_the_numbers_of_the_bus(host):
    """R63: a GPU that is lost leaves the others their columns; of a divided one the memory is told."""
    host(Card("GPU-a", percent=75, used=3), LOST, Card("GPU-d", instances=("MIG-1",), used=5))
    machine = Machine()

    (row,) = machine.rows()
    machine.close()

    told = dict(zip(machine.columns, row, strict=True))
    assert [told[f"gpu{n}_percent"] for n in range(3)] == [75, "", ""]
    assert [told[f"gpu{n}_memory_used_bytes"] for n in range(3)] == [3, "", 5]


@pytest.mark.parametrize(
    ("module", "expected"), [("dask_cuda.plugins", True), ("distributed.shuffle", False)]
)
def test_dask_cuda_is_known_by_its_plugins(module, expected):
    """The Dask worker itself is of Dask's own class there."""
    plugin = type("CPUAffinity", (), {"__module__": module})()

    assert gpus.is_of_dask_cuda(SimpleNamespace(plugins={"cpu": plugin})) is expected


@pytest.mark.parametrize("value", [0, 0.01, 0.25, 0.3, 1, 2, 2.0, 1024])
def test_gpus_per_process_is_a_number_or_a_fraction(value):
    """Of 0.3 three processes share one."""
    assert ParallelRunConfig("score.py", gpus_per_process=value).gpus_per_process == value


@pytest.mark.parametrize(
    "value", [1.5, -1, -0.5, float("nan"), float("inf"), "1", True, 0.001, 1025]
)
def test_another_gpus_per_process_is_refused(value):
    """The message says what it may be."""
    with pytest.raises(ConfigError, match=r"gpus_per_process=.*whole number of GPUs.*0\.25"):
        ParallelRunConfig("score.py", gpus_per_process=value)


def test_the_stand_in_is_asked_through_pynvml(host):
    """What is tested is what NVML's own Python binding makes of C functions."""
    library = host(*cards(1))

    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()
    assert isinstance(library.nvmlDeviceGetCount_v2, ctypes._CFuncPtr)
