# SPDX-License-Identifier: Apache-2.0
"""Network files: reading, writing, converting, publishing, and starting from them."""
