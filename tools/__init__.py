# SPDX-License-Identifier: Apache-2.0
"""Long checks of the tests themselves: rounding, mutated kernels, memory accesses, fuzzed pickles."""
