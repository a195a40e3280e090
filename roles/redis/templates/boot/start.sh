#!/bin/sh
# Usage: start.sh cache|queue. No password stands in a configuration file, on a command line or in the environment.
set -eu
umask 077
od -An -v -N16 -tx1 /dev/urandom | tr -d ' \n' > /tmp/reload
sh /etc/compose-stack/current/boot/accept.sh "$1" start
exec redis-server "/etc/compose-stack/current/$1/redis.conf"
