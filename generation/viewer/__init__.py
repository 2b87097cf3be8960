# SPDX-License-Identifier: Apache-2.0
"""The viewer: what its controls mean (state), pictures (session), layers, keyframes, and the page.

Only page.py needs gradio; everything else can be used and tested without a browser.
"""
