"""From a config to a run: data, model, starting weights, durations."""
