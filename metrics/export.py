# SPDX-License-Identifier: Apache-2.0
"""Statistics of images measured and written to a file, which then stands for the images."""

from __future__ import annotations

from typing import Any

from metrics import statistics_file
from metrics.collect import Need
from metrics.evaluate import Evaluator, label_counts
from metrics.image_sets import ImageSource, RealImages
from metrics.reference import References
from torch_utils import distributed


def write_statistics(evaluator: Evaluator, path: str, image_set: Any = None, generator: Any = None) -> None:
    """Write what the evaluator's metrics keep of an image set or of a generator's images.

    All processes must call it; process 0 writes.

    Args:
        evaluator: Its metrics say what is kept. Of an image set it is the part that they compare with.
        path: Of the .npz file.
        image_set: Of any kind with images.
        generator: Instead of an image set.

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
            reference = {"dataset": "generated", "num_images": size, "num_real": size, "seed": evaluator.seed}
        need = Need(detector, output, keep, size)
        store = evaluator.collector(source, "compared", [need])[need]
        description = evaluator.collector.detector(detector).description
        entry = {"detector": description, "output": output, "keep": keep, "reference": reference}
        saved.append((store, entry))
    if distributed.is_main():
        has_labels = image_set is not None and getattr(image_set, "has_labels", False)
        statistics_file.write(path, saved, label_counts(image_set) if has_labels else None)
