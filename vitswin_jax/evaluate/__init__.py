"""Accuracy, calibration, probes and mistakes of a trained model."""
