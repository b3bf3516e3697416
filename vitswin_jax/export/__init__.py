"""Trained models as programs that other runtimes run: ONNX and StableHLO."""
