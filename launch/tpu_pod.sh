#!/bin/bash
# Trains on every host of a Cloud TPU slice:
#
#     launch/tpu_pod.sh NAME ZONE --config configs/vit_base.py --workdir /mnt/shared/run
#
# NAME is the name of a TPU VM. Create one with `gcloud compute tpus tpu-vm create NAME --zone ZONE --accelerator-type
# v5litepod-16 --version v2-alpha-tpuv5-lite`. The script copies this checkout to each host, installs it and starts the
# run; JAX finds the other hosts. All hosts must see the workdir (Filestore, or a bucket mounted with gcsfuse).
# After a preemption, rerun the command to resume from the last checkpoint.
#
# Never run on a TPU. Tested with shellcheck and with a fake gcloud (tests/launch/test_launch.py).
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,11s/^# \?//p' "$0"; exit 2; }
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
