"""Time, compilation, memory and logits of ours beside every peer, as a table and a picture.

python benchmarks/scoreboard.py --peer timm=PYTHON --peer jimm=PYTHON ... [--rounds 5]

Each `--peer NAME[=PYTHON]` is one of `vitswin benchmark`, in an interpreter of its own; the others
are skipped with one line. A row is a model, a task and a batch size. All contestants of a row have
the same random weights and the same images, each in a process of its own. They take turns, and a
number is the median of the rounds. A peer that fails or computes something else has no time; the
page says why.

The results of each row are added to `--results`, so a row can be measured again (`--row NAME`), and
the table and the picture are made of all that the file has. Nothing is measured with `--row none`.
`--page` is a page with the two comments between which the table is written. The page is
docs/scoreboard.md.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import commit, processor
from matplotlib.figure import Figure

from vitswin_jax.benchmark.cases import Case
from vitswin_jax.benchmark.peers import PEERS
from vitswin_jax.benchmark.runner import Contestant, run_case
from vitswin_jax.cli import benchmark
from vitswin_jax.core.cores import cores
from vitswin_jax.core.types import UserError

VIT, SWIN = "vit_small_patch16_224", "swin_tiny_patch4_window7_224"
DINO = "vit_small_patch14_dinov2"
ROWS = {
    "vit-1": Case(VIT, batch_size=1),
    "vit-8": Case(VIT, batch_size=8),
    "swin-1": Case(SWIN, batch_size=1),
    "swin-8": Case(SWIN, batch_size=8),
    "dinov2-1": Case(DINO, batch_size=1, img_size=224, num_classes=0),
    "vit-train-8": Case(VIT, "train", 8),
    "swin-train-8": Case(SWIN, "train", 8),
}
SMOKE = {"smoke": Case("vit_tiny_patch16_224", batch_size=1, img_size=32)}
LONG_TO_COMPILE = ("timm-compiled",)
"""Peers that take part in training only with --compiled-training."""
ALT = "Bars: the time of each peer as a multiple of ours, a panel for each row of the table"
BEGIN, END = "<!-- scoreboard: begin -->", "<!-- scoreboard: end -->"

Result = Mapping[str, Any]


def measure(name: str, case: Case, contestants: Sequence[Contestant], rounds: int) -> Result:
    """Returns a row: facts of ours, and of each peer with the ratio to ours on its weights."""
    groups = run_case(case, contestants, rounds=rounds, strict=False)
    peers = {
        peer: facts
        for group in groups
        for peer, facts in group["contestants"].items()
        if peer != "ours"
    }
    kinds = [one.name for one in contestants if one.name != "ours" and one.can_run(case)]
    return {
        "row": name,
        "title": case.title,
        "task": case.task,
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor()}, {cores()} cores, {platform.system()}",
        "commit": commit(),
        "load": groups[0]["load"],
        "rounds": rounds,
        "ours": groups[0]["contestants"]["ours"],
        "peers": {peer: peers[peer] for peer in kinds if peer in peers},
        "refused": {peer: why for group in groups for peer, why in group["refused"].items()},
    }


def table(results: Sequence[Result]) -> str:
    """Returns the rows in Markdown: ours, then the peers, the fastest first."""
    lines = [
        "| | ms | ours / peer | largest difference | first call, s | peak MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        lines.append(f"| **{result['title']}** | | | | | |")
        named = [("ours", result["ours"]), *sorted(result["peers"].items(), key=_median)]
        for name, one in named:
            ratio = "" if name == "ours" else f"{one['ours_to_it']['median']:.2f}"
            error = "" if name == "ours" else f"{one['difference']:.1e}"
            peak = "" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 1e6:.0f}"
            cells = (name, f"{_median((name, one)):.1f}", ratio, error, f"{one['first_s']:.1f}")
            lines.append(f"| {' | '.join((*cells, peak))} |")
        lines += [f"| {name} | failed | | | | |" for name in result["refused"]]
    return "\n".join(lines)


def _median(named: tuple[str, Mapping[str, Any]]) -> float:
    return 1e3 * statistics.median(named[1]["wall"])


def circumstances(results: Sequence[Result]) -> str:
    """Returns when, where, in which form and of which versions the rows were measured."""
    lines = ["| | timed as | versions |", "| --- | --- | --- |"]
    forms = {"ours": "`jax.jit` of `load_pretrained`'s model"}
    forms |= {name: peer.how for name, peer in PEERS.items()}
    found: dict[str, set[str]] = {}
    for result in results:
        for name, one in {"ours": result["ours"], **result["peers"]}.items():
            text = ", ".join(f"{key} {value}" for key, value in one["versions"].items())
            found.setdefault(name, set()).add(text)
    lines += [
        f"| {name} | {form} | {'; '.join(sorted(found[name]))} |"
        for name, form in forms.items()
        if name in found
    ]
    measured = dict.fromkeys(
        f"{result['date']}, {result['machine']}, commit {result['commit']}, "
        f"{result['rounds']} rounds"
        for result in results
    )
    loads = ", ".join(f"{result['load']:.1f}" for result in results)
    facts = [*(f"Measured on {text}." for text in measured), f"Load after each row: {loads}."]
    refused = dict.fromkeys(f"- {why}" for result in results for why in result["refused"].values())
    return "\n".join([" ".join(facts), "", *lines, *([""] if refused else []), *refused])


def draw(path: Path, results: Sequence[Result]) -> Figure:
    """Draws a panel a row: the peer's time as a multiple of ours, a bar a peer; a PNG.

    Rows without peers have no panel. Raises UserError where no row has any.
    """
    results = [result for result in results if result["peers"]]
    if not results:
        raise UserError("There is no picture, because no row has a peer.")
    counts = [len(result["peers"]) for result in results]
    figure = Figure(figsize=(8, sum(0.75 + 0.22 * n for n in counts)), layout="constrained")
    panels = figure.subplots(
        len(results), squeeze=False, sharex=True, height_ratios=[1 + n for n in counts]
    )
    for axes, result in zip(panels[:, 0], results, strict=True):
        named = sorted(result["peers"].items(), key=_median)
        times = [1 / one["ours_to_it"]["median"] for _, one in named]
        axes.barh(
            [name for name, _ in named], times, color=["C0" if t >= 1 else "C3" for t in times]
        )
        for place, time in enumerate(times):
            axes.annotate(f"{time:.2f}", (0, place), (4, 0), textcoords="offset points",
                          va="center", fontsize=7, color="white")  # fmt: skip
        axes.axvline(1, color="black", linewidth=1)
        ours = _median(("ours", result["ours"]))
        axes.set_title(f"{result['title']} (ours: {ours:.1f} ms)", fontsize=9, loc="left")
        axes.tick_params(axis="y", labelsize=8)
        axes.set_ylim(len(named) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
    panels[-1, 0].set_xlabel("time of a call / ours: to the right of 1, ours is faster")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)
    return figure


def fill(page: str, text: str) -> str:
    """Returns a page with the text between its two comments."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise UserError(f"The page must have the lines {BEGIN} and {END}, in this order.")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def contestants_of(texts: Sequence[str]) -> tuple[list[Contestant], list[str]]:
    """Returns ours and the peers that are there, and a line for each other peer."""
    named = dict(benchmark.named_peer(text) for text in texts)
    found, skipped = [Contestant("ours", "ours")], []
    for name, peer in PEERS.items():
        one = Contestant(name, name, named.get(name, sys.executable))
        if one.is_there():
            found.append(one)
        else:
            where = f"{named[name]} has not" if name in named else f"--peer {name}=PYTHON needs"
            skipped.append(f"{name}: skipped; {where} all of {', '.join(peer.needs)}.")
    return found, skipped


