#!/usr/bin/env bash
# A SLURM cluster of two nodes on one Debian machine, on loopback, for tests.
#   local_cluster.sh start DIR       munged, slurmctld and slurmd n1, n2; then: export SLURM_CONF=DIR/slurm.conf
#   local_cluster.sh node DIR n1     starts one node again after it was killed
#   local_cluster.sh stop DIR        stops what start started
# Needs root and: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge
set -euo pipefail
verb=${1:?start, node or stop} dir=${2:?a folder for state and logs}
export SLURM_CONF=$dir/slurm.conf

start() {
  mkdir -p "$dir/state" "$dir/log"
  local host memory
  host=$(hostname -s)
  memory=$(awk '/MemTotal/ {print int($2 / 1024 / 3)}' /proc/meminfo)
  # cred_expire: a requeued job waits for it (120 s by default); SlurmdTimeout: until a dead node is noticed (300 s)
  cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmdTimeout=15
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=bf_interval=2,sched_interval=2
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=1 RealMemory=$memory
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=1 RealMemory=$memory
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
  mkdir -p /run/munge /var/log/munge /var/lib/munge
  chown munge: /run/munge /var/log/munge /var/lib/munge
  munge -n 2>/dev/null | unmunge >/dev/null 2>&1 || {
    runuser -u munge -- /usr/sbin/munged --pid-file=/run/munge/munged.pid && cp /run/munge/munged.pid "$dir/munged.pid"
  }
  slurmctld -f "$SLURM_CONF"
  slurmd -f "$SLURM_CONF" -N n1
  slurmd -f "$SLURM_CONF" -N n2
  for _ in $(seq 30); do
    [[ $(sinfo -h -N -o '%t' 2>/dev/null | grep -c idle) == 2 ]] && { sinfo; return; }
    sleep 1
  done
  echo "the two nodes did not become idle: see $dir/log" >&2
  return 1
}

stop() {
  local file pid
  for file in "$dir"/slurmd-n1.pid "$dir"/slurmd-n2.pid "$dir"/slurmctld.pid "$dir"/munged.pid; do
    [[ -f $file ]] || continue
    pid=$(<"$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done  # it writes its state at the end
    rm -f "$file"
  done
}

case $verb in
  start) start ;;
  stop) stop ;;
  node) slurmd -f "$SLURM_CONF" -N "${3:?n1 or n2}" ;;
esac
