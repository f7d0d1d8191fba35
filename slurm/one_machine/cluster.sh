#!/usr/bin/env bash
# Sets up a real two-node Slurm on one machine, for tests: cluster.sh install | start | stop. Needs Debian or Ubuntu, and root.
# `start` can be repeated: it starts only what is not running, and fails if the nodes do not become usable.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
STATE=/var/lib/stabilab-slurm
NODES="n0 n1"
HOST=$(hostname -s)

say() { echo "one-machine Slurm: $*"; }
give_up() { say "$*" >&2; tail -n 5 $STATE/log/*.log >&2 2>/dev/null || true; exit 1; }
# Tests the port, not the process: without an init process that reaps them, dead daemons stay in the process table.
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
until_true() { for _ in $(seq 150); do "$@" >/dev/null 2>&1 && return; sleep 0.2; done; give_up "waited 30 s for: $*"; }
ours() { [ ! -e /etc/slurm/slurm.conf ] || grep -q '^ClusterName=stabilab$' /etc/slurm/slurm.conf; }
usable() { [ "$(sinfo -h -N -o '%T' | grep -cE 'idle|mixed|allocated|completing')" -ge 2 ]; }

install() {
  command -v slurmctld slurmd slurmdbd munged mariadbd >/dev/null && return
  export DEBIAN_FRONTEND=noninteractive
  for attempt in 1 2 3; do
    apt-get -qq update && apt-get -qq install -y --no-install-recommends \
      slurm-wlm slurmdbd munge mariadb-server >/dev/null && return
    say "installation failed, attempt $attempt of 3"; sleep 10
  done
  give_up "its packages can't be installed: check the network and apt-get"
}

start_munge() {
  mkdir -p /run/munge && chown munge:munge /run/munge && chmod 755 /run/munge
  [ -e /etc/munge/munge.key ] || { (umask 077; head -c 1024 /dev/urandom >/etc/munge/munge.key); chown munge: /etc/munge/munge.key; }
  munge -n >/dev/null 2>&1 || runuser -u munge -- /usr/sbin/munged
  until_true munge -n
}

start_accounting() {
  local socket=$STATE/run/mysqld.sock
  [ -d $STATE/db/mysql ] || mysql_install_db --user=mysql --datadir=$STATE/db --skip-test-db \
    --auth-root-authentication-method=socket >$STATE/log/mysql_install.log 2>&1 || give_up "no database"
  chown -R mysql:mysql $STATE/db
  if ! mysqladmin -S $socket ping >/dev/null 2>&1; then
    setsid /usr/sbin/mariadbd --no-defaults --user=mysql --datadir=$STATE/db --socket=$socket --skip-networking \
      --innodb-buffer-pool-size=64M --innodb-log-file-size=16M --innodb-lock-wait-timeout=900 \
      --pid-file=$STATE/db/mysqld.pid >$STATE/log/mariadb.log 2>&1 </dev/null &
    until_true mysqladmin -S $socket ping
  fi
  cat >/etc/slurm/slurmdbd.conf <<CONF
AuthType=auth/munge
DbdHost=localhost
DbdAddr=127.0.0.1
CommunicationParameters=NoInAddrAny
SlurmUser=root
PidFile=$STATE/run/slurmdbd.pid
LogFile=$STATE/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
CONF
  chmod 600 /etc/slurm/slurmdbd.conf
  # slurmdbd expects the socket at MariaDB's default path.
  mkdir -p /run/mysqld && ln -sf $socket /run/mysqld/mysqld.sock
  answers 6819 || slurmdbd
  until_true answers 6819
  # The cluster must be registered before its controller starts. Enforced limits need a user with an account.
  sacctmgr -i add cluster stabilab >/dev/null 2>&1 || true
  sacctmgr -i add account tests >/dev/null 2>&1 || true
  sacctmgr -i add user root account=tests >/dev/null 2>&1 || true
}

start() {
  [ "$(id -u)" = 0 ] || give_up "only root can start it"
  ours || give_up "/etc/slurm/slurm.conf belongs to another cluster: nothing was changed"
  mkdir -p $STATE/{ctld,slurmd,db,log,run,dev} /etc/slurm
  chmod 777 $STATE/run
  touch $STATE/dev/gpu{0,1}
  sed "s|@HOST@|$HOST|; s|@STATE@|$STATE|" "$HERE/slurm.conf" >/etc/slurm/slurm.conf
  echo "NodeName=n[0-1] Name=gpu File=$STATE/dev/gpu[0-1]" >/etc/slurm/gres.conf
  start_munge
  start_accounting
  answers 6817 || slurmctld
  until_true answers 6817
  local port=17001
  for node in $NODES; do
    answers $port || slurmd -N "$node"
    until_true answers $port
    port=$((port + 1))
  done
  until_true usable
  say "$(sinfo --version), $(sinfo -h -N -o '%N %T' | sort -u | tr '\n' ',' | sed 's/,$//'); stop it with: $0 stop"
}

stop() {
  scontrol shutdown >/dev/null 2>&1 || true
  sleep 2
  for file in $STATE/run/*.pid; do [ -e "$file" ] && kill "$(cat "$file")" 2>/dev/null || true; done
  mysqladmin -S $STATE/run/mysqld.sock shutdown 2>/dev/null || true
  [ -e /run/munge/munged.pid ] && kill "$(cat /run/munge/munged.pid)" 2>/dev/null || true
  say "stopped"
}

case "${1:-}" in
  install | start | stop) "$1" ;;
  *) echo "usage: $0 install | start | stop" >&2; exit 2 ;;
esac
