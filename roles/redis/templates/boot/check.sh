#!/bin/sh
# Redis has no dry run of its configuration: start each on it, without network or data, and ask once.
set -eu
for instance in cache queue; do
    touch /tmp/users.acl
    redis-server "/etc/compose-stack/current/$instance/redis.conf" --dir /tmp --port 0 \
        --unixsocket "/tmp/$instance.sock" --daemonize yes
    tries=0
    until redis-cli -s "/tmp/$instance.sock" ping > /dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 50 ] || { echo "redis-$instance does not answer on its new configuration"; exit 1; }
        sleep 0.1
    done
done
