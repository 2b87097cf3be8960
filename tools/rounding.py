# SPDX-License-Identifier: Apache-2.0
"""Runs the parity and ops tests with the rounding of other processors.

    python -m tools.rounding             # in all environments below (make test-rounding)
    python -m tools.rounding --short     # in the two most different ones, without tests marked `once`
                                         # (part of make test)
    python -m tools.rounding --only sse -- -k gradients -x

The rounding of a sum depends on the vector instructions and threads of torch (ATEN_CPU_CAPABILITY), of
oneDNN's convolutions (ONEDNN_MAX_CPU_ISA), of MKL's matrix products (MKL_CBWR) and of the kernels of
torch_utils/ops (STYLESAN_XL_CPU_KERNELS). If rounding moves a value to the other side of a kink, gradients
differ by more than rounding. The tests must pass anyway (tests/parity/gradients.py).
"""

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("tests/parity", "tests/torch_utils/ops")
# These build libraries and count accesses; no result depends on rounding.
_LEFT_OUT = (
    "tests/torch_utils/ops/test_kernel_checker.py",
    "tests/torch_utils/ops/backend/test_extension.py",
)
_X86 = platform.machine().lower() in ("x86_64", "amd64")

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "native": {},
    "threads": {"TEST_THREADS": "2"},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "STYLESAN_XL_CPU_KERNELS": "x86-64-v3",
    },
    "scalar": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "sse": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "reference": {"ATEN_CPU_CAPABILITY": "avx2", "STYLESAN_XL_CPU_KERNELS": "off"},
    "no-compiler": {
        "PATH": str(Path(sys.executable).parent),
        "CXX": "",
        "STYLESAN_XL_OPS": "",
    },  # with an empty cache folder
}
# Measured relative differences of generator gradients: 6e-7 and 4e-7 from the processor's own results, 5e-7
# from each other.
SHORT = ("sse", "reference")


class Outcome(NamedTuple):
    """Exit status, output and seconds of pytest in one environment."""

    status: int
    output: str
    seconds: float


def environment(name: str, cache: str) -> dict[str, str]:
    """Return the environment variables of one environment.

    Args:
        name: key of ENVIRONMENTS.
        cache: an empty folder, for the environment without compiled kernels.
    """
    variables = {
        key: value for key, value in ENVIRONMENTS[name].items() if _X86 or not value.startswith("x86-64")
    }
    if name == "no-compiler":
        variables["DNNLIB_CACHE_DIR"] = cache
    switches = {key for each in ENVIRONMENTS.values() for key in each} - {"PATH", "CXX"}
    return (
        {key: value for key, value in os.environ.items() if key not in switches}
        | {"OMP_NUM_THREADS": "1"}
        | variables
    )


def run(name: str, short: bool, arguments: tuple[str, ...]) -> Outcome:
    """Run pytest in one environment."""
    marks = "not slow and not once and not exhaustive" if short else "not slow"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", marks]
    command += [*(f"--ignore={path}" for path in _LEFT_OUT), *arguments, *TESTS]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(name, cache),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    return Outcome(done.returncode, done.stdout, time.monotonic() - start)


@click.command(context_settings={"show_default": True})
@click.option("--short", is_flag=True, help=f"Only {' and '.join(SHORT)}, without tests marked `once`.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(ENVIRONMENTS)),
    help="Environment; can be repeated.  [default: all]",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=min(os.cpu_count() or 1, len(SHORT)),
    help="Number of environments to run at the same time.",
)
@click.argument("arguments", nargs=-1)
def main(short: bool, only: tuple[str, ...], jobs: int, arguments: tuple[str, ...]) -> None:
    """Run the parity and ops tests with other rounding. ARGUMENTS (after --) are passed to pytest."""
    names = only or (SHORT if short else tuple(ENVIRONMENTS))
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        running = {name: pool.submit(run, name, short, arguments) for name in names}
        for name, future in running.items():
            status, output, seconds = future.result()
            if status != 0:
                failed.append(name)
                click.echo(output)
            said = re.search(r"\d+ (passed|failed|skipped)[^=\n]*?(?= in )", output)
            variables = " ".join(f"{key}={value}" for key, value in ENVIRONMENTS[name].items())
            click.echo(
                f"rounding {name:12s}{said.group() if said else f'exit status {status}'}, {seconds:.0f} s  "
                f"{variables}"
            )
    if failed:
        raise click.ClickException(
            f"tests fail under other rounding: {', '.join(failed)} (python -m tools.rounding --only "
            f"{failed[0]})"
        )


if __name__ == "__main__":
    main()
