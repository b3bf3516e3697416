"""Rows of benchmarks/gpu.py: models, candidates among our programs, whole runs; their tables."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vitswin_jax.benchmark.cases import Case
from vitswin_jax.benchmark.peaks import peak_flops
from vitswin_jax.benchmark.runner import Contestant
from vitswin_jax.cli.table import format_table

TIMM = (Contestant("timm", "timm"), Contestant("timm compiled", "timm-compiled"))


def ours(name: str, **variant: Any) -> Contestant:
    """Returns a contestant of ours; `form_x` is a field of `Forms`, `flag_x` an option of XLA."""
    return Contestant(
        name,
        "ours",
        variant={
            key.replace("form_", "form.", 1).replace("flag_", "flag.xla_gpu_", 1): value
            for key, value in variant.items()
        },
    )


@dataclasses.dataclass(frozen=True)
class Row:
    """A case, who runs it, and about how much memory each contestant takes."""

    case: Case
    contestants: tuple[Contestant, ...]
    gigabytes: float

    @property
    def title(self) -> str:
        """The name in tables and for `--only`."""
        return self.case.title

    @property
    def needs(self) -> float:
        """Gigabytes of all contestants together."""
        return self.gigabytes * len(self.contestants)


def case(name: str, task: str, batch_size: int) -> Case:
    """Returns a case in bfloat16."""
    return Case(name, task, batch_size, dtype="bfloat16")


VIT_B, VIT_L = "vit_base_patch16_224", "vit_large_patch16_224"
SWIN_T, SWIN_B = "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224"
SWINV2_B = "swinv2_base_window8_256"
DEFAULTS = (ours("ours"), *TIMM)
ROWS = (
    Row(case(VIT_B, "train", 128), DEFAULTS, 12),
    Row(case(VIT_B, "inference", 128), DEFAULTS, 3),
    Row(case(SWIN_T, "train", 128), DEFAULTS, 9),
    Row(case(SWIN_T, "inference", 128), DEFAULTS, 3),
    Row(case(SWIN_B, "train", 64), DEFAULTS, 12),
    Row(case(SWINV2_B, "train", 64), DEFAULTS, 16),
    Row(case(VIT_L, "train", 64), DEFAULTS, 18),
    Row(case(VIT_L, "inference", 64), DEFAULTS, 4),
    Row(case(SWIN_B, "inference", 64), DEFAULTS, 3),
    Row(case(SWINV2_B, "inference", 64), DEFAULTS, 4),
)

# XLA's defaults of the options that `forms.COMPILER_OPTIONS` sets.
PLAIN = {
    "flag_enable_triton_gemm": True,
    "flag_enable_cublaslt": False,
    "flag_dot_merger_threshold_mb": 64,
}
BEFORE = {"form_linear": "einsum", "form_norm": "keep_standard", "form_qkv": "joint", **PLAIN}
CPU = {
    "form_products": "keep_input",
    "form_linear": "einsum",
    "form_norm": "keep_standard",
    "form_patches": "convolution",
    "form_qkv": "joint",
}
TOKAMAX = (
    ours("tokamax", attn_impl="tokamax"),
    ours("tokamax, triton", attn_impl="tokamax", form_tokamax="triton"),  # Swin's in any case
)
CANDIDATES = (
    Row(
        case(VIT_B, "train", 128),
        (
            ours("ours"),
            ours("norm keeps standard", form_norm="keep_standard"),
            ours("qkv joint", form_qkv="joint"),
            ours("XLA's own options", **PLAIN),
            ours("before", **BEFORE),
            TIMM[1],
        ),
        10,
    ),
    Row(
        case(SWIN_T, "train", 128),
        (
            ours("ours"),
            ours("norm keeps standard", form_norm="keep_standard"),
            ours("XLA's own options", **PLAIN),
            ours("before", **BEFORE),
            TIMM[1],
        ),
        6,
    ),
    Row(
        case(VIT_B, "inference", 128),
        (
            ours("ours"),
            ours("qkv joint", form_qkv="joint"),
            ours("XLA's own options", **PLAIN),
            ours("before", **BEFORE),
            TIMM[1],
        ),
        2,
    ),
    Row(
        case(SWIN_T, "inference", 128),
        (ours("ours"), ours("XLA's own options", **PLAIN), ours("before", **BEFORE), TIMM[1]),
        2,
    ),
    Row(case(VIT_B, "train", 64), (ours("ours"), ours("a CPU's forms", **CPU), *TOKAMAX), 6),
    Row(case(VIT_B, "inference", 64), (ours("ours"), *TOKAMAX), 2),
    Row(case(SWIN_T, "train", 64), (ours("ours"), TOKAMAX[0]), 6),
    Row(case(SWIN_T, "inference", 64), (ours("ours"), TOKAMAX[0]), 2),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A part of benchmarks/gpu_runs.py, and about how much memory it takes."""

    part: str
    model: str
    batch_size: int
    needs: float

    @property
    def title(self) -> str:
        """The name in tables and for `--only`."""
        return f"{self.part}, {self.model}, batch {self.batch_size}"


