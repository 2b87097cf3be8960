# SPDX-License-Identifier: Apache-2.0
"""Training of StyleSAN-XL: configuration, networks, losses, the training loop and its output."""
