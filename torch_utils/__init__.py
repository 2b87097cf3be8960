# SPDX-License-Identifier: Apache-2.0
"""Torch utilities that do not depend on the GAN code."""
