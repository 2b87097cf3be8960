# SPDX-License-Identifier: Apache-2.0
"""Metrics: images -> features (detectors) -> statistics -> numbers (pure functions) -> records.

Nothing here depends on how a network is trained. `metrics.evaluate` is the entry point.
"""
