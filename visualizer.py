# SPDX-License-Identifier: Apache-2.0
"""The desktop viewer of StyleGAN has no counterpart here: viewer.py shows a network in the browser."""

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
)
@click.pass_context
def main(context: click.Context) -> None:
    """Name the script that took the place of the desktop viewer."""
    raise click.ClickException(
        "the viewer runs in a browser and needs no window: python viewer.py --network=FILE"
    )


if __name__ == "__main__":
    main()
