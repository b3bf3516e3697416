"""Optimizers, schedules, parameter groups, adapters, averages."""
