#!/bin/bash
# Trains on every host of a Cloud TPU slice:
#
#     launch/tpu_pod.sh NAME ZONE --config configs/vit_base.py --workdir /mnt/shared/run
#
# NAME is that of the TPU VM, which `gcloud compute tpus tpu-vm create NAME --zone ZONE --accelerator-type v5litepod-16
# --version v2-alpha-tpuv5-lite` makes. This checkout is copied to each host and installed there; the hosts find each
# other by themselves. The workdir is in a folder that all of them see (Filestore, or a bucket mounted with gcsfuse).
# Run again after a preemption, it goes on from the last checkpoint.
#
# Never run on a TPU: checked by shellcheck, and with a gcloud that runs its commands here (tests/launch/test_launch.py).
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,12s/^# \?//p' "$0"; exit 2; }
name=$1 zone=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
archive=$(mktemp --suffix=.tgz)
trap 'rm -f "$archive"' EXIT

tar -C "$here" -czf "$archive" --exclude=.git --exclude=.venv --exclude=runs .
gcloud compute tpus tpu-vm scp "$archive" "$name":jaxvision.tgz --zone "$zone" --worker=all
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "
  set -e
  mkdir -p jaxvision && tar -C jaxvision -xzf jaxvision.tgz && cd jaxvision
  python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'
  JAXVISION_DISTRIBUTED=1 .venv/bin/python -m jaxvision.main $(printf ' %q' "$@")
"
