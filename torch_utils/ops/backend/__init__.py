# SPDX-License-Identifier: Apache-2.0
"""Implementations of the operations: CUDA and CPU kernels, matrix products and their registration."""
