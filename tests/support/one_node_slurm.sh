#!/bin/bash
# Starts Slurm on this machine, as controller and only node, to test launch/slurm.sbatch. As root, on Debian or Ubuntu:
#
#     apt-get install slurm-wlm munge && tests/support/one_node_slurm.sh && pytest --slow --slurm tests/launch -k slurm
#
# Overwrites /etc/slurm/slurm.conf. Do not run it on a machine that belongs to a cluster.
set -euo pipefail
host=$(hostname -s)
mkdir -p /run/munge /var/spool/slurmctld /var/spool/slurmd /etc/slurm
chown munge:munge /run/munge
[ -s /etc/munge/munge.key ] || { head -c 1024 /dev/urandom > /etc/munge/munge.key; }
chown munge:munge /etc/munge/munge.key
chmod 400 /etc/munge/munge.key
cat > /etc/slurm/slurm.conf <<CONF
ClusterName=here
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
NodeName=$host CPUs=$(nproc) State=UNKNOWN
PartitionName=here Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
grep -q "[[:space:]]$host\b" /etc/hosts || echo "127.0.0.1 $host" >> /etc/hosts
pgrep -x munged > /dev/null || runuser -u munge -- munged
pgrep -x slurmctld > /dev/null || slurmctld
pgrep -x slurmd > /dev/null || slurmd
for _ in $(seq 30); do
  sinfo --noheader --states=idle --format=%N | grep -q . && exec sinfo
  sleep 1
done
echo "no idle node; see /var/log/slurm*" >&2
exit 1
