# SPDX-License-Identifier: Apache-2.0
"""Progressive training: recipes, their stages, and the plan of --dry-run."""
