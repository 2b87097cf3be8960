# SPDX-License-Identifier: Apache-2.0
"""Initial class embeddings of the generator: the mean pooled feature of the images of each class.

StyleGAN-XL (Sauer et al., SIGGRAPH 2022, section 3.1) takes these means from ImageNet, through
EfficientNet-Lite0 (F = 320), for any data set. Deviation: here they are computed from the training set, so
that any classes, and any number of classes, have their own embeddings.
"""

import hashlib
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dnnlib import bounded, trust
from dnnlib.progress import Progress, format_time
from dnnlib.util import atomic_write, make_cache_dir_path
from torch_utils import rng
from torch_utils.features import FeatureNetwork
from torch_utils.images import to_rgb
from training.data.dataset import ImageDataset, Loader

# part of the cache key: change it whenever the computation changes
_RECIPE = "mean pooled feature of [0, 1] -> normalised -> bilinear to native size; 1"
# images per class; fewer, but at least MIN_PER_CLASS, if there would be more than MAX_IMAGES in total
PER_CLASS = 200
MIN_PER_CLASS, MAX_IMAGES = 100, 50_000
SMALLEST_DIRECTION = 1e-6  # singular values below this share of the largest one are rounding errors


def random_class_embedding(c_dim: int, dim: int, seed: int) -> torch.Tensor:
    """Return a random class embedding, N(0, 1), float32 [c_dim, dim].

    A row depends only on the seed and the class.
    """
    return rng.normal(seed, "class_embedding/random", 0, range(c_dim), (dim,))


def spread_class_embedding(table: torch.Tensor) -> torch.Tensor:
    """Subtract the common mean of the class means [c_dim, F] and scale them to unit root mean square.

    The classes then have different directions. A single class is not changed.

    Deviation: published networks start from the means themselves. Those of similar classes are almost
    parallel (handwritten digits: cosines of 0.84 to 0.93), and the mapping network, which has a hundredth of
    the learning rate, would take long to separate them.
    """
    if len(table) < 2:
        return table
    centred = table - table.mean(dim=0)
    return centred / centred.square().mean().sqrt().clamp(min=1e-12)


def whitened_class_embedding(table: torch.Tensor) -> torch.Tensor:
    """Subtract the common mean of class means [c_dim, F] and give all their singular values the same size.

    Classes are then equally far apart, if there are at most F + 1, and otherwise about so: U V^T of the
    singular value decomposition, scaled to unit root mean square, is the nearest such table (Schoenemann, "A
    generalized solution of the orthogonal Procrustes problem", 1966). Means that agree are one class still. A
    single class is not changed.

    After `spread_class_embedding` similar classes are close to each other, such as shirts and coats in
    Fashion-MNIST, whose distance is 0.3 of the mean. A generator takes long to tell them apart.
    """
    if len(table) < 2:
        return table
    u, sizes, v = torch.linalg.svd(spread_class_embedding(table).double(), full_matrices=False)
    kept = sizes > SMALLEST_DIRECTION * sizes[0]
    return spread_class_embedding((u[:, kept] @ v[kept]).to(table.dtype))


