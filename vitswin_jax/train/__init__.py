"""Training: one jitted step, its state, and the loop that drives it."""

from vitswin_jax.train.run.trajectories import Trajectory, trajectory

__all__ = ["Trajectory", "trajectory"]
