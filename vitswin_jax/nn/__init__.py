"""Building blocks of all models."""
