#!/usr/bin/env bash
# Install the system packages that the scheduler tests, the Globus tests and the lint need, on Debian 12; nothing is done
# where all are installed. Their services are neither started nor used: the tests run every daemon themselves.
set -euo pipefail
packages=(
  slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge
  slurmdbd slurm-wlm-mysql-plugin mariadb-server-core mariadb-client-core
  rabbitmq-server
  shellcheck
)
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0
as_root=(env DEBIAN_FRONTEND=noninteractive)
[ "$(id -u)" -eq 0 ] || as_root=(sudo "${as_root[@]}")
# Debian starts the services of a package at once unless a policy forbids it, RabbitMQ's on all addresses.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" > /dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
