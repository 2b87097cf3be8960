# SPDX-License-Identifier: Apache-2.0
"""Where the frozen part of a superresolution stage comes from: finding and reading stems, and what runs and
snapshots remember of them.
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
    kimg_text,
    metric_at,
    newest_checkpoint,
    read_json,
    read_object,
    set_aside,
    write_json,
)

MAX_STAGES = 16  # more than any schedule has: what a foreign pickle says of its stages is cut here


def network_file(flag: str, path_or_url: str) -> str:
    """The path (also of a file:// address) or URL. Raises ValueError, naming the flag, for a file that is not
    there.
    """
    path_or_url = dnnlib.util.plain_path(path_or_url)
    if not dnnlib.util.is_url(path_or_url) and not os.path.isfile(path_or_url):
        run_folder = "a run folder to go on, or " if flag == "--resume" else ""
        raise ValueError(
            f"{flag}={path_or_url}: no such file; give {run_folder}a network pickle's path or URL"
        )
    return path_or_url


def stem_file(path: str) -> str:
    """The pickle that --path_stem means: a file or URL as it is; in a run folder its best, else its latest,
    network.

    Raises:
        ValueError: there is none.
    """
    return network_path("--path_stem", path)


def network_path(flag: str, path: str) -> str:
    """The network that a flag names: a file or URL as it is; in a run folder its best, else its latest,
    network.

    Raises:
        ValueError: there is none, naming the flag.
    """
    path = dnnlib.util.plain_path(path)
    return network_in(flag, path) if os.path.isdir(path) else network_file(flag, path)


def network_in(flag: str, folder: str) -> str:
    """A run folder's best, else its latest, network. Raises ValueError, naming the flag, if it has none."""
    found = best_network(folder)
    if found is None:
        raise ValueError(
            f"{flag}={folder}: the folder holds neither {BEST_NETWORK} nor {NEWEST_NETWORK}; name a run "
            "folder or a network pickle"
        )
    return str(found)


def network_summary(file: str, provenance: Mapping[str, Any] | None) -> str:
    """A network file in a few words: images shown, first metric, and how far its run has got, if it is in a
    run folder.

    provenance: of the file. A folder's best network may be from long ago.
    """
    said = (provenance or {}).get("nimg")
    nimg = said if isinstance(said, int) else None
    folder = os.path.dirname(file)
    shown = read_json(os.path.join(folder, STATUS_FILE)).get("nimg")
    text = describe({"nimg": nimg, "metric": metric_at(folder, nimg)})
    later = (
        f"; the run has shown {kimg_text(shown / 1000)} kimg"
        if isinstance(shown, int) and nimg is not None and shown > nimg
        else ""
    )
    return f"{file} ({text}{later})"


def describe(record: Mapping[str, Any]) -> str:
    """A record's images shown and metric in a few words."""
    nimg, metric = record.get("nimg"), record.get("metric")
    shown = (
        f"{kimg_text(nimg / 1000)} kimg" if isinstance(nimg, int) else "it does not say after how many images"
    )
    return shown + (f", {metric['name']} {metric['value']:.4g}" if isinstance(metric, dict) else "")


class Stem(NamedTuple):
    """A stem's G_ema and the records of the stages that it consists of, oldest first, itself last."""

    generator: Generator
    stems: list[dict[str, Any]]


def read_stem(path: str) -> Stem:
    """The network that --path_stem means: a pickle, or .safetensors with its JSON file.

    Of a pickle hash and weights are of the same bytes, even if a run replaces the file meanwhile.

    Raises:
        ValueError, OSError: it is not there or cannot be used.
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
        return Stem(generator, _records(provenance, named, sha256, generator.img_resolution))

    return files.read_from(named, read_file)


def _records(provenance: Any, file: str, sha256: str, resolution: int) -> list[dict[str, Any]]:
    """Records of a pickle's stages from its provenance; other projects' pickles have none."""
    said = provenance if isinstance(provenance, dict) else {}
    nimg = said.get("nimg") if isinstance(said.get("nimg"), int) else None
    metric = metric_at(os.path.dirname(file), nimg)
    itself = {"file": file, "sha256": sha256, "resolution": resolution, "nimg": nimg, "metric": metric}
    return [*stem_entries(said), itself]


def stem_entries(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Records {file, sha256, resolution, nimg, metric} of the stems in a pickle's provenance, oldest first.

    They are checked, because the pickle may be a stranger's: values of another kind become None, text is cut.
    """
    lineage = provenance.get("lineage")
    below = lineage.get("stems") if isinstance(lineage, dict) else None
    return [_checked(record) for record in below[:MAX_STAGES]] if isinstance(below, list) else []


def _checked(record: Any) -> dict[str, Any]:
    """A record of a foreign pickle with nothing in it but what a record holds."""
    given = record if isinstance(record, dict) else {}
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
    """What a run remembers of its stem.

    stems: records {file, sha256, resolution, nimg, metric} of the stages that the frozen part consists of,
    oldest first; none for a stem's own run. changes: {nimg, from, to}: at which image count a better stem
    (sha256) replaced the one before. plan: the arguments of Generator; options: the flags that made it. With
    them a run goes on without its stem's file.
    """

    stems: list[dict[str, Any]] = field(default_factory=list)
    changes: list[dict[str, Any]] = field(default_factory=list)
    plan: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def stem(self) -> dict[str, Any] | None:
        """The record of the stem itself."""
        return self.stems[-1] if self.stems else None

    def provenance(self) -> dict[str, Any]:
        """What a snapshot says."""
        return {"stems": self.stems, "changes": self.changes}

    @classmethod
    def from_json(cls, tree: Any) -> Lineage:
        """Inverse of `vars`. Raises ValueError for anything else."""
        kinds: dict[str, Any] = {"stems": list, "changes": list, "plan": (dict, type(None)), "options": dict}
        if (
            not isinstance(tree, dict)
            or tree.keys() - kinds.keys()
            or any(not isinstance(value, kinds[key]) for key, value in tree.items())
        ):
            raise ValueError("no lineage of a run")
        if any(not isinstance(record, dict) for key in ("stems", "changes") for record in tree.get(key, ())):
            raise ValueError("no records of stems")
        return cls(**tree)

    def write(self, run_dir: str | os.PathLike[str]) -> None:
        """Keep it as lineage.json. What is damaged there is set aside."""
        path = Path(run_dir) / LINEAGE_FILE
        if _is_damaged(path):
            set_aside(path, "no lineage of a run")
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
    """The lineage of a run folder, or None. Where its file is damaged, that of its newest checkpoint.

    Raises:
        ValueError, OSError: the file is damaged, and the checkpoints are lost or cannot be read.
    """
    try:
        return Lineage.from_json(read_object(Path(run_dir) / LINEAGE_FILE))
    except FileNotFoundError:
        return None
    except ValueError:
        return of_checkpoint(run_dir)


def of_checkpoint(run_dir: str | os.PathLike[str]) -> Lineage | None:
    """The lineage that the newest checkpoint of a run folder remembers. Raises as `newest_checkpoint`."""
    path = newest_checkpoint(run_dir)
    saved = checkpoint.load(path).get("lineage") if path is not None else None
    return None if saved is None else Lineage.from_json(saved)


def restore_file(lineage: Lineage, run_dir: str | os.PathLike[str]) -> None:
    """Write the lineage of a checkpoint if its file is missing or damaged."""
    path = Path(run_dir) / LINEAGE_FILE
    if not path.exists() or _is_damaged(path):
        lineage.write(run_dir)


def resumed_lineage(run_dir: str | Path | None) -> Lineage | None:
    """The lineage of a run folder that has a checkpoint to go on from."""
    return read(run_dir) if run_dir is not None and newest_checkpoint(run_dir) is not None else None
