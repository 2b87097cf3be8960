# SPDX-License-Identifier: Apache-2.0
"""Building and finding the kernels: names, locks, interrupted builds, mistakes; and a whole CUDA build where
there is an nvcc.
"""

import multiprocessing
import os
import signal
import sys
import threading
import types
import warnings
from pathlib import Path

import click.testing
import pytest
import torch

from dnnlib import trust
from dnnlib.util import make_cache_dir_path
from tests import waiting
from torch_utils import custom_ops
from torch_utils.ops import __main__ as command
from torch_utils.ops.backend import cpu_extension, extension

ROOT = Path(__file__).resolve().parents[4]
needs_rights = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such rights here")


def test_libraries_are_chosen_by_what_they_were_built_for() -> None:
    name = Path(extension.library_name(["sm_80", "sm_90", "compute_80"]))
    for architectures, runs in (
        (["sm_80"], True),
        (["sm_86"], True),
        (["sm_90"], True),
        (["sm_100"], True),
        (["sm_75"], False),
        (["sm_80", "sm_75"], False),
    ):
        assert extension.runs_on(name, architectures) is runs, architectures
    assert not extension.runs_on(Path(extension.library_name(["sm_90"])), ["sm_100"])


def test_find_looks_into_the_shared_folder_first(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv(extension.FOLDER_VARIABLE, str(tmp_path / "shared"))
    assert extension.find(["sm_90"]) is None
    for folder in (tmp_path / "cache" / "ops", tmp_path / "shared"):
        folder.mkdir(parents=True)
        (folder / extension.library_name(["sm_90"])).touch()
        (folder / "ops-0123456789abcdef-sm_90.so").touch()  # of other sources
    assert extension.find(["sm_90"]) == tmp_path / "shared" / extension.library_name(["sm_90"])
    assert extension.find(["sm_80"]) is None


def fake_compile(target: Path, *rest: object) -> None:
    with open(target.parent / "log", "a") as log:
        log.write("built\n")
    expected = len(list(target.parent.glob("expected-*")))
    while len(list(target.parent.glob("arrived-*"))) < expected:
        threading.Event().wait(0.01)
    target.write_text("library")


def _build(folder: Path) -> None:
    extension._compile = fake_compile  # type: ignore[assignment]
    (folder / f"arrived-{os.getpid()}").touch()
    extension.build(folder, host=True)


def _hang_in_build(folder: Path) -> None:
    def hang(target: Path, *rest: object) -> None:
        (target.parent / "started").touch()
        threading.Event().wait()

    extension._compile = hang  # type: ignore[assignment]
    extension.build(folder, host=True)


needs_compiler = pytest.mark.skipif(
    extension.compiler() is None or extension.ninja() is None, reason="needs a C++ compiler and ninja"
)


@needs_compiler
def test_processes_that_start_together_build_once(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_build, args=(tmp_path,)) for _ in range(4)]
    for i in range(len(processes)):
        (tmp_path / f"expected-{i}").touch()
    for process in processes:
        process.start()
    waiting.join(*processes)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"


