# SPDX-License-Identifier: Apache-2.0
"""Image-set metrics: images -> features (detectors) -> statistics -> numbers (pure functions) -> records
(evaluate).

Nothing here knows how a network is trained; `metrics.evaluate` is the way in.
"""
