"""Attention maps, Grad-CAM and learned parameters as arrays and pictures."""
