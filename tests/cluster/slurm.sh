#!/usr/bin/env bash
# A SLURM cluster of one node on this machine, from Debian's packages, for tests and for a try.
#
#   tests/cluster/slurm.sh start    install what is missing, start munged, slurmctld and slurmd
#   tests/cluster/slurm.sh stop     end them
#
# Root alone can do it. Nothing outside this machine is reached but Debian's packages; the daemons
# listen on the loopback interface. Settings and logs are in /var/lib/compressor-slurm; a SLURM that
# is here already (an /etc/slurm/slurm.conf that this did not write) is left alone.
set -euo pipefail

STATE=/var/lib/compressor-slurm
CONF=/etc/slurm/slurm.conf
MARK="# written by compressor's tests/cluster/slurm.sh"

fail() { echo "slurm.sh: $*" >&2; exit 1; }

install_packages() {
    local missing=()
    command -v slurmctld >/dev/null && command -v sbatch >/dev/null || missing+=(slurm-wlm)
    command -v munged >/dev/null || missing+=(munge)
    [ ${#missing[@]} -eq 0 ] && return
    apt-get update --quiet
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet "${missing[@]}"
}

configure() {
    local host cores memory
    host=$(hostname --short)
    getent hosts "$host" >/dev/null || echo "127.0.0.1 $host" >>/etc/hosts
    cores=$(getconf _NPROCESSORS_ONLN)  # nproc would take OMP_NUM_THREADS for it
    memory=$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
    mkdir -p "$STATE"/{ctld,slurmd} /etc/slurm
    if [ -f "$CONF" ] && ! grep -qF "$MARK" "$CONF"; then
        fail "$CONF is there and not ours; use that cluster, or move it away"
    fi
    cat >"$CONF" <<CONFIG
$MARK
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/slurmd
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.log
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.pid
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SchedulerParameters=sched_interval=2
InactiveLimit=0
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONFIG
}

start_munge() {
    pgrep -x munged >/dev/null && return
    [ -s /etc/munge/munge.key ] || mungekey --create --keyfile /etc/munge/munge.key
    mkdir -p /run/munge /var/log/munge /var/lib/munge
    chown munge: /etc/munge /etc/munge/munge.key /run/munge /var/log/munge /var/lib/munge
    chmod 0700 /etc/munge /var/log/munge /var/lib/munge
    chmod 0400 /etc/munge/munge.key
    chmod 0755 /run/munge
    setpriv --reuid munge --regid munge --init-groups munged
}

start() {
    [ "$(id -u)" -eq 0 ] || fail "needs root: it installs packages and starts daemons"
    install_packages
    configure
    start_munge
    pgrep -x slurmctld >/dev/null || slurmctld -c  # without the jobs of one that was killed
    pgrep -x slurmd >/dev/null || slurmd
    for _ in $(seq 60); do
        if sinfo --noheader --states=idle,mixed,allocated --format=%n 2>/dev/null | grep -q .; then
            sinfo
            return
        fi
        scontrol update nodename="$(hostname --short)" state=resume 2>/dev/null || true
        sleep 1
    done
    tail -20 "$STATE"/*.log >&2
    fail "the node did not come up in 60 s"
}

stop() {
    scancel --state=PENDING,RUNNING --user=root 2>/dev/null || true
    pkill -x slurmctld || true
    pkill -x slurmd || true
    pkill -x munged || true
}

case "${1:-}" in
start) start ;;
stop) stop ;;
*) fail "expected start or stop" ;;
esac
