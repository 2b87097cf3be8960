# SPDX-License-Identifier: Apache-2.0
"""Statistics of images measured and written to a file, which then stands for the images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from metrics import registry, statistics_file
from metrics.collect import Need
from metrics.evaluate import Evaluator, label_counts
from metrics.image_sets import GeneratedImages, ImageSource, RealImages
from metrics.reference import References
from torch_utils import distributed


def write_statistics(
    evaluator: Evaluator,
    path: str,
    image_set: Any = None,
    generator: Any = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write what the evaluator's metrics keep of an image set or of a generator's images.

    All processes must call it; process 0 writes.

    Args:
        evaluator: Its metrics say what is kept. Of an image set it is the part that they compare with.
        path: Of the .npz file.
        image_set: Of any kind with images.
        generator: Instead of an image set.
        details: JSON values that records have of the generator's images.

    Raises:
        ValueError: No metric keeps statistics of images.
    """
    kinds = {
        (m.family.detector, m.family.output, m.family.keep, m.num_real if generator is None else m.num_gen)
        for m in evaluator.metrics
        if not m.family.of_network
    }
    if not kinds:
        raise ValueError("--metrics names no metric of images: there are no statistics to write")
    saved = []
    for detector, output, keep, count in sorted(kinds, key=str):
        if generator is None:
            images = RealImages(image_set, count)
            source: ImageSource = images
            reference = References(image_set, evaluator.collector, None).describe(images)
            size = len(images)
        else:
            assert count is not None
            source, size = evaluator.generated(generator), count
            own = {"num_images": size, "num_real": size, "seed": evaluator.seed, **source.identity()}
            reference = {"dataset": "generated", **own, **(details or {})}
            text = json.dumps(reference, sort_keys=True)
            reference["content_hash"] = hashlib.sha256(text.encode()).hexdigest()
        need = Need(detector, output, keep, size)
        store = evaluator.collector(source, "compared", [need])[need]
        description = evaluator.collector.detector(detector).description
        entry = {"detector": description, "output": output, "keep": keep, "reference": reference}
        saved.append((store, entry))
    if distributed.is_main():
        statistics_file.write(path, saved, _label_counts(source, image_set))


def _label_counts(source: ImageSource, image_set: Any) -> np.ndarray | None:
    """Images of each class; None without classes."""
    if isinstance(source, GeneratedImages):
        drawn = source.labels(range(registry.DEFAULT_NUM_GEN))
        return None if drawn is None else np.bincount(drawn.numpy(), minlength=source.num_classes)
    return label_counts(image_set) if getattr(image_set, "has_labels", False) else None