def arguments() -> argparse.Namespace:
    """Returns the command line's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME[=PYTHON]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--row", nargs="+", choices=(*ROWS, "none"), default=list(ROWS))
    parser.add_argument("--compiled-training", action="store_true", help="torch.compile there too")
    parser.add_argument("--results", type=Path, help="adds every measurement to this JSON file")
    parser.add_argument("--page", type=Path, help="writes the table into this page")
    parser.add_argument("--picture", type=Path, help="draws the rows into this PNG file")
    parser.add_argument("--smoke", action="store_true", help="one round of a tiny model")
    return parser.parse_args()


def main() -> None:
    """Measures the rows and writes the table, the page and the picture."""
    args = arguments()
    rows = SMOKE if args.smoke else {name: ROWS[name] for name in args.row if name in ROWS}
    contestants, skipped = contestants_of(args.peer)
    print(*skipped, sep="\n", flush=True)
    results: dict[str, Result] = {}
    if args.results and args.results.exists():
        results = json.loads(args.results.read_text(encoding="utf-8"))
    for name, case in rows.items():
        quick = case.task == "inference" or args.compiled_training
        ones = [one for one in contestants if quick or one.kind not in LONG_TO_COMPILE]
        results[name] = measure(name, case, ones, 1 if args.smoke else args.rounds)
        print(table([results[name]]), flush=True)
        if args.results:
            args.results.write_text(json.dumps(results) + "\n", encoding="utf-8")
    done = [results[name] for name in (SMOKE if args.smoke else ROWS) if name in results]
    text = f"{table(done)}\n\n{circumstances(done)}"
    if args.picture:
        draw(args.picture, done)
        folder = args.page.parent if args.page else Path.cwd()
        text = f"![{ALT}]({os.path.relpath(args.picture, folder)})\n\n{text}"
    print(f"\n{text}")
    if args.page:
        page = fill(args.page.read_text(encoding="utf-8"), text)
        args.page.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
