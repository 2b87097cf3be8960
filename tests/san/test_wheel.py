# SPDX-License-Identifier: Apache-2.0
"""What `pip install .` brings: the package san, nothing else at the top level, small, and torch as the only
dependency.
"""

import re
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import waiting

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a source distribution, made of a copy of the sources: the checkout gets no build folder."""
    pytest.importorskip("setuptools", minversion="77")
    import shutil

    source, dest = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("san", "training", "dnnlib"):  # the last two must stay out
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"
    waiting.run([sys.executable, "-c", build.format("sdist"), str(dest)], check=True, cwd=source)
    (archive,) = dest.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(dest, filter="data")
    (unpacked,) = [path for path in dest.iterdir() if path.is_dir()]
    waiting.run([sys.executable, "-c", build.format("wheel"), str(dest)], check=True, cwd=unpacked)
    (path,) = dest.glob("*.whl")
    return path


def test_the_source_distribution_holds_what_the_wheel_needs_and_no_more(wheel):
    (archive,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"pyproject.toml", "LICENSE", "san/README.md", "san/py.typed"} <= names
    assert not [name for name in names if name.startswith(("training", "dnnlib", "tests"))]


def test_wheel_holds_san_alone_and_is_small(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"san"}
    assert {name for name in names if name.startswith("san/")} == {
        f"san/{p.name}" for pattern in ("*.py", "py.typed") for p in (ROOT / "san").glob(pattern)
    }
    assert wheel.stat().st_size < 55_000  # the licence and the README are a sixth of it


def test_wheel_asks_for_torch_alone(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = Parser().parsestr(
        archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    )
    assert "san.convert(Discriminator())" in str(metadata.get_payload()), (
        "the package index shows how to use it"
    )
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(required) == 1 and required[0].startswith("torch")


def test_wheel_imports_without_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys, san; assert san.__file__.startswith(sys.argv[1]), san.__file__; "
        "ours = {'training', 'torch_utils', 'dnnlib', 'metrics'} & set(sys.modules); assert not ours, ours"
    )
    waiting.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
    )


def test_the_ten_lines_of_the_page_run():
    """The example of docs/method.md, as it stands there, on a generator and a discriminator of somebody
    else's.
    """
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "method.md").read_text(), re.DOTALL)
        if "san.convert" in block
    ]
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("import")]) <= 13

    class Discriminator(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    before = G[2].weight.detach().clone()
    names = {
        "Discriminator": Discriminator,
        "G": G,
        "loader": [torch.randn(8, 2)] * 3,
        "g_opt": torch.optim.Adam(G.parameters(), 1e-3),
    }
    exec(code, names)
    weight = names["D"][2].weight.detach()
    assert float(weight.norm()) == pytest.approx(1, abs=1e-6), "the direction is on the unit sphere"
    assert not torch.equal(before, G[2].weight), "the generator has learned"
