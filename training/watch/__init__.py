# SPDX-License-Identifier: Apache-2.0
"""Monitor a run: class variety, alarms, curves, contact sheet and report."""
