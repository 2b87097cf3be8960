# SPDX-License-Identifier: Apache-2.0
"""Image operations of StyleGAN-family networks, one per file, with the published names and signatures."""
