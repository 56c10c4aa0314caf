#!/bin/bash
# Starts the Globus Compute endpoints of this folder and keeps them running; no systemd is needed.
#
#   ./endpoints.sh start    start what does not run yet
#   ./endpoints.sh status   what runs on this host
#   ./endpoints.sh stop     end them; their batch jobs are cancelled
#
# A service account: write GLOBUS_COMPUTE_CLIENT_ID=... and GLOBUS_COMPUTE_CLIENT_SECRET=... to account.env here,
# readable for you alone (chmod 600). Otherwise log in once: ./endpoints.sh login
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PATH=/SITE/globus-agent/bin:$PATH
export GLOBUS_COMPUTE_USER_DIR=$here
endpoints=(train files)
# A killed agent's mark is believed for three heartbeats: one that is started earlier would refuse
pause_s=105
umask 077

account() {
  [ -e "$here/account.env" ] || return 0
  if [ -n "$(find "$here/account.env" -perm /077)" ]; then
    echo "account.env can be read by others: chmod 600 $here/account.env" >&2
    exit 2
  fi
  set -a
  # shellcheck disable=SC1091
  . "$here/account.env"
  set +a
}

# an agent signals its whole process group when it ends, so that each start has a session of its own
supervise() {
  while true; do
    setsid --wait globus-compute-endpoint start "$1" < /dev/null >> "$here/$1.log" 2>&1
    echo "$(date -Is) endpoint $1 has ended; it is started again in $pause_s s" >> "$here/$1.log"
    sleep "$pause_s"
  done
}

running() { # the supervisor of an endpoint on this host
  local host pid
  read -r host pid 2> /dev/null < "$here/$1.supervisor" || return 1
  [ "$host" = "$(hostname)" ] && kill -0 "$pid" 2> /dev/null
}

case "${1:-}" in
  start)
    account
    for name in "${endpoints[@]}"; do
      if running "$name"; then
        echo "endpoint $name: runs already"
        continue
      fi
      setsid nohup "$here/endpoints.sh" supervise "$name" > /dev/null 2>&1 < /dev/null &
      echo "$(hostname) $!" > "$here/$name.supervisor"
      echo "endpoint $name: started, log in $here/$name.log"
    done
    ;;
  supervise)
    account
    echo "$(hostname) $$" > "$here/$2.supervisor"
    supervise "$2"
    ;;
  status)
    for name in "${endpoints[@]}"; do
      running "$name" && echo "endpoint $name: kept on this host" || echo "endpoint $name: not kept on this host"
    done
    globus-compute-endpoint list
    ;;
  stop)
    for name in "${endpoints[@]}"; do
      if running "$name"; then
        kill "$(cut -d ' ' -f 2 "$here/$name.supervisor")"
        rm -f "$here/$name.supervisor"
      fi
      globus-compute-endpoint stop "$name"
    done
    ;;
  login)
    account
    globus-compute-endpoint login
    ;;
  *)
    sed -n '2,9s/^# \{0,1\}//p' "$here/endpoints.sh"
    exit 2
    ;;
esac
