#!/usr/bin/env bash
# Runs a program where the machine's network, its /etc and its /var/lib are out of reach: ./inside.sh PROGRAM ARGUMENTS. In there each
# provider's host name is an address of loopback, there are the folders that pods of Envoy Gateway have, and whatever is started ends with
# the program.
set -euo pipefail
if [ "${1:-}" != --inside ]; then
  # Where we are not root, we are it in a namespace of users.
  [ "$(id -u)" = 0 ] && as=() || as=(--map-root-user)
  exec unshare "${as[@]}" --net --mount --pid --fork --kill-child --mount-proc --propagation private "$0" --inside "$@"
fi
shift
ip link set lo up
ip address add 10.254.0.1/32 dev lo # an endpoint may not be an address of loopback
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/lib/etc /var/lib/istio/data /var/lib/root
cp -a /etc/. /var/lib/etc 2>/dev/null || true # what may not be read is not needed
mount --bind /var/lib/etc /etc
mkdir -p /etc/refund-filter
n=1
for host in api.bog.ge oauth2.bog.ge pg.moyasar.com api.begateway.com payapi.prod.bbmsl.com; do
  echo "127.0.1.$n $host" >>/etc/hosts
  n=$((n + 1))
done
echo '127.0.0.1 redis-0.corp.example' >>/etc/hosts
echo '127.0.0.1 envoy-gateway.envoy-gateway-system.svc.cluster.local' >>/etc/hosts
: >/etc/resolv.conf
# A root with all that the machine's has, to which folders can be added.
root=/var/lib/root
mount -t tmpfs tmpfs $root
for entry in /*; do
  if [ -L "$entry" ]; then
    cp -P "$entry" $root/
  elif [ -d "$entry" ]; then
    mkdir "$root$entry" && mount --rbind "$entry" "$root$entry"
  fi
done
mkdir $root/certs $root/sds
exec chroot $root env --chdir="$PWD" "$@"
