# SPDX-License-Identifier: Apache-2.0
"""Packs what a run wrote, without its weights, into one zip file to publish beside a model."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from dnnlib.util import atomic_write, sha256_file
from training import run_folder

MANIFEST = "manifest.json"
_FILES = (
    run_folder.REPORT_FILE,
    run_folder.OPTIONS_FILE,
    run_folder.LOG_FILE,
    run_folder.STATS_FILE,
    run_folder.ALARMS_FILE,
    run_folder.ABOUT_FILE,
    run_folder.STATUS_FILE,
    run_folder.LINEAGE_FILE,
    run_folder.INIT_FROM_FILE,
    run_folder.FINAL_FILE,
    run_folder.RECIPE_FILE,
    run_folder.CURVES_FILE,
    run_folder.CONTACT_SHEET_FILE,
    run_folder.REALS_FILE,
    run_folder.FAKES_INIT_FILE,
)
_DATE = (1980, 1, 1, 0, 0, 0)  # so that equal content gives equal files


def contents(folder: Path) -> Iterator[Path]:
    """Yield the files of a run folder that a bundle has; links are left out."""
    metrics = run_folder.metric_files(folder)
    newest = run_folder.fakes_files(folder)[-1:]
    for path in (*(folder / name for name in _FILES), *metrics, *newest):
        if path.is_file() and not path.is_symlink():
            yield path


def write(folder: Path) -> Path:
    """Write `NAME-report.zip` beside a run folder or a recipe's folder NAME.

    `manifest.json` in it has size and SHA-256 of the networks that are left out: the best ones and the
    newest.

    Raises:
        OSError: a file cannot be read or written. No incomplete file is left.
    """
    folder = folder.resolve()
    folders = [folder, *run_folder.stage_folders(folder)]
    networks = {}
    for part in folders:
        for path in (*sorted(part.glob("best*.pkl")), part / run_folder.NEWEST_NETWORK):
            if path.is_file():
                name = path.relative_to(folder).as_posix()
                networks[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    target = folder.with_name(f"{folder.name}-report.zip")
    with atomic_write(target) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in folders:
            for path in contents(part):
                _add(archive, f"{folder.name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        manifest = json.dumps({"networks": networks}, indent=2).encode()
        _add(archive, f"{folder.name}/{MANIFEST}", manifest)
    return target


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)
