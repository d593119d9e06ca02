#!/bin/bash
# Trains on every host of a Cloud TPU slice:
#
#     launch/tpu_pod.sh NAME ZONE --config configs/vit_base.py --workdir gs://BUCKET/run
#
# NAME is that of the TPU VM, which `gcloud compute tpus tpu-vm create NAME --zone ZONE --accelerator-type v5litepod-16
# --version v2-alpha-tpuv5-lite` makes. This checkout is copied to each host and installed there; the hosts find each
# other by themselves. Run again after a preemption, it goes on from the last checkpoint.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,9s/^# \?//p' "$0"; exit 2; }
name=$1 zone=$2
shift 2
here=$(cd "$(dirname "$0")/.." && pwd)
tpu() { gcloud compute tpus tpu-vm "$@" --zone "$zone" --worker=all; }

tar -C "$here" -czf /tmp/jaxvision.tgz --exclude=.git --exclude=.venv --exclude=runs .
tpu scp /tmp/jaxvision.tgz "$name":/tmp/jaxvision.tgz
tpu ssh "$name" --command "
  set -e
  mkdir -p jaxvision && tar -C jaxvision -xzf /tmp/jaxvision.tgz && cd jaxvision
  python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'
  JAXVISION_DISTRIBUTED=1 .venv/bin/python -m jaxvision.main $(printf ' %q' "$@")
"
