# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the reader of network pickles with malicious and damaged files.

    python -m tools.fuzz_pickles --corpus                # all malicious files of tests/fuzz/hostile.py
    python -m tools.fuzz_pickles --seconds 600           # random damage to network pickles and to those files
    python -m tools.fuzz_pickles --atheris -max_total_time=600   # coverage-guided (pip install atheris)

It prints one line of JSON: the number of inputs; how many were refused, read into inert stubs, or rebuilt as
networks; executions (audit events such as exec, open or import while reading); hangs (more than --limit
seconds of CPU time); errors other than ValueError; the slowest input (in CPU seconds); and the peak memory
above that of an idle process.
"""

import argparse
import faulthandler
import json
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["torch_utils.pickle_reader", "torch_utils.pickle_stubs"]):
        import torch_utils.pickle_reader  # noqa: F401

from tests.fuzz import hostile  # after the reader has been instrumented

attempt: Callable[[bytes], str] = hostile.attempt
corpus: Callable[..., Iterable[tuple[str, bytes]]] = hostile.corpus
good_files: Callable[[], list[bytes]] = hostile.good_files
watch: Callable[[], AbstractContextManager[list[Any]]] = hostile.watch

INTERESTING = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    *b"}]()tsuebRQc0.2\x81\x82\x85\x86\x8a\x8b\x8c\x8d\x8e\x92\x93\x94\x95\x96",
]


def mutate(random_: random.Random, files: list[bytes]) -> bytes:
    """Return a damaged copy of one of the files, or of two of them combined."""
    content = bytearray(random_.choice(files))
    for _ in range(random_.choice([1, 1, 2, 4, 16])):
        kind = random_.randrange(7)
        at = random_.randrange(len(content) + 1)
        length = min(random_.choice([1, 2, 4, 16, 256]), len(content) - at)
        if kind == 0 and at < len(content):
            content[at] = random_.randrange(256)
        elif kind == 1 and at < len(content):
            content[at] = random_.choice(INTERESTING)
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = content[at : at + length] * random_.choice([1, 2, 100])
        elif kind == 4:
            content[at:at] = bytes(random_.choice(INTERESTING) for _ in range(length))
        elif kind == 5:
            other = random_.choice(files)
            start = random_.randrange(len(other))
            content[at : at + length] = other[start : start + length]
        else:
            content = content[: max(at, 1)]
    return bytes(content)


class Hang(Exception):
    """An input took longer than the limit."""


class Counter:
    """Counts of the results so far."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.counts = dict(inputs=0, refused=0, inert=0, rebuilt=0, executions=0, hangs=0, errors=0)
        self.slowest, self.slowest_name = 0.0, ""
        self.idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, self._alarm)

    def _alarm(self, number: int, frame: Any) -> None:
        raise Hang

    def take(self, name: str, content: bytes) -> None:
        """Try one input, and print a problem of the reader to stderr."""
        self.counts["inputs"] += 1
        start = time.process_time()
        problem = None
        signal.setitimer(signal.ITIMER_PROF, self.limit)  # CPU time, independent of the load on the machine
        signal.setitimer(signal.ITIMER_REAL, 100 * self.limit)
        with watch() as events:
            try:
                self.counts[attempt(content)] += 1
            except Hang:
                self.counts["hangs"] += 1
                problem = "hang"
            except Exception as error:
                self.counts["errors"] += 1
                problem = f"{type(error).__name__}: {error}"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
        if events:
            self.counts["executions"] += 1
            problem = f"executed {events[:3]}"
        seconds = time.process_time() - start
        if seconds > self.slowest:
            self.slowest, self.slowest_name = seconds, name
        if problem:
            print(f"{name}: {problem}\n  {content[:200]!r}", file=sys.stderr)

    def report(self) -> dict[str, object]:
        """Return all numbers."""
        unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, KiB on Linux
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.idle) / unit
        return {
            **self.counts,
            "slowest_s": round(self.slowest, 3),
            "slowest": self.slowest_name,
            "peak_mb": round(peak),
        }

    def clean(self) -> bool:
        """Return whether there were no executions, hangs or errors."""
        return not (self.counts["executions"] or self.counts["hangs"] or self.counts["errors"])


def run_atheris(arguments: list[str]) -> None:
    """Run coverage-guided fuzzing from the small files of the corpus until the first finding.

    libFuzzer ends the process itself.
    """
    import atheris

    counter = Counter(20)

    def one(data: bytes) -> None:
        counter.take("atheris", data)
        if not counter.clean():
            raise AssertionError(counter.report())
        if counter.counts["inputs"] % 10_000 == 0:
            print(json.dumps(counter.report()), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for index, content in enumerate(
            [*good_files(), *(content for _, content in corpus() if len(content) < 2000)]
        ):
            attempt(content)
            Path(folder, str(index)).write_bytes(content)
        atheris.Setup([sys.argv[0], "-max_len=40000", *arguments, folder], one)
        atheris.Fuzz()


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", action="store_true", help="read every malicious file once")
    parser.add_argument("--short", action="store_true", help="leave out the slowest files of the corpus")
    parser.add_argument("--seconds", type=float, default=0, help="time of random damage")
    parser.add_argument("--inputs", type=int, default=10**9, help="maximum number of randomly damaged inputs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random damage")
    parser.add_argument("--limit", type=float, default=20, help="CPU seconds after which an input hangs")
    parser.add_argument(
        "--atheris", action="store_true", help="coverage-guided; further arguments are passed to libFuzzer"
    )
    args, rest = parser.parse_known_args()
    faulthandler.enable()
    if args.atheris:
        run_atheris(rest)
        return 0
    files = good_files()
    for content in files:
        attempt(content)  # imports and caches everything that good files need
    counter = Counter(args.limit)
    if args.corpus:
        for name, content in corpus(args.short):
            counter.take(name, content)
    if args.seconds:
        files += [content for _, content in corpus() if len(content) < 2000]
        random_ = random.Random(args.seed)
        end = time.monotonic() + args.seconds
        while time.monotonic() < end and counter.counts["inputs"] < args.inputs:
            counter.take(
                f"damage, seed {args.seed}, input {counter.counts['inputs']}", mutate(random_, files)
            )
    print(json.dumps(counter.report()))
    return 0 if counter.clean() else 1


if __name__ == "__main__":
    sys.exit(main())
