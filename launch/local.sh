#!/usr/bin/env bash
# Runs one experiment as N processes on this machine, joined as on a pod (gloo between them on the CPU).
#
#   launch/local.sh --processes 2 [--devices 4] [--port 12355] [--dry-run] -- --config experiments/clip_shapes.py ...
#
# Everything after -- goes to `python -m vlmax.train`. --devices gives each process so many virtual CPU devices.
# PYTHON names the interpreter (default: .venv/bin/python where there is one, else python). Leaves with the code of the
# first process that fails; the others are ended then.
set -euo pipefail

processes=2 devices="" port=12355 dry_run=""
while [ $# -gt 0 ]; do
  case "$1" in
    --processes) processes=$2; shift 2 ;;
    --devices) devices=$2; shift 2 ;;
    --port) port=$2; shift 2 ;;
    --dry-run) dry_run=1; shift ;;
    --) shift; break ;;
    *) echo "launch/local.sh: unknown flag $1; flags of vlmax.train come after --" >&2; exit 2 ;;
  esac
done

here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$([ -x "$here/.venv/bin/python" ] && echo "$here/.venv/bin/python" || echo python)}
common=(VLMAX_COORDINATOR="localhost:$port" VLMAX_PROCESSES="$processes")
if [ -n "$devices" ]; then
  common+=(JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices")
fi

pids=()
trap '[ ${#pids[@]} -eq 0 ] || kill -TERM "${pids[@]}" 2>/dev/null || true' INT TERM
for ((i = 0; i < processes; i++)); do
  command=(env "${common[@]}" VLMAX_PROCESS="$i" "$python" -m vlmax.train "$@")
  if [ -n "$dry_run" ]; then
    printf '%q ' "${command[@]}"; echo
    continue
  fi
  (cd "$here" && exec "${command[@]}") &
  pids+=($!)
done

code=0
for ((left = ${#pids[@]}; left > 0; left--)); do
  status=0
  wait -n "${pids[@]}" || status=$?
  if [ "$status" -ne 0 ] && [ "$code" -eq 0 ]; then
    code=$status
    # 75: every process has saved and leaves by itself.
    [ "$status" -eq 75 ] || kill -TERM "${pids[@]}" 2>/dev/null || true
  fi
done
exit "$code"
