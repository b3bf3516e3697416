"""Kernels for GPUs and TPUs."""
