# SPDX-License-Identifier: Apache-2.0
"""Throw hostile and damaged files at the reader of network pickles and count what happens.

    python -m tools.fuzz_pickles --corpus                # every hostile file of tests/fuzz/hostile.py
    python -m tools.fuzz_pickles --seconds 600           # random damage to network pickles and to those files
    python -m tools.fuzz_pickles --atheris -max_total_time=600   # coverage-guided (pip install atheris)

Prints one line of JSON: inputs; how many were refused, read into inert stubs, or rebuilt as networks;
executions (audit events of exec, open, import, ... while reading), hangs (more than --limit seconds of the
processor), errors besides ValueError; the slowest input (in such seconds); and the peak of memory above that
of an idle process.
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
from pathlib import Path

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["torch_utils.pickle_reader", "torch_utils.pickle_stubs"]):
        import torch_utils.pickle_reader  # noqa: F401

from tests.fuzz.hostile import attempt, corpus, good_files, watch  # after the reader has been instrumented

INTERESTING = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    *b"}]()tsuebRQc0.2\x81\x82\x85\x86\x8a\x8b\x8c\x8d\x8e\x92\x93\x94\x95\x96",
]


def mutate(random_: random.Random, files: list[bytes]) -> bytes:
    """A damaged copy of one of the files, or of two of them put together."""
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
    """What happened so far."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.counts = dict(inputs=0, refused=0, inert=0, rebuilt=0, executions=0, hangs=0, errors=0)
        self.slowest, self.slowest_name = 0.0, ""
        self.idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in (signal.SIGALRM, signal.SIGPROF):
            signal.signal(number, self._alarm)

    def _alarm(self, number, frame):
        raise Hang

    def take(self, name: str, content: bytes) -> None:
        """Try one input, and say on stderr what is wrong with the reader if something is."""
        self.counts["inputs"] += 1
        start = time.process_time()
        problem = None
        signal.setitimer(signal.ITIMER_PROF, self.limit)  # of this process, whatever else the machine does
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
            problem = f"ran {events[:3]}"
        seconds = time.process_time() - start
        if seconds > self.slowest:
            self.slowest, self.slowest_name = seconds, name
        if problem:
            print(f"{name}: {problem}\n  {content[:200]!r}", file=sys.stderr)

    def report(self) -> dict[str, object]:
        """All numbers. ru_maxrss is in KiB on Linux, in bytes on macOS."""
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.idle) / unit
        return {
            **self.counts,
            "slowest_s": round(self.slowest, 3),
            "slowest": self.slowest_name,
            "peak_mb": round(peak),
        }

    def clean(self) -> bool:
        """Nothing ran, hung or crashed."""
        return not (self.counts["executions"] or self.counts["hangs"] or self.counts["errors"])


def run_atheris(arguments: list[str]) -> None:
    """Coverage-guided fuzzing, from the small files of the corpus on; stops at the first finding. libFuzzer
    ends the process itself.
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
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", action="store_true", help="every hostile file, once")
    parser.add_argument("--seconds", type=float, default=0, help="random damage for so long")
    parser.add_argument("--inputs", type=int, default=10**9, help="... or for so many inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--limit", type=float, default=20, help="seconds of the processor that one input may take"
    )
    parser.add_argument(
        "--atheris", action="store_true", help="coverage-guided; further arguments go to libFuzzer"
    )
    args, rest = parser.parse_known_args()
    faulthandler.enable()
    if args.atheris:
        run_atheris(rest)
        return 0
    files = good_files()
    for content in files:
        attempt(content)  # imports and caches what good files need
    counter = Counter(args.limit)
    if args.corpus:
        for name, content in corpus():
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
