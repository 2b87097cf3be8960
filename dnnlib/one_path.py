# SPDX-License-Identifier: Apache-2.0
"""A click option of one path, which refuses what a shell made of a pattern without quotes."""

from typing import Any

import click


class OnePath(click.Option):
    """An option of one path or quoted brace pattern, of which several values are a mistake.

    A shell expands --source=train-{0..9}.tar without quotes to ten options, and click takes the last one: a
    tenth of the data, without a word. So it is with --network=network-{100,200}.pkl. Other values may be
    repeated, and the last one counts.

    Raises:
        click.UsageError: different files of a set in several files are given, such as two .tar, or different
            networks.
    """

    ENDINGS = (".tar", ".tar.gz", ".tgz", ".parquet", ".npz", ".h5", ".hdf5")
    NETWORKS = (".pkl", ".pickle", ".safetensors")  # of which no pattern is one set

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "multiple": True})

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the last value, or None."""
        values = super().process_value(ctx, value) or (None,)
        parts = [x for x in dict.fromkeys(values) if str(x).lower().endswith(self.ENDINGS)]
        if len(parts) > 1:
            raise click.UsageError(
                f"{self.opts[0]} has {len(parts)} files, {parts[0]} to {parts[-1]}, as if the shell had "
                f"expanded a pattern: put it in quotes, {self.opts[0]}='train-{{000..009}}.tar'",
                ctx,
            )
        networks = [x for x in dict.fromkeys(values) if str(x).lower().endswith(self.NETWORKS)]
        if len(networks) > 1:
            raise click.UsageError(
                f"{self.opts[0]} has {len(networks)} files, {networks[0]} to {networks[-1]}, of which only "
                "the last would be used: run the command once for each",
                ctx,
            )
        return values[-1]
