# SPDX-License-Identifier: Apache-2.0
"""Free memory within control groups; running out of it in one line."""

from types import SimpleNamespace

import pytest
import torch

from torch_utils import memory

MIB = 2**20


def system(root, files):
    for name, text in {"proc/meminfo": "MemTotal: 8192 kB\nMemAvailable: 4096 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {
    "proc/self/cgroup": "0::/job/step\n",
    "sys/fs/cgroup/job/memory.max": f"{3 * MIB}\n",
    "sys/fs/cgroup/job/memory.current": f"{2 * MIB}\n",
}
V1 = {
    "proc/self/cgroup": "5:cpuset:/\n4:memory:/not/seen/here\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * MIB}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * MIB // 2}\n",
    "sys/fs/cgroup/memory/memory.stat": "cache 5\ntotal_inactive_file 4096\n",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 4 * MIB),
        # the step itself has no limit, the job above it has one
        (
            {
                **V2,
                "sys/fs/cgroup/job/step/memory.max": "max\n",
                "sys/fs/cgroup/job/step/memory.current": "5\n",
            },
            MIB,
        ),
        (
            {
                **V2,
                "sys/fs/cgroup/job/step/memory.max": f"{9 * MIB}",
                "sys/fs/cgroup/job/memory.stat": "inactive_file 1000\n",
            },
            MIB + 1000,
        ),
        ({**V2, "sys/fs/cgroup/job/step/x": "", "sys/fs/cgroup/job/memory.current": f"{4 * MIB}"}, 0),
        # in a container, whose own group is mounted at the top
        (V1, MIB // 2 + 4096),
    ],
)
def test_free_memory_is_the_least_of_machine_and_groups(tmp_path, files, free):
    assert memory.host_free_bytes(system(tmp_path, files)) == free


def test_a_system_that_says_nothing_has_all_its_memory(tmp_path):
    assert memory.host_free_bytes(tmp_path) > 2**28


def test_the_memory_of_this_machine():
    assert 2**26 < memory.free_bytes(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4398046511104 bytes."
        ),
        MemoryError(),
    ],
)
def test_shortage_is_one_line_with_the_remedy(error):
    line = r"^out of memory on cuda:0: lower --batch \(now 4\) \(.+\)$"
    with (
        pytest.raises(ValueError, match=line) as caught,
        memory.out_of_memory_hint("cuda:0", "lower --batch (now 4)"),
    ):
        raise error
    assert "\n" not in str(caught.value)


def test_the_allocator_of_this_torch_is_recognised():
    with (
        pytest.raises(ValueError, match="out of memory on cpu: less"),
        memory.out_of_memory_hint("cpu", "less"),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), memory.out_of_memory_hint("cpu", "x"):
        raise RuntimeError("shapes do not fit")


def test_freed_memory_is_kept_with_glibc_alone(monkeypatch):
    calls = []
    glibc = SimpleNamespace(mallopt=lambda name, value: calls.append((name, value)) or 1)
    for library, platform, kept in (
        (glibc, "linux", True),
        (SimpleNamespace(), "linux", False),
        (glibc, "darwin", False),
    ):
        monkeypatch.setattr(memory.ctypes, "CDLL", lambda name, library=library: library)
        monkeypatch.setattr(memory.sys, "platform", platform)
        assert memory.keep_freed_memory() is kept
    assert calls == [(-3, 2**30), (-1, 2**30)]


def test_peak_memory_contains_what_was_allocated():
    before = memory.peak_bytes()
    if before is None:
        pytest.skip("needs getrusage")
    block = torch.ones(2**23)  # 32 MiB, touched
    assert memory.peak_bytes() >= max(before, block.nbytes)
