"""Weights files of every source: find, read, recognise, adapt, write."""
