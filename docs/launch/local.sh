#!/usr/bin/env bash
# Trains on several hosts that are processes of this machine:
#   docs/launch/local.sh HOSTS --config=configs/digits.py:vit --workdir=runs/hosts
# With XLA_FLAGS=--xla_force_host_platform_device_count=2 each has two devices.
set -euo pipefail
hosts=$1
shift
folder=$(cd "$(dirname "$0")/../.." && pwd)
port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
processes=()
for ((index = 0; index < hosts; index++)); do
  JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} python "$folder/train.py" "$@" \
    --coordinator="127.0.0.1:$port" --num_hosts="$hosts" --host_index="$index" &
  processes+=($!)
done
trap 'kill "${processes[@]}" 2>/dev/null' INT TERM
status=0
for process in "${processes[@]}"; do
  wait "$process" || status=$?
done
exit "$status"
