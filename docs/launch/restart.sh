#!/usr/bin/env bash
# Repeats a command until it is complete, as Slurm's requeue and JobSet's restarts do on clusters:
#   docs/launch/restart.sh python train.py --config=configs/vit.py --workdir=runs/vit
# The loop ends too if the command was asked to stop (Ctrl-C, SIGTERM, SIGHUP), and if it failed three
# times in a row within a minute of its start (RESTART_QUICK, in seconds), as a wrong config does.
# Send signals to the whole process group, as terminals, systemd and Slurm do.
set -u
trap : INT TERM HUP # bash waits for the command, which ends by the same signal
failures=0
while true; do
  began=$SECONDS
  "$@"
  status=$?
  case $status in 0 | 129 | 130 | 143) exit "$status" ;; esac
  if ((SECONDS - began < ${RESTART_QUICK:-60})); then failures=$((failures + 1)); else failures=0; fi
  if ((failures >= 3)); then exit "$status"; fi
  echo "ended with status $status; starts again" >&2
done
