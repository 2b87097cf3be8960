# SPDX-License-Identifier: Apache-2.0
"""What happens around the training steps: start, restore, stop, ticks, checkpoints, restarts."""
