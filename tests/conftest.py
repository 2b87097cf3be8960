# SPDX-License-Identifier: Apache-2.0
"""Shared test set-up: the repository root on sys.path, one thread per test process (TEST_THREADS, see tools/rounding.py)."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))
