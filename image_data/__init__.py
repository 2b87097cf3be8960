# SPDX-License-Identifier: Apache-2.0
"""Read image files, and write data sets. Without torch."""
