"""Named tensors -> our fields and parameters, one original per file."""