@needs_compiler
def test_a_killed_build_blocks_nobody(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    killed = context.Process(target=_hang_in_build, args=(tmp_path,))
    killed.start()
    waiting.until((tmp_path / "started").exists, killed)
    os.kill(killed.pid or 0, signal.SIGKILL)
    killed.join()
    after = context.Process(target=_build, args=(tmp_path,))
    after.start()
    waiting.join(after)
    assert after.exitcode == 0


@needs_compiler
def test_a_failing_compiler_is_one_line_and_leaves_nothing(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(
        extension,
        "_ninja_file",
        lambda *_: "rule no\n  command = echo error: no such thing; exit 1\nbuild ops.so: no\n",
    )
    with pytest.raises(extension.BuildError, match="error: no such thing") as error:
        extension.build(tmp_path, host=True)
    assert "\n" not in str(error.value)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.fixture
def open_cache(monkeypatch, tmp_path):
    """A cache folder to which everybody can write, and a private home. Yields (the folder of its kernels, the
    private one).
    """
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(extension.FOLDER_VARIABLE, raising=False)
    (tmp_path / "cache" / "ops").mkdir(parents=True)
    (tmp_path / "cache").chmod(0o777)
    caches = cpu_extension.load, extension.load, extension._warn_untrusted
    for cached in caches:
        cached.cache_clear()
    yield tmp_path / "cache" / "ops", tmp_path / "home" / "dnnlib" / "ops"
    for cached in caches:
        cached.cache_clear()


def build_and_load(monkeypatch) -> list[str]:
    """Load the CPU kernels with a compiler that writes empty files. Returns the files that were loaded."""
    loaded: list[str] = []
    monkeypatch.setattr(cpu_extension, "compiler", lambda: "c++")
    monkeypatch.setattr(cpu_extension, "_call", lambda *arguments: Path(arguments[-1]).write_text("library"))
    monkeypatch.setattr(cpu_extension.ctypes, "CDLL", loaded.append)
    cpu_extension.load()
    return loaded


@needs_rights
def test_a_planted_library_is_not_loaded_but_built_anew(monkeypatch, open_cache) -> None:
    planted, private = (folder / cpu_extension.library_name() for folder in open_cache)
    planted.write_text("planted")
    with pytest.warns(UserWarning) as caught:
        assert build_and_load(monkeypatch) == [str(private)]
    (warning,) = caught
    assert f"others can write to {planted.parent.parent} (mode 0777)" in str(warning.message) and str(
        private.parent
    ) in str(warning.message)
    assert "\n" not in str(warning.message) and planted.read_text() == "planted"
    assert private.parent.stat().st_mode & 0o777 == 0o700


@needs_rights
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o766])
def test_a_library_that_others_can_write_to_is_replaced(monkeypatch, open_cache, mode: int) -> None:
    folder = open_cache[0]
    folder.parent.chmod(0o700)
    planted = folder / cpu_extension.library_name()
    planted.write_text("planted")
    planted.chmod(mode)
    monkeypatch.setattr(trust, "_is_private_group", lambda gid: False)
    with pytest.warns(UserWarning, match=rf"others can write to {planted} \(mode {mode:04o}\)"):
        assert build_and_load(monkeypatch) == [str(planted)]
    assert planted.read_text() == "library" and planted.stat().st_mode & 0o777 == 0o755


@needs_rights
def test_cuda_kernels_follow_the_same_rule(monkeypatch, open_cache) -> None:
    shared = open_cache[0].parent / "shared"
    monkeypatch.setenv(extension.FOLDER_VARIABLE, str(shared))
    shared.mkdir()
    (shared / extension.library_name(["sm_90"])).touch()
    monkeypatch.setattr(extension, "device_architectures", lambda: ["sm_90"])
    monkeypatch.setattr(extension, "problems", list)
    monkeypatch.setattr(extension, "_compile", lambda target, *rest: target.write_text("library"))
    loaded: list[Path] = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    with pytest.warns(UserWarning, match="others can write to") as caught:
        assert extension.load()
    assert loaded == [open_cache[1] / extension.library_name(["sm_90"])] and len(caught) == 1
    assert extension.find(["sm_90"]) == loaded[0]


@needs_rights
def test_without_any_private_folder_the_reference_path_runs(monkeypatch, open_cache, tmp_path) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setattr(extension.code_cache_path.__globals__["tempfile"], "tempdir", str(tmp_path))
    with pytest.warns(
        UserWarning, match=r"CPU kernels are not used \(others can write to .*set DNNLIB_CACHE_DIR"
    ):
        assert build_and_load(monkeypatch) == []
    tmp_path.chmod(0o700)


