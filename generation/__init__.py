# SPDX-License-Identifier: Apache-2.0
"""Use trained networks: generate images and videos, and evaluate the networks of a run."""
