#!/bin/bash
# Writes the definitions with hashes of the mounted secrets into memory, then becomes rabbitmq-server: no password
# stands in a configuration file, on a command line or in the environment.
# Usage: start.sh [directory of the secrets, and address to listen on]
set -euo pipefail
umask 077
secrets=${1:-/run/secrets}
boot=/etc/compose-stack/current/boot
cookie=/var/lib/rabbitmq/.erlang.cookie

# Bytes from hexadecimal digits.
bytes() { printf "$(sed 's/../\\x&/g')"; }

# base64(salt + SHA-256(salt + password))
hash() {
    local salt digest
    salt=$(od -An -N4 -tx1 /dev/urandom | tr -d ' ')
    digest=$({ bytes <<< "$salt"; cat "$secrets/$1"; } | sha256sum | cut -d ' ' -f 1)
    bytes <<< "$salt$digest" | base64 -w 0
}

definitions=$(< "$boot/definitions.json")
for secret in rabbitmq_app_password operator_password; do
    definitions=${definitions//@$secret@/$(hash "$secret")}
done
printf '%s\n' "$definitions" > /tmp/definitions.json

# What is on several networks listens on each of them for what it is for alone.
address() { getent hosts "$1" | cut -d ' ' -f 1; }
backend=${2:-$(address rabbitmq-backend)}
monitoring=${2:-$(address rabbitmq-metrics)}
{
    cat "$boot/rabbitmq.conf"
    echo "listeners.tcp.1 = $backend:5672"
    echo "management.tcp.ip = $backend"
    echo "prometheus.tcp.ip = $monitoring"
} > /tmp/rabbitmq.conf

# Erlang would make one of fewer bits.
if [ ! -s "$cookie" ]; then
    od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n' > "$cookie.new"
    chmod 0400 "$cookie.new"
    mv "$cookie.new" "$cookie"
fi

export HOME=/var/lib/rabbitmq
export RABBITMQ_CONFIG_FILE=/tmp/rabbitmq.conf
# The official image has settings of its own there.
export RABBITMQ_CONFIG_FILES=/nonexistent
export RABBITMQ_ENABLED_PLUGINS_FILE=$boot/enabled_plugins
# Nobody joins a cluster with this server: what would let them listens to this container alone.
export ERL_EPMD_ADDRESS=127.0.0.1
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1}"
# A dump would hold messages, and lie with the data.
export ERL_CRASH_DUMP_BYTES=0
# Where it is set the log is not JSON.
unset RABBITMQ_LOGS
exec rabbitmq-server
