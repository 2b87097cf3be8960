# SPDX-License-Identifier: Apache-2.0
"""One script per performance claim of the documentation."""