@needs_rights
def test_new_folders_of_kernels_are_private_whatever_the_umask(tmp_path) -> None:
    code = (
        "import os, pathlib; os.umask(0); from torch_utils.ops.backend import cpu_extension as c; "
        "c.compiler = lambda: 'c++'\n"
        "c._call = lambda *arguments: pathlib.Path(arguments[-1]).write_text('library'); "
        "print(c.build(c.folders()[-1]))"
    )
    environment = os.environ | {"DNNLIB_CACHE_DIR": str(tmp_path / "cache")}
    done = waiting.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    library = Path(done.stdout.strip())
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "cache", library.parent, library)] == [
        0o700,
        0o700,
        0o755,
    ]


@needs_rights
def test_doctor_and_build_say_which_folders_are_not_trusted(monkeypatch, open_cache) -> None:
    monkeypatch.setattr(extension, "problems", list)
    result = click.testing.CliRunner().invoke(command.main, ["doctor"])
    assert (
        f"{open_cache[0]} (not used: others can write to {open_cache[0].parent} (mode 0777))" in result.output
    )
    monkeypatch.setattr(cpu_extension, "compiler", lambda: "c++")
    result = click.testing.CliRunner().invoke(
        command.main, ["build", "--cpu", "--out", str(open_cache[0] / "shared")]
    )
    assert result.exit_code == 1 and "code is not loaded from such a folder" in result.output


