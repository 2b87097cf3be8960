# SPDX-License-Identifier: Apache-2.0
"""The frozen part of a superresolution stage: finding and loading stems, and what runs store about them.

A stem entry is a dict {file, sha256, resolution, nimg, metric}. A lineage is a list of entries and more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import dnnlib
from torch_utils import checkpoint, persistence
from training.generator import Generator
from training.networks import files
from training.networks.reader import load_from
from training.run_folder import (
    BEST_NETWORK,
    LINEAGE_FILE,
    NEWEST_NETWORK,
    STATUS_FILE,
    best_network,
    is_recipe_folder,
    kimg_text,
    metric_at,
    newest_checkpoint,
    read_json,
    read_object,
    set_aside,
    stage_folders,
    write_json,
)

MAX_STAGES = 16  # more than any recipe has; further entries of a pickle are ignored


def network_file(flag: str, path_or_url: str) -> str:
    """Return the local path (also for a file:// URL), or the URL.

    Raises:
        ValueError: The file does not exist. The message names the flag.
    """
    path_or_url = dnnlib.util.plain_path(path_or_url)
    if not dnnlib.util.is_url(path_or_url) and not os.path.isfile(path_or_url):
        run_folder = "a run folder to resume, or " if flag == "--resume" else ""
        raise ValueError(
            f"{flag}={path_or_url}: no such file; give {run_folder}the path or URL of a network file"
        )
    return path_or_url


def stem_file(path: str) -> str:
    """Return the network file that --path_stem names.

    That is a file or URL itself; in a run folder its best network, or else its newest.

    Raises:
        ValueError: There is none.
    """
    return network_path("--path_stem", path)


def network_path(flag: str, path: str) -> str:
    """Return the network file that a flag names.

    That is a file or URL itself; in a run folder its best network, or else its newest.

    Raises:
        ValueError: There is none. The message names the flag.
    """
    path = dnnlib.util.plain_path(path)
    return network_in(flag, path) if os.path.isdir(path) else network_file(flag, path)


def network_in(flag: str, folder: str) -> str:
    """Return the best network of a run folder, or else its newest.

    Raises:
        ValueError: There is none. The message names the flag.
    """
    found = best_network(folder)
    if found is None and is_recipe_folder(folder):
        networks = (best_network(stage) for stage in reversed(stage_folders(Path(folder))))
        newest = next((path for path in networks if path is not None), None)
        example = "which have no network yet" if newest is None else f"such as {newest.parent}"
        raise ValueError(
            f"{flag}={folder} is a recipe's folder: give the folder of one of its stages, {example}"
        )
    if found is None:
        raise ValueError(
            f"{flag}={folder}: the folder contains neither {BEST_NETWORK} nor {NEWEST_NETWORK}; give a run "
            "folder or a network file"
        )
    return str(found)


def network_summary(file: str, provenance: Mapping[str, Any] | None) -> str:
    """Describe a network file in a few words: images shown, first metric, and the progress of its run.

    The progress is shown if the file is in a run folder, because its best network may be old.

    Args:
        file: The network file.
        provenance: The provenance in the file.
    """
    value = (provenance or {}).get("nimg")
    nimg = value if isinstance(value, int) else None
    folder = os.path.dirname(file)
    shown = read_json(os.path.join(folder, STATUS_FILE)).get("nimg")
    text = describe({"nimg": nimg, "metric": metric_at(folder, nimg)})
    later = (
        f"; the run has shown {kimg_text(shown / 1000)} kimg"
        if isinstance(shown, int) and nimg is not None and shown > nimg
        else ""
    )
    return f"{file} ({text}{later})"


def describe(entry: Mapping[str, Any]) -> str:
    """Describe the images shown and the metric of a stem entry in a few words."""
    nimg, metric = entry.get("nimg"), entry.get("metric")
    shown = f"{kimg_text(nimg / 1000)} kimg" if isinstance(nimg, int) else "images shown: unknown"
    return shown + (f", {metric['name']} {metric['value']:.4g}" if isinstance(metric, dict) else "")


class Stem(NamedTuple):
    """G_ema of a stem, and the entries of its stages, oldest first, itself last."""

    generator: Generator
    stems: list[dict[str, Any]]


def read_stem(path: str) -> Stem:
    """Load the network that --path_stem names: a pickle, or .safetensors with its JSON file.

    The hash and the weights of a pickle are of the same bytes, even if a run replaces the file meanwhile.

    Raises:
        ValueError, OSError: The file does not exist or cannot be used.
    """
    named = stem_file(path)

    def read_file(local: str) -> Stem:
        if local.endswith(".safetensors"):
            sha256, file = dnnlib.util.sha256_file(local), files.read_safetensors(local)
            generator, provenance = file.only("G_ema").generators["G_ema"], file.provenance
        else:
            with open(local, "rb") as f:
                sha256 = hashlib.file_digest(f, "sha256").hexdigest()
                f.seek(0)
                data = persistence.read_network_pickle(f)
            generator, provenance = load_from(data, local), data.get("provenance")
        return Stem(generator, _entries(provenance, named, sha256, generator.img_resolution))

    return files.read_from(named, read_file)


def _entries(provenance: Any, file: str, sha256: str, resolution: int) -> list[dict[str, Any]]:
    """Return the entries of a pickle's stages from its provenance. Pickles of other projects have none."""
    table = provenance if isinstance(provenance, dict) else {}
    nimg = table.get("nimg") if isinstance(table.get("nimg"), int) else None
    metric = metric_at(os.path.dirname(file), nimg)
    itself = {"file": file, "sha256": sha256, "resolution": resolution, "nimg": nimg, "metric": metric}
    return [*stem_entries(table), itself]


def stem_entries(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries {file, sha256, resolution, nimg, metric} of the stems in a provenance, oldest first.

    The pickle may be untrusted, so values of a wrong type become None and text is truncated.
    """
    lineage = provenance.get("lineage")
    below = lineage.get("stems") if isinstance(lineage, dict) else None
    return [_checked(entry) for entry in below[:MAX_STAGES]] if isinstance(below, list) else []


def _checked(entry: Any) -> dict[str, Any]:
    """Return an entry with the expected keys and types only."""
    given = entry if isinstance(entry, dict) else {}
    kinds = {"file": str, "sha256": str, "resolution": int, "nimg": int}
    plain: dict[str, Any] = {
        key: value if isinstance(value := given.get(key), kind) else None for key, kind in kinds.items()
    }
    plain = {key: value[:4096] if isinstance(value, str) else value for key, value in plain.items()}
    metric = given.get("metric")
    if (
        isinstance(metric, dict)
        and isinstance(metric.get("name"), str)
        and isinstance(metric.get("value"), (int, float))
    ):
        return {**plain, "metric": {"name": metric["name"][:200], "value": metric["value"]}}
    return {**plain, "metric": None}


@dataclass
class Lineage:
    """What a run stores about its stem.

    With `plan` and `options` a run can be resumed without the file of its stem.

    Attributes:
        stems: Entries {file, sha256, resolution, nimg, metric} of the stages of the frozen part, oldest
            first; empty for the run of a stem.
        changes: {nimg, from, to}: after how many images a better stem (sha256) replaced the previous one.
        plan: The arguments of Generator.
        options: The flags that determine `plan`.
    """

    stems: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    plan: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> dict[str, Any] | None:
        """The entry of the stem itself."""
        return self.stems[-1] if self.stems else None

    def provenance(self) -> dict[str, Any]:
        """Return the part that snapshots contain."""
        return {"stems": self.stems, "changes": self.changes}

    @classmethod
    def from_json(cls, tree: Any) -> Lineage:
        """Inverse of `vars`.

        Raises:
            ValueError: `tree` is anything else.
        """
        kinds: dict[str, Any] = {"stems": list, "changes": list, "plan": (dict, type(None)), "options": dict}
        if (
            not isinstance(tree, dict)
            or tree.keys() - kinds.keys()
            or any(not isinstance(value, kinds[key]) for key, value in tree.items())
        ):
            raise ValueError("not the lineage of a run")
        if any(not isinstance(entry, dict) for key in ("stems", "changes") for entry in tree.get(key, ())):
            raise ValueError("not the entries of stems")
        return cls(**tree)

    def write(self, run_dir: str | os.PathLike[str]) -> None:
        """Write lineage.json. A damaged file there is set aside."""
        path = Path(run_dir) / LINEAGE_FILE
        if _is_damaged(path):
            set_aside(path, "not the lineage of a run")
        write_json(path, vars(self))


def _is_damaged(path: Path) -> bool:
    try:
        Lineage.from_json(read_object(path))
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def read(run_dir: str | os.PathLike[str]) -> Lineage | None:
    """Read the lineage of a run folder, or return None. If the file is damaged, use the newest checkpoint.

    Raises:
        ValueError, OSError: The file is damaged, and the checkpoints are lost or unreadable.
    """
    try:
        return Lineage.from_json(read_object(Path(run_dir) / LINEAGE_FILE))
    except FileNotFoundError:
        return None
    except ValueError:
        return of_checkpoint(run_dir)


def of_checkpoint(run_dir: str | os.PathLike[str]) -> Lineage | None:
    """Return the lineage in the newest checkpoint of a run folder. Raises as `newest_checkpoint`."""
    path = newest_checkpoint(run_dir)
    saved = checkpoint.load(path).get("lineage") if path is not None else None
    return None if saved is None else Lineage.from_json(saved)


def restore_file(lineage: Lineage, run_dir: str | os.PathLike[str]) -> None:
    """Write lineage.json from the lineage of a checkpoint if the file is missing or damaged."""
    path = Path(run_dir) / LINEAGE_FILE
    if not path.exists() or _is_damaged(path):
        lineage.write(run_dir)


def resumed_lineage(run_dir: str | Path | None) -> Lineage | None:
    """Return the lineage of a run folder that has a checkpoint to resume from, else None."""
    return read(run_dir) if run_dir is not None and newest_checkpoint(run_dir) is not None else None
