"""XLA's flags in tests, for their own process and for those that they start.

Tests compile far more than they compute. Without optimisation, without the emitters of fusions
through MLIR and with one LLVM module per program, XLA compiles a small Swin's gradient in 0.6 s
instead of 2.1 s.
"""

import importlib.metadata

UNOPTIMISED = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
# XLA ends a process for a flag that it does not know, and jaxlib 0.12 does not know this one.
if importlib.metadata.version("jaxlib").split(".")[:2] == ["0", "10"]:
    UNOPTIMISED += " --xla_cpu_use_fusion_emitters=false"
