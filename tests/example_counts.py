# SPDX-License-Identifier: Apache-2.0
"""How many random examples a hypothesis test tries.

`make test` tries a part of them, different ones each time (the profile of tests/conftest.py). `make test-all`
tries all of them (--hypothesis-profile=default).
"""

from hypothesis import settings


def examples(number: int) -> int:
    """`number` in `make test-all`, 40 per cent of it otherwise."""
    return max(1, number * settings.default.max_examples // 100)