def compute_class_embedding(
    dataset: ImageDataset,
    network: FeatureNetwork,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    max_per_class: int | None = None,
    seed: int = 0,
    workers: int = 2,
    pause: Callable[[], None] | None = None,
) -> torch.Tensor:
    """Compute the mean pooled feature of each class, or read it from the cache.

    The cache is one .npy file in the folder of the data set. Its name contains the data set, the network and
    a hash of all inputs of the computation (images, labels, weights, max_per_class, seed). If that folder is
    read-only, the cache folder ($DNNLIB_CACHE_DIR) is used.

    Args:
        dataset: A data set with labels. A class without images gets the mean of the other classes, with a
            warning.
        network: The feature network. It is moved to `device` and converted to channels_last, for speed.
        batch_size: None = 16 on a CPU, where larger batches were slower, otherwise 64. Affects the result
            only by rounding.
        device: Where to compute; None = where the network is.
        max_per_class: Number of images per class, chosen at random; 0 = all, None = `images_per_class`.
        seed: Seed of the choice.
        workers: Threads that decode images.
        pause: Called before every batch; an exception it raises stops the computation.

    Returns:
        float32 [c_dim, F] on the CPU.

    Raises:
        ValueError: The data set has no labels, or a feature is not finite.
    """
    if dataset.labels is None or dataset.label_dim < 1:
        raise ValueError(
            f"{dataset.path}: class embeddings need labels; prepare the data with one sub-folder per class"
        )
    if max_per_class is None:
        max_per_class = images_per_class(dataset.label_dim)
    if max_per_class < 0 or (batch_size is not None and batch_size < 1):
        raise ValueError(
            f"max_per_class must not be negative and batch_size at least 1, got {max_per_class} and "
            f"{batch_size}"
        )
    paths = _cache_paths(dataset, network, max_per_class, seed)
    for path in paths:
        if (cached := _read(path, dataset.label_dim)) is not None:
            return cached
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch_size = batch_size or (16 if network.mean.device.type == "cpu" else 64)
    chosen = _choose(dataset.labels, max_per_class, seed)
    table = _class_means(dataset, network, chosen, batch_size, workers, pause)
    _write(paths, table.numpy())
    return table


