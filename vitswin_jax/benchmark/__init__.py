"""Measurements of this package and of other libraries on the same work, in turns."""
