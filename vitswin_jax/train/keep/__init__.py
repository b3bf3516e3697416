"""Files of a run in its workdir: checkpoints, metrics, timing."""
