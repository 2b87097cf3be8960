# SPDX-License-Identifier: Apache-2.0
"""Networks on the Hugging Face Hub: model.safetensors, config.json and a generated model card.

Needs the extra `hub` (huggingface_hub). Login and cache are those of that package (`hf auth login`, HF_TOKEN,
HF_HOME, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import dnnlib
from training.networks import files, stems
from training.run_folder import BEST_NETWORK, better_direction, metric_files, read_jsonl

SCHEME = "hf://"
_T = TypeVar("_T")
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_REPOSITORY = re.compile(r"hf://(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?/?")


def is_repository(text: str) -> bool:
    """Return whether `text` is hf://OWNER/NAME."""
    return text.startswith(SCHEME)


def parse_repository(text: str) -> tuple[str, str | None]:
    """Split 'hf://owner/name@revision' into ('owner/name', 'revision' or None).

    Raises:
        ValueError: `text` has another form.
    """
    match = _REPOSITORY.fullmatch(text)
    if match is None or ".." in text:
        raise ValueError(f"{text}: a model repository is named hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return match["id"], match["revision"]


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError("hf:// needs the package huggingface_hub: pip install huggingface_hub") from None
    return huggingface_hub


def pull(repository: str, hub: Any = None) -> files.NetworkFile:
    """Load the network file of a model repository. Raises as `read_from`."""
    return read_from(repository, files.read_safetensors, hub)


def read_from(repository: str, read: Callable[[str], _T], hub: Any = None) -> _T:
    """Return the result of `read` for the weights of a model repository.

    A copy that `read` finds damaged is removed from the hub's cache.

    Raises:
        ValueError: One line that names the repository and the copy; also as `fetch`.
    """
    path = fetch(repository, hub)
    try:
        return read(path)
    except dnnlib.util.Damaged as error:
        raise dnnlib.util.discard_copy(repository, error, path, Path(path).with_name(CONFIG)) from None
    except ValueError as error:
        raise ValueError(f"{repository}: {error}") from None


def fetch(repository: str, hub: Any = None) -> str:
    """Download the weights and the JSON file of a model repository through the hub's own cache.

    Args:
        repository: hf://OWNER/NAME.
        hub: Replacement for the package huggingface_hub.

    Returns:
        The local path of the weights; the JSON file is in the same folder.

    Raises:
        ValueError: One line: the package is missing, or the repository cannot be reached.
    """
    repo_id, revision = parse_repository(repository)
    hub = hub or _hub()
    try:
        _, path = (hub.hf_hub_download(repo_id, name, revision=revision) for name in (CONFIG, WEIGHTS))
    except Exception as error:  # the package's own errors, requests' and httpx's, by version
        raise ValueError(
            f"{repository}: cannot be downloaded: {' '.join(str(error).split())[:300]}"
        ) from None
    return str(path)


def push(
    file: files.NetworkFile,
    repository: str,
    *,
    license: str | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    private: bool = False,
    api: Any = None,
) -> str:
    """Upload a network file with its card in one commit.

    Args:
        file: The network file.
        repository: hf://OWNER/NAME.
        license: Identifier of the weights' licence (the hub's names: apache-2.0, cc-by-nc-4.0, ...); None =
            not stated.
        metrics: Metric records.
        private: Create a private repository.
        api: Replacement for huggingface_hub.HfApi().

    Returns:
        The URL of the commit.

    Raises:
        ValueError: One line about what failed.
    """
    repo_id, revision = parse_repository(repository)
    api = api or _hub().HfApi()
    with tempfile.TemporaryDirectory() as folder:
        files.write_safetensors(os.path.join(folder, WEIGHTS), file, os.path.join(folder, CONFIG))
        Path(folder, CARD).write_text(model_card(file, repo_id, license, metrics), encoding="utf-8")
        try:
            api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                repo_type="model",
                revision=revision,
                commit_message=f"Upload {', '.join(file.generators)}",
            )
        except Exception as error:
            raise ValueError(
                f"{repository}: cannot be uploaded: {' '.join(str(error).split())[:300]}"
            ) from None
    return str(getattr(done, "commit_url", done))


def read_metrics(source: str) -> list[dict[str, Any]]:
    """Return the metric records of a network file from the metric-NAME.jsonl files in its folder.

    For each metric this is the last record that names the file. No record names best_model.pkl, which gets
    the best record of each metric. Unreadable lines are skipped.
    """
    path = Path(source)
    found = []
    for records in metric_files(path.parent):
        about = [line for line in read_jsonl(records) if isinstance(line.get("results"), dict)]
        mine = [
            line
            for line in about
            if Path(str(line.get("snapshot_pkl") or line.get("snapshot") or "")).name == path.name
        ]
        if path.name == BEST_NETWORK and not mine and about:
            pick = max if better_direction(about[-1]) == "max" else min
            mine = [pick(about, key=lambda line: next(iter(line["results"].values())))]
        found += mine[-1:]
    return found


