"""The models: one family a file, on shared layers; `registry` creates them by name."""