END_TO_END = (
    Run("train.py", SWIN_T, 128, 9),
    Run("train.py", "vit_small_patch16_224", 128, 6),
)
PLANS = (
    Run("plan", VIT_B, 128, 12),
    Run("plan", SWIN_B, 64, 12),
    Run("plan", SWINV2_B, 64, 16),
    Run("plan", VIT_L, 64, 18),
)


def table(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the rows as lines; "of ours" is a contestant's time over the first one's."""
    cells: list[tuple[str, ...]] = [
        ("", "ms", "single", "ours / it", "images/s", "MFU", "GiB", "first, s", "difference")
    ]
    for line in lines:
        cells.append((line["title"], *8 * ("",)))
        base = None
        for name, one in line["contestants"].items():
            if isinstance(one, str):
                cells.append((f"  {name}: {one[:90]}", *8 * ("",)))
                continue
            ms = statistics.median(one["queued_ms"])
            base = base or ms
            peak = peak_flops(one["device"], line["case"]["dtype"])
            distance, mark = one.get("difference"), "" if one.get("right", True) else " WRONG"
            cells.append(
                (
                    f"  {name}",
                    f"{ms:.2f}",
                    f"{one['single_ms']:.2f}",
                    f"{base / ms:.3f}",
                    f"{1e3 * line['case']['batch_size'] / ms:.0f}",
                    "-" if peak is None else f"{line['flops'] / ms * 1e3 / peak:.3f}",
                    "-" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 2**30:.2f}",
                    f"{one['first_s']:.1f}",
                    "-" if distance is None else f"{distance:.2g}{mark}",
                )
            )
    return format_table(cells, align="<" + ">" * 8)


def table_of_runs(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns whole runs as lines; rates are images/s, those of plans measured side by side."""
    rates = ("step", "train", "input")
    cells = [("", *rates, "train / step", "waits", "planned GiB", "peak GiB", "peak / planned")]
    for line in lines:
        if why := line.get("train_error"):
            cells.append((f"  train.py: {why[:90]}", *8 * ("",)))
        if "model" not in line:
            continue
        planned, peak = line["planned_bytes"], line["peak_bytes"]
        numbers = [line.get(f"{name}_images_per_second") for name in rates]
        shares = [line.get("share_of_step"), line.get("waiting_for_input")]
        numbers = [None, None, None] if line["run"] == "plan" else numbers
        cells.append(
            (
                f"{line['run']}, {line['model']}, batch {line['batch_size']}",
                *("-" if one is None else f"{one:.0f}" for one in numbers),
                *("-" if one is None else f"{one:.3f}" for one in shares),
                f"{planned / 2**30:.2f}",
                *("-" if peak is None else f"{peak / by:.2f}" for by in (2**30, planned)),
            )
        )
    return format_table(cells, align="<" + ">" * 8)
