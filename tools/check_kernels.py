# SPDX-License-Identifier: Apache-2.0
"""Checks and counts the memory accesses of the CUDA kernels at the layers of the recipes, without a GPU.

    python -m tools.check_kernels                               # exit status 1 if an error is found
    python -m tools.check_kernels --cases upfirdn2d --lines     # some cases, with a row per source line
    python -m tools.check_kernels --tensor-cores                # filtered_lrelu on tensor cores

It runs the layers of benchmarks/ops.py with one plane each (forward, forward with codes, and backward) in the
kernels as tests/torch_utils/ops/kernel_checker.py builds them. It prints errors (out of bounds, races, reads
of unwritten memory, misaligned accesses) and the following numbers per kernel: the warp instructions that
access shared memory and the factor by which bank conflicts slow them down (mean and maximum); the same for
reads and writes of global memory, as sectors of 32 bytes relative to the smallest possible number; and the
share of active threads. The last number in a fused kernel's name is its mode: 0 plain, 1 saves codes, 2 gated
by codes.

The device compiler can merge accesses (four taps in one read) or remove repeated ones. The numbers are those
of the source code.
"""

import sys
from collections import defaultdict

import click
import torch

from benchmarks import ops as benchmark
from tests.torch_utils.ops import kernel_checker
from tests.torch_utils.ops.kernel_checker import Usage

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_ONE_PLANE = 1 << 20  # divisor of the channels for which one remains


def run_case(case: benchmark.Case, dtype: torch.dtype) -> None:
    """Run an operation without gradient, and then forward and backward with one."""
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    with torch.no_grad():
        case.call(x, "cuda")
    y = case.call(x, "cuda")
    torch.autograd.grad(y, x, torch.ones_like(y))


def _share(rows: list[Usage]) -> str:
    """Format the number of accesses to one kind of memory, and their mean and maximum slowdown."""
    if not rows:
        return f"{'-':>9s}{'':14s}"
    shared = rows[0].shared
    taken = sum(u.waves if shared else u.sectors for u in rows)
    ideal = sum(u.ideal_waves if shared else u.ideal_sectors for u in rows)
    return f"{sum(u.instructions for u in rows):9d}{taken / ideal:7.2f}{max(u.worst for u in rows):7.1f}"


def print_table(usage: list[Usage], lines: bool) -> None:
    """Print a row per kernel, or per source line of each kernel."""
    groups: dict[tuple[str, str], list[Usage]] = defaultdict(list)
    for u in usage:
        kind = f"{u.place} {'w' if u.write else 'r'}{u.bytes}" if lines else ""
        groups[u.kernel, kind].append(u)
    click.echo(
        f"{'':100s}{'shared':>9s}{'x':>7s}{'worst':>7s}{'reads':>9s}{'x':>7s}{'worst':>7s}{'writes':>9s}{'x':>7s}{'worst':>7s}{'active':>8s}"
    )
    for (kernel, kind), rows in sorted(groups.items()):
        parts = (
            [u for u in rows if u.shared],
            [u for u in rows if not u.shared and not u.write],
            [u for u in rows if not u.shared and u.write],
        )
        active = sum(u.threads for u in rows) / 32 / sum(u.instructions for u in rows)
        click.echo(f"{f'{kernel} {kind}':100s}{''.join(map(_share, parts))}{active:8.2f}")


@click.command(help=__doc__)
@click.option("--cases", default="", help="Run only cases whose name contains this.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="float16", help="Type of the images.")
@click.option("--lines", is_flag=True, help="Print a row per source line of each kernel.")
@click.option("--tensor-cores", is_flag=True, help="Only filtered_lrelu, where it can use tensor cores.")
def main(cases: str, dtype: str, lines: bool, tensor_cores: bool) -> None:
    """Check the chosen cases; the help text is the module's docstring."""
    if kernel_checker.missing():
        raise click.ClickException("not found: " + ", ".join(kernel_checker.missing()))
    found = 0
    size = (1, _ONE_PLANE, "cpu")
    all_cases = benchmark.tensor_core_cases(*size)
    if not tensor_cores:
        all_cases = benchmark.other_cases(*size) + benchmark.layer_cases(*size)
    chosen = list({(case.name, case.shape): case for case in all_cases if cases in case.name}.values())
    if not chosen:
        raise click.ClickException(
            f"--cases={cases}: no such case; known are: " + ", ".join(case.name for case in all_cases)
        )
    with kernel_checker.checked(analyse=True) as checker:
        checker.ops.use_tensor_cores(tensor_cores)
        for case in chosen:
            checker.reset(analyse=True)
            run_case(case, DTYPES[dtype])
            report = checker.report()
            found += len(report.findings)
            click.echo(
                f"\n{case.name}: {report.launches} launches, {report.accesses} accesses, "
                f"{len(report.findings)} findings"
            )
            for finding in report.findings:
                click.echo(f"  {finding}")
            print_table(report.usage, lines)
    click.echo(f"\n{len(chosen)} cases, {found} findings")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