def model_card(
    file: files.NetworkFile,
    repo_id: str,
    license: str | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return a model card: Markdown with the hub's metadata, as far as the network file contains it.

    It has data, recipe, lineage, metrics and licence. Of absolute paths only the last part is shown.

    Args:
        file: The network file.
        repo_id: OWNER/NAME.
        license: As for `push`.
        metrics: Metric records, as `read_metrics` returns them.
    """
    G = file.generators.get("G_ema") or next(iter(file.generators.values()))
    provenance = file.provenance or {}
    config, about_data = _table(provenance.get("config")), _table(provenance.get("data"))
    kwargs = file.training_set_kwargs or {}
    name = repo_id.rpartition("/")[2]
    data_name = about_data.get("name") or (Path(str(kwargs["path"])).stem if kwargs.get("path") else None)
    results = _results(metrics)
    ours = ["stylesan-xl"] if provenance.get("project") == "StyleSAN-XL" else []
    body = [f"# {_line(name)}", "", f"A generator of images: {_parts(G)}.", ""]
    body += [
        "## Use",
        "",
        "```",
        f"python gen_images.py --network=hf://{repo_id} --seeds=0-15 --outdir=out",
        "```",
        "",
    ]
    body += _section(
        "Data",
        {"name": data_name, **{k: about_data.get(k) for k in ("images", "hash")}, **_prepared(about_data)},
    )
    classes = provenance.get("class_names")
    if isinstance(classes, list) and len(classes) <= 200:
        body += [f"Classes: {', '.join(_line(item) for item in classes)}.", ""]
    body += _section(
        "Training",
        {"images shown": provenance.get("nimg"), **_flat(config)},
        "The configuration is unknown.",
    )
    body += _section("Lineage", _lineage(G, config, provenance))
    rows = [f"| {_line(metric)} | {value:.4f} |" for metric, value in results]
    table = ["| metric | value |", "|---|---|", *rows] if rows else ["None are recorded."]
    terms = f"{_line(license)}." if license else "not stated by the uploader. Ask before use."
    body += ["## Metrics", "", *table, "", "## Licence", "", f"Weights: {terms}", ""]
    metadata = _metadata(name, data_name, license, ours, results)
    return f"---\n{metadata}\n---\n\n" + "\n".join(body)


def _metadata(
    name: str,
    data_name: Any,
    license: str | None,
    more_tags: Sequence[str],
    results: Sequence[tuple[str, float]],
) -> str:
    """Return the machine-readable part of the card, YAML."""
    hub = _hub()
    task, data = "unconditional-image-generation", str(data_name or "unknown")
    about = {"task_type": task, "dataset_type": data, "dataset_name": data}
    found = [hub.EvalResult(metric_type=key, metric_value=value, **about) for key, value in results]
    card = hub.ModelCardData(
        license=license or "unknown",
        library_name="pytorch",
        pipeline_tag=task,
        tags=["gan", "stylegan3", "stylegan-xl", *more_tags],
        model_name=name,
        eval_results=found or None,
    )
    return str(card.to_yaml())


def _results(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Return the name and value of every number in metric records."""
    tables = [record.get("results") for record in metrics]
    pairs = [pair for table in tables if isinstance(table, Mapping) for pair in table.items()]
    numbers = [(str(key), float(value)) for key, value in pairs if type(value) in (int, float)]
    return [(key, value) for key, value in numbers if math.isfinite(value)]


def _parts(G: Any) -> str:
    """Describe the size of a generator."""
    size = f"{G.img_resolution}x{G.img_resolution} pixels"
    classes = f", {G.c_dim} classes" if G.c_dim else ""
    parameters = sum(parameter.numel() for parameter in G.parameters())
    return f"{size}{classes}, {len(G.synthesis.layer_names)} layers, {parameters:,} parameters"


def _line(value: Any) -> str:
    """Return a value as one line of text without Markdown markup."""
    text = " ".join(str(_shown(value)).split())[:300]
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text)


def _section(title: str, values: Mapping[str, Any], otherwise: str = "Unknown.") -> list[str]:
    known = [
        f"- {_line(key)}: {_line(value)}" for key, value in values.items() if value not in (None, "", [], {})
    ]
    return [f"## {title}", "", *(known or [otherwise]), ""]


def _prepared(about_data: Mapping[str, Any]) -> dict[str, Any]:
    metadata = about_data.get("metadata")
    names = ("transform", "filter", "resolution")
    return {f"prepared: {name}": metadata.get(name) for name in names} if isinstance(metadata, dict) else {}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree of settings to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and len(prefix) < 60
            else {f"{prefix}{key}": value}
        )
    return flat


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _lineage(G: Any, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the origin of the network: its stage, its stems (oldest first), its start, versions."""
    generator, run = _table(config.get("generator")), _table(config.get("run"))
    frozen = G.num_frozen_layers
    below = stems.stem_entries(provenance)
    backbones = provenance.get("backbones")
    return {
        "stage": f"superresolution on a stem of {frozen} kept layers" if frozen else "stem",
        **{f"stem {number}": _stem(record) for number, record in enumerate(below, 1)},
        "stem": None if below else generator.get("path_stem"),
        "started from": run.get("init_from"),
        **(
            {f"feature network {key}": value for key, value in backbones.items()}
            if isinstance(backbones, dict)
            else {}
        ),
        "torch": provenance.get("torch"),
        "written": provenance.get("written"),
    }


def _stem(record: Mapping[str, Any]) -> str:
    """Describe one stem entry (`stems.stem_entries`)."""
    metric, size, nimg = record["metric"], record["resolution"], record["nimg"]
    parts = [
        _shown(record["file"] or ""),
        f"{size}x{size} pixels" if size else "",
        f"{nimg:,} images shown" if nimg else "",
        f"{metric['name']} {metric['value']:.4g}" if metric else "",
        f"sha256 {record['sha256']}" if record["sha256"] else "",
    ]
    return ", ".join(part for part in parts if part)


def _shown(value: Any) -> Any:
    """Shorten an absolute path to its last part, because a card is public and paths may be private."""
    kinds = (PurePosixPath, PureWindowsPath)
    is_path = isinstance(value, str) and any(kind(value).is_absolute() for kind in kinds)
    return PureWindowsPath(value).name if is_path else value
