"""Runs the fuzzer by hand: `python -m tests.fuzz --runs 5000 --kind all`, in the checkout.

Each input is read in a worker process, which may take 20 s and 1 GB above the file's size; the
table counts what became of the inputs of each kind.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import json
import logging
import platform
import resource
import select
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS, MEMORY = 20, 1 << 30
COLUMNS = ("refused in one line", "loaded equal", "changed", "tracebacks", "hangs", "over memory")


def peak():
    """Returns the most memory that the process has held since `forget_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def forget_peak():
    """Sets the peak to what is held now, and returns it."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def work(folder):
    """Judges the inputs that standard input names, a line each, and prints a line for each."""
    from .judge import Case

    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, -1))  # for the machine's sake
    cases = {}
    for line in sys.stdin:
        kind, draw = line.split()
        if kind not in cases:
            cases[kind] = Case(kind, Path(folder))
            cases[kind].judge(0)
        before = forget_peak()
        outcome, text = cases[kind].judge(int(draw))
        if peak() - before > MEMORY + len(cases[kind].data):
            outcome, text = "over memory", f"{(peak() - before) >> 20} MiB"
        print(json.dumps([outcome, text]), file=answers, flush=True)


class Worker:
    """A process that judges inputs, and is replaced where one hangs or ends it."""

    def __init__(self, folder):
        self.folder, self.process = folder, None

    def judge(self, kind, draw):
        """Returns (outcome, what was reported) of an input."""
        first = self.process is None
        if first:
            command = [sys.executable, "-m", "tests.fuzz", "--work", self.folder]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        print(kind, draw, file=self.process.stdin, flush=True)
        # The first input of a kind also makes its seed.
        limit = SECONDS + (120 if first or draw == 0 else 0)
        if not select.select([self.process.stdout], [], [], limit)[0]:
            return self._end("hangs", f"more than {SECONDS} s")
        line = self.process.stdout.readline()
        if not line:
            return self._end("tracebacks", "the process ended")
        return json.loads(line)

    def _end(self, outcome, text):
        self.process.kill()
        self.process.wait()
        self.process = None
        return outcome, text


def main():
    """Runs the fuzzer and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000, help="Inputs, of all kinds together.")
    parser.add_argument("--kind", default="all", help="Kinds, or patterns, with commas; or all.")
    parser.add_argument("--start", type=int, default=0, help="The first draw of each kind.")
    parser.add_argument("--show", default="tracebacks,hangs,over memory", help="Outcomes to print.")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work)
        return 0
    from .seeds import KINDS

    patterns = ["*"] if args.kind == "all" else args.kind.split(",")
    kinds = [kind for kind in KINDS if any(fnmatch.fnmatch(kind, each) for each in patterns)]
    table = {kind: collections.Counter() for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(folder)
        for kind in kinds:
            for draw in range(args.start, args.start + -(-args.runs // len(kinds))):
                outcome, text = worker.judge(kind, draw)
                table[kind][outcome] += 1
                if outcome in args.show.split(","):
                    print(f"{kind} {draw}: {outcome}: {text}", file=sys.stderr, flush=True)
        if worker.process:
            worker.process.kill()
    print(f"Python {platform.python_version()}, {platform.machine()}")
    print(f"| kind | inputs | {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) + 1)}")
    table["all"] = sum(table.values(), collections.Counter())
    for kind, counts in table.items():
        cells = [sum(counts.values()), *(counts[column] for column in COLUMNS)]
        print(f"| {kind} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    return int(any(table["all"][column] for column in COLUMNS[3:]))


if __name__ == "__main__":
    sys.exit(main())
