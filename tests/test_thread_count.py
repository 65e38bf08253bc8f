"""The default number of threads; threadpoolctl."""

import math
import os

import pytest
import threadpoolctl

import fastrms
from fastrms import _core, _threads

pytestmark = pytest.mark.skipif(
    not _core.build_info()["pool"], reason="there is no pool: every call is serial"
)

COUNT = """
import fastrms
print(fastrms.get_num_threads(), fastrms.show_config("dicts")["threads"]["default"], sep="\\n")
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OMP_NUM_THREADS": "1"}, (1, "OMP_NUM_THREADS")),
        ({"OMP_NUM_THREADS": "4,2"}, (4, "OMP_NUM_THREADS")),
        ({"OMP_NUM_THREADS": " +4 "}, (4, "OMP_NUM_THREADS")),
        ({"OMP_NUM_THREADS": "5000"}, (1024, "OMP_NUM_THREADS")),
        ({"FASTRMS_NUM_THREADS": "1", "OMP_NUM_THREADS": "3"}, (1, "FASTRMS_NUM_THREADS")),
        ({"FASTRMS_NUM_THREADS": "3", "OMP_NUM_THREADS": "1"}, (3, "FASTRMS_NUM_THREADS")),
        ({"FASTRMS_NUM_THREADS": "", "OMP_NUM_THREADS": "3"}, (3, "OMP_NUM_THREADS")),
    ],
)
def test_threads_from_the_environment(environment, expected):
    assert _threads.default(environment) == expected


def test_the_environment_is_read_at_import(python):
    for name in ("FASTRMS_NUM_THREADS", "OMP_NUM_THREADS"):
        assert python(COUNT, **{name: "3"}).stdout == f"3\n3, from {name}\n"
    failed = python("import fastrms", FASTRMS_NUM_THREADS="many")
    assert failed.returncode == 1
    assert "ImportError: FASTRMS_NUM_THREADS must be 1 to 1024, got 'many'" in failed.stderr


@pytest.mark.parametrize("bad", ["0", "-2", "many", "1.5", "1_0", "\u0663", "9" * 5000, "", ",2"])
def test_openmp_ignores_nonsense(bad):
    assert _threads.default({"OMP_NUM_THREADS": bad}) == _threads.default({})


@pytest.mark.parametrize("bad", ["0", "-2", "1.5", "1_0", "1025"])
def test_bad_threads_from_the_environment(bad):
    with pytest.raises(ImportError, match=f"FASTRMS_NUM_THREADS must be 1 to 1024, got '{bad}'"):
        _threads.default({"FASTRMS_NUM_THREADS": bad})


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system sets no affinity")
def test_threads_from_the_affinity(python):
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    assert python(one + COUNT).stdout.startswith("1\n1, from the CPUs of this process")


# The folders of cgroup v2, each with the content of its cpu.max, if any.
GROUPS = {
    "": None,
    "free": "max 100000",
    "free/tight": "150000 100000",
    "half": "50000 100000",
    "half/loose": "400000 100000",
    "odd": "what?",
}


@pytest.mark.parametrize(
    ("line", "quota"),
    [
        ("0::/", math.inf),
        ("0::/free", math.inf),
        ("0::/free/tight", 1.5),
        ("0::/half/loose", 0.5),
        ("0::/half/gone", 0.5),  # a container sees its own group as the root
        ("0::/odd", math.inf),
        ("0::/../sibling", math.inf),
        ("4:cpu:/half", math.inf),  # cgroup v1
        ("", math.inf),
    ],
)
def test_quota_of_a_cgroup(tmp_path, line, quota):
    for group, limit in GROUPS.items():
        (tmp_path / group).mkdir(exist_ok=True)
        if limit:
            (tmp_path / group / "cpu.max").write_text(limit + "\n")
    (tmp_path / "membership").write_text(f"1:name=systemd:/\n{line}\n")
    assert _threads.cgroup_quota(tmp_path, tmp_path / "membership") == quota


def test_no_cgroup(tmp_path):
    assert _threads.cgroup_quota(tmp_path, tmp_path / "none") == math.inf


@pytest.mark.parametrize(
    ("cpus", "quota", "expected"),
    [
        (8, 1.5, (2, "a cgroup's quota of 1.5 CPUs")),
        (8, 0.5, (1, "a cgroup's quota of 0.5 CPUs")),
        (8, 8.0, (8, "the CPUs of this process")),
        (8, math.inf, (8, "the CPUs of this process")),
        (4096, math.inf, (1024, "the CPUs of this process")),
    ],
)
def test_the_lesser_of_cpus_and_quota(monkeypatch, cpus, quota, expected):
    monkeypatch.setattr(_threads, "_cpus", lambda: cpus)
    monkeypatch.setattr(_threads, "cgroup_quota", lambda: quota)
    assert _threads.default({}) == expected
    assert _threads.default({"OMP_NUM_THREADS": "3"}) == (3, "OMP_NUM_THREADS")


# threadpoolctl.


@pytest.mark.parametrize("api", [None, "fastrms"])
def test_threadpoolctl_limits(restore, api):
    fastrms.set_num_threads(3)
    with threadpoolctl.threadpool_limits(2, user_api=api):
        assert fastrms.get_num_threads() == 2
        with threadpoolctl.threadpool_limits({"fastrms": 0}):  # as OpenBLAS takes it
            assert fastrms.get_num_threads() == 1
        assert fastrms.get_num_threads() == 2
    assert fastrms.get_num_threads() == 3


def test_threadpoolctl_knows_the_process_not_the_thread(restore):
    """threadpoolctl restores the number of the process, not the limit of one thread (dask's)."""
    fastrms.set_num_threads(3)
    before = _core.limit_threads(1)
    with threadpoolctl.threadpool_limits(2):
        assert fastrms.get_num_threads() == 1
    _core.limit_threads(before)
    assert fastrms.get_num_threads() == 3


def test_threadpoolctl_info(restore):
    fastrms.set_num_threads(3)
    (found,) = (i for i in threadpoolctl.threadpool_info() if i["user_api"] == "fastrms")
    assert found["internal_api"] == "fastrms"
    assert found["num_threads"] == 3
    assert found["version"] == fastrms.__version__
    assert os.path.samefile(found["filepath"], _core.__file__)


ORDER = """
{imports}
import threadpoolctl
fastrms.set_num_threads(3)
with threadpoolctl.threadpool_limits(1):
    print(fastrms.get_num_threads())
print(fastrms.get_num_threads())
print(len([i for i in threadpoolctl.threadpool_info() if i["user_api"] == "fastrms"]))
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import fastrms; from threadpoolctl import threadpool_limits",
        "from threadpoolctl import threadpool_limits; import fastrms",
        "import fastrms, importlib.util; importlib.util.find_spec('threadpoolctl')",
        "import fastrms, importlib, threadpoolctl; importlib.reload(threadpoolctl)",
    ],
)
def test_threadpoolctl_before_or_after(python, imports):
    result = python(ORDER.format(imports=imports))
    assert result.stdout.split() == ["1", "3", "1"], result.stderr


def test_threadpoolctl_is_not_imported(python):
    """Its import sets an environment variable that hides an error of OpenMP."""
    assert python("import fastrms, sys; print('threadpoolctl' in sys.modules)").stdout == "False\n"
