# SPDX-License-Identifier: Apache-2.0
"""The import rules of docs/architecture.md, read from the sources."""

import subprocess
import sys

import pytest

from tests.sources import ROOT, imported_modules

OURS = {"dnnlib", "image_data", "torch_utils", "san", "training", "metrics", "generation"}
SCRIPTS = {p.stem for p in ROOT.glob("*.py")}

ALLOWED = {
    "dnnlib": {"dnnlib"},
    "image_data": {"image_data", "dnnlib"},
    "torch_utils": {"torch_utils", "dnnlib"},
    "san": {"san"},
    "training": {"training", "san", "torch_utils", "image_data", "dnnlib"},
    "metrics": {"metrics", "torch_utils", "image_data", "dnnlib"},
    "generation": {"generation", "training", "metrics", "torch_utils", "image_data", "dnnlib"},
}

# Inside training a file or folder imports only from those listed before it (docs/architecture.md).
TRAINING_ORDER = [
    *(
        "options",
        "config",
        "generator",
        "discriminator",
        "losses",
        "schedules",
        "bundle",
        "guard",
        "graphs",
        "data",
        "energy",
        "inputs",
        "run_folder",
        "networks",
    ),
    *("state", "compiled", "nonfinite", "steps", "build", "watch", "run", "loop", "launch", "progressive"),
]
NO_TORCH = ("dnnlib", "image_data")


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_packages_import_only_what_is_below_them(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        used = {name.split(".")[0] for name in imported_modules(path)} & (OURS | SCRIPTS)
        assert used <= ALLOWED[package], f"{path.relative_to(ROOT)} imports {sorted(used - ALLOWED[package])}"


@pytest.mark.parametrize("package", NO_TORCH)
def test_packages_below_torch_do_not_import_it(package):
    for path in (ROOT / package).rglob("*.py"):
        assert "torch" not in {name.split(".")[0] for name in imported_modules(path)}, path.relative_to(ROOT)


def test_no_modules_import_each_other_in_a_circle():
    files = {p for package in OURS for p in (ROOT / package).rglob("*.py")}
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}
    graph = {}
    for name, path in names.items():
        used = imported_modules(path) | {used.rpartition(".")[0] for used in imported_modules(path)}
        graph[name] = {module for module in used if module in names and module != name}
    for (
        name,
        used,
    ) in graph.items():  # a package's file imports from the files in it, which may name the package itself
        graph[name] = {module for module in used if not name.startswith(f"{module}.")}
    while leaves := [name for name, used in graph.items() if not used & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph


def test_only_two_files_import_torch_distributed():
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            if any(name.startswith("torch.distributed") for name in imported_modules(path)):
                assert path.parent == ROOT / "torch_utils" and path.stem in ("distributed", "launcher"), path


def test_training_files_import_only_earlier_ones():
    for path in (ROOT / "training").rglob("*.py"):
        relative = path.relative_to(ROOT / "training")
        module = relative.parts[0].removesuffix(".py")
        if module == "__init__":
            continue
        assert module in TRAINING_ORDER, f"{relative} is not in the order of docs/architecture.md"
        for name in imported_modules(path):
            parts = name.split(".")
            if parts[0] != "training" or len(parts) < 2 or parts[1] == module:
                continue
            assert TRAINING_ORDER.index(parts[1]) < TRAINING_ORDER.index(module), f"{relative} imports {name}"


def test_scripts_that_use_a_network_load_neither_timm_nor_what_trains():
    """Also with the modules that they import on demand."""
    scripts = ["gen_images", "gen_video", "gen_class_samplesheet", "convert"]
    used = set().union(*(imported_modules(ROOT / f"{script}.py") for script in scripts))
    modules = {name for name in used if (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()}
    assert {"generation.pictures", "generation.video", "training.networks.files"} <= modules
    look = f"import sys, {', '.join([*scripts, *sorted(modules)])}; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "training.generator" in found
    assert not [m for m in found if m.partition(".")[0] == "timm"]
    training_only = {"training.networks.finetune", "training.build", "training.steps", "training.loop"}
    assert not training_only & set(found)


def test_san_stands_alone():
    for path in (ROOT / "san").rglob("*.py"):
        outside = {name.split(".")[0] for name in imported_modules(path)} - {"san"}
        assert "timm" not in outside
        assert "numpy" not in outside


def test_every_source_file_carries_its_licence():
    tracked = [
        p for p in ROOT.rglob("*.py") if not {".venv", "build", "demo"} & set(p.relative_to(ROOT).parts)
    ]
    for path in tracked:
        assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0"), path
