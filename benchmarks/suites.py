"""Flags of the benchmarks that run `vitswin benchmark`, and their smallest case."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from vitswin_jax.cli import main

Suites = Mapping[str, Sequence[Sequence[str]]]
SMOKE = (
    *("--model", "vit_tiny_patch16_224", "--task", "inference", "--img-size", "32"),
    *("--batch-size", "1", "--dtype", "float32", "--rounds", "1", "--alone"),
)


def run(suites: Suites, smoke: Sequence[str] = ()) -> int:
    """Runs the cases of the chosen suites and returns a status.

    With --smoke, the tiny case runs instead, with the flags `smoke`. Every other flag is passed to
    `vitswin benchmark`.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--suite", nargs="+", choices=suites, default=list(suites))
    parser.add_argument("--smoke", action="store_true")
    chosen, rest = parser.parse_known_args()
    cases = [case for suite in chosen.suite for case in suites[suite]]
    if chosen.smoke:
        cases = [[*SMOKE, *smoke]]
    return max(main(["benchmark", *case, *rest]) for case in cases)
