# SPDX-License-Identifier: Apache-2.0
"""The training data: data sets, class names and class embeddings."""
