"""What a run writes into its workdir: checkpoints, metrics, timing."""