def images_per_class(c_dim: int) -> int:
    """Return the number of images for the mean of a class: 200, or 100 for more than 500 classes.

    Measured on Fashion-MNIST at 32x32 against the means of 950 images per class (benchmarks/class_means.py),
    after `spread_class_embedding`. With n images per class, the error as a fraction of the distance to the
    nearest other class, and the cosine distance, averaged over classes:

        n                  20     50     100    200    500
        error / distance   0.33   0.21   0.14   0.10   0.05
        cosine distance    0.038  0.015  0.007  0.004  0.001

    The table is only the start of training, and 200 images of ten classes take half a minute on one CPU core.
    """
    return max(MIN_PER_CLASS, min(PER_CLASS, MAX_IMAGES // c_dim))


def announce(dataset: ImageDataset, network: FeatureNetwork) -> str | None:
    """Describe the work of `compute_class_embedding`, with its estimated duration, which is measured now.

    Returns:
        One line; None if the table is cached.
    """
    assert dataset.labels is not None
    count = images_per_class(dataset.label_dim)
    if any(path.is_file() for path in _cache_paths(dataset, network, count, 0)):
        return None
    images = len(_choose(dataset.labels, count, 0))
    pixels = torch.zeros([8, *dataset.image_shape], dtype=torch.uint8)
    network = network.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(2):  # the second pass is measured
            started = time.monotonic()
            _features(network, pixels)
    seconds = (time.monotonic() - started) / len(pixels)
    return (
        f"class embeddings from {images:,} images through {network.name}: about "
        f"{format_time(images * seconds)} on {network.mean.device.type} "
        f"({1 / seconds:,.3g} images/s measured), once"
    )


def _choose(labels: np.ndarray, max_per_class: int, seed: int) -> np.ndarray:
    """Return the indices of at most max_per_class images of every class (0: of all images), ascending."""
    if max_per_class == 0:
        return np.arange(len(labels), dtype=np.int64)
    return np.flatnonzero(rng.ranks_within(labels, seed, "class_embedding/choice") < max_per_class)


@torch.inference_mode()
def _class_means(
    dataset: ImageDataset,
    network: FeatureNetwork,
    indices: np.ndarray,
    batch_size: int,
    workers: int,
    pause: Callable[[], None] | None,
) -> torch.Tensor:
    sums: torch.Tensor | None = None  # float64 [c_dim, F]
    counts = torch.zeros(dataset.label_dim, dtype=torch.int64)
    batches = (indices[i : i + batch_size] for i in range(0, len(indices), batch_size))
    print(f"Class embeddings from {len(indices):,} images, once", file=sys.stderr, flush=True)
    progress = Progress(label="Class embeddings", unit="", silent=2)
    with Loader(dataset, batches, workers=workers, cache_mb=0) as loader, progress:
        for images, labels in loader:
            if pause is not None:
                pause()
            assert labels is not None
            features = _features(network, images).cpu().double()  # [B, F]
            if not features.isfinite().all():
                raise ValueError(
                    f"{network.name} returns non-finite features for {dataset.path}; check its weights"
                )
            if sums is None:
                sums = torch.zeros(dataset.label_dim, features.shape[1], dtype=torch.float64)
            sums.index_add_(0, labels, features)
            counts += labels.bincount(minlength=dataset.label_dim)
            progress.advance(len(images), len(indices))
    assert sums is not None
    means = sums / counts.clamp(min=1)[:, None]
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        names = ", ".join(
            str(i) if dataset.class_names is None else f"{i} ({dataset.class_names[i]})" for i in empty[:5]
        )
        warnings.warn(
            f"{dataset.path}: {len(empty)} of {dataset.label_dim} classes have no images "
            f"({names}{', ...' if len(empty) > 5 else ''}); "
            "their embedding is the mean of the other classes",
            stacklevel=3,
        )
        means[empty] = means[counts > 0].mean(dim=0)
    return means.float()


def _features(network: FeatureNetwork, images: torch.Tensor) -> torch.Tensor:
    """Map uint8 [B, C, R, R] to pooled features, float32 [B, F]."""
    x = network.normalize(to_rgb(images.to(network.mean.device)).float() / 255)
    size = network.input_size
    return network.pooled(F.interpolate(x, (size, size), mode="bilinear", align_corners=False))


def _cache_paths(dataset: ImageDataset, network: FeatureNetwork, max_per_class: int, seed: int) -> list[Path]:
    """Return the possible paths of the table: in the folder of the data set, then in the cache folder."""
    assert dataset.labels is not None
    # differs for a subset or flipped copies of the archive
    view = hashlib.sha256(dataset.labels.astype("<i8").tobytes()).hexdigest()
    identity = (
        _RECIPE,
        dataset.content_hash(),
        view,
        dataset.label_dim,
        network.name,
        network.sha256,
        max_per_class,
        seed,
        *([] if dataset.num_channels == 3 else [dataset.num_channels]),
    )
    key = hashlib.sha256("\n".join(map(str, identity)).encode()).hexdigest()[:16]
    data = Path(dataset.path).absolute()
    stem = data.stem if data.is_file() else data.name if data.exists() else dataset.name
    name = f"{stem}-class-embedding-{network.name}-{key}.npy"
    return [dataset.parent_folder / name, Path(make_cache_dir_path("class-embeddings")) / name]


def _read(path: Path, c_dim: int) -> torch.Tensor | None:
    try:
        table = bounded.read_npy(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, EOFError) as e:
        warnings.warn(f"cannot read the cached class embeddings {path} ({e}); recomputing them", stacklevel=3)
        return None
    if table.ndim != 2 or len(table) != c_dim or table.dtype != np.float32 or not np.isfinite(table).all():
        warnings.warn(
            f"the cached class embeddings {path} do not fit the data set; recomputing them", stacklevel=3
        )
        return None
    return torch.from_numpy(table)


def _write(paths: list[Path], table: np.ndarray) -> None:
    """Write the table to the first of `paths` that is writable. Warns if none is."""
    problems = []
    for path in paths:
        try:
            trust.make_private(path.parent)
            with atomic_write(path) as f:
                np.save(f, table)
            return
        except OSError as e:
            problems.append(str(e))
    warnings.warn(
        "cannot cache the class embeddings, so every new run recomputes them: "
        f"{'; '.join(problems)}; set DNNLIB_CACHE_DIR to a writable folder",
        stacklevel=3,
    )
