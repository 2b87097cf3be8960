# SPDX-License-Identifier: Apache-2.0
"""--batch-gpu=auto by trial on a device whose memory is limited. Skips itself without a device."""

import gc

import pytest
import torch

from tests.toy_data import make_zip
from tests.toy_runs import config
from training import build
from training.run import auto_batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_what_fits_is_found_and_all_memory_given_back(tmp_path):
    data = make_zip(tmp_path, "three16", classes=3, count=24)
    weights = {"tf_efficientnet_lite0": "random"}
    cfg = config(
        data,
        run__batch=1024,
        run__batch_gpu="auto",
        run__device="cuda",
        discriminator__feature_size=224,
        discriminator__backbones=list(weights),
        discriminator__backbone_weights=weights,
    )
    dataset, device = build.make_dataset(cfg.data, cfg.run.seed), torch.device("cuda", 0)
    gc.collect()
    torch.cuda.empty_cache()
    before, total = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(device).total_memory
    allowed = (
        max(int(total * auto_batch.MARGIN), auto_batch.MIN_MARGIN_BYTES) + 4 * 2**30
    )  # the margin, and 4 GiB for training
    torch.cuda.set_per_process_memory_fraction(min(allowed / total, 1.0), device)
    try:
        choice = auto_batch.choose(cfg, dataset, device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert 8 <= choice.batch_gpu < 1024 and f"{2 * choice.batch_gpu} ran out of memory" in choice.why
    assert torch.cuda.memory_allocated() - before < 2**26