def test_problems_are_named_with_their_remedies(monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(extension, "compiler", lambda: None)
    monkeypatch.setattr(extension, "ninja", lambda: None)
    monkeypatch.setattr(extension, "find_toolkit", lambda: extension.Toolkit(Path("/opt/cuda"), (12, 4)))
    found = "\n".join(extension.problems())
    for words in (
        "install g++",
        "pip install ninja",
        "nvcc in /opt/cuda has CUDA version 12.4, but torch has 13.0",
    ):
        assert words in found
    monkeypatch.setattr(extension, "find_toolkit", lambda: None)
    assert "install the CUDA toolkit 13.0" in extension.problems()[-1]
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "CUDA build of torch" in extension.problems()[0]


def test_one_warning_when_nothing_can_be_built(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv(extension.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(extension, "device_architectures", lambda: ["sm_90"])
    monkeypatch.setattr(extension, "problems", lambda: ["nvcc not found"])
    extension.load.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not extension.load() and not extension.load()
    extension.load.cache_clear()
    assert (
        len(caught) == 1 and "nvcc not found" in str(caught[0].message) and "doctor" in str(caught[0].message)
    )


@needs_rights
@pytest.mark.parametrize("value", ["on", "off"])
def test_tensor_cores_are_used_on_request(monkeypatch, open_cache, value: str) -> None:
    open_cache[0].parent.chmod(0o700)
    monkeypatch.setattr(extension, "device_architectures", lambda: ["sm_90"])
    monkeypatch.setattr(extension, "problems", list)
    monkeypatch.setattr(extension, "_compile", lambda target, *rest: target.write_text("library"))
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    asked: list[bool] = []
    namespace = types.SimpleNamespace(use_tensor_cores=asked.append)
    monkeypatch.setattr(torch.ops, "stylesan_xl", namespace)
    monkeypatch.setenv(extension.TENSOR_CORES_VARIABLE, value)
    assert extension.load() and asked == [True] * (value == "on")


def test_a_wrong_choice_of_tensor_cores_is_one_line(monkeypatch) -> None:
    monkeypatch.setenv(extension.TENSOR_CORES_VARIABLE, "yes")
    extension.load.cache_clear()
    with pytest.raises(ValueError, match=r"^STYLESAN_XL_TENSOR_CORES=yes must be 'on' or 'off'$"):
        extension.load()


def test_doctor_speaks_plainly(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(extension, "problems", lambda: ["ninja not found: pip install ninja"])
    result = click.testing.CliRunner().invoke(command.main, ["doctor"])
    assert result.exit_code == 1 and "PROBLEM       ninja not found: pip install ninja" in result.output
    monkeypatch.setattr(extension, "problems", list)
    result = click.testing.CliRunner().invoke(command.main, ["doctor"])
    assert result.exit_code == 0 and "can be built here" in result.output


def test_build_command_names_a_bad_architecture() -> None:
    result = click.testing.CliRunner().invoke(command.main, ["build", "--arch", "hopper"])
    assert result.exit_code == 1 and "architecture 'hopper' must be sm_XY" in result.output


def test_cuda_build_for_ampere_hopper_and_later() -> None:
    """Into the cache folder, so that it takes its minute only when the sources have changed."""
    if extension.problems():
        pytest.skip("no CUDA build here: " + "; ".join(extension.problems()))
    path = extension.build(Path(make_cache_dir_path("ops")), extension.DEFAULT_ARCHITECTURES)
    code = f"import torch; torch.ops.load_library({str(path)!r}); print(torch.ops.stylesan_xl.set_limits)"
    done = waiting.run([sys.executable, "-c", code], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    dump = extension.find_toolkit().root / "bin" / "cuobjdump"  # type: ignore[union-attr]
    if dump.exists():
        listing = waiting.run([dump, "--list-elf", "--list-ptx", path]).stdout
        assert "sm_80.cubin" in listing and "sm_90.cubin" in listing and "sm_80.ptx" in listing


def test_one_pass_of_the_front_end_serves_all_newer_architectures() -> None:
    assert (
        extension._code_flags(["sm_80", "sm_90", "compute_80"])
        == "-gencode arch=compute_80,code=[sm_80,sm_90,compute_80]"
    )
    assert extension._code_flags(["sm_90"]) == "-gencode arch=compute_90,code=[sm_90]"
    assert (
        extension._code_flags(["sm_75", "sm_86", "sm_90"])
        == "-gencode arch=compute_75,code=[sm_75] -gencode arch=compute_86,code=[sm_86,sm_90]"
    )


@needs_rights
def test_a_planted_plugin_is_not_loaded(monkeypatch, open_cache, tmp_path) -> None:
    folders = []
    monkeypatch.setattr(custom_ops, "_plugins", {})
    monkeypatch.setattr(
        custom_ops, "_load", lambda **arguments: folders.append(Path(arguments["build_directory"]))
    )
    (tmp_path / "a.cpp").write_text("int a;")
    custom_ops.get_plugin("a_plugin", ["a.cpp"], source_dir=str(tmp_path))
    (folder,) = folders
    assert folder.parent == open_cache[1].parent / "plugins" and folder.stat().st_mode & 0o777 == 0o700
    (folder / "a_plugin.so").touch()
    (folder / "a_plugin.so").chmod(0o777)
    monkeypatch.setattr(custom_ops, "_plugins", {})
    custom_ops.get_plugin("a_plugin", ["a.cpp"], source_dir=str(tmp_path))
    assert (
        folders[1] != folder
        and folders[1].stat().st_mode & 0o777 == 0o700
        and list(folders[1].iterdir()) == [folders[1] / "owner"]
    )


@needs_compiler
def test_get_plugin_builds_a_users_extension_once(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "torch"))
    built = []
    monkeypatch.setattr(custom_ops, "_load", lambda **arguments: built.append(arguments) or len(built))
    (tmp_path / "a.cpp").write_text("int a;")
    assert custom_ops.get_plugin("a_plugin", ["a.cpp"], source_dir=str(tmp_path)) == 1
    assert custom_ops.get_plugin("a_plugin", ["a.cpp"], source_dir=str(tmp_path)) == 1
    assert len(built) == 1 and built[0]["sources"] == [str(tmp_path / "a.cpp")]
    with pytest.raises(ValueError, match=r"b\.cpp"):
        custom_ops.get_plugin("b_plugin", ["b.cpp"], source_dir=str(tmp_path))
