#!/bin/sh
# Usage: cli.sh cache|queue ARGUMENT... redis-cli, with the application's account.
set -eu
for version in "/run/secrets/redis_$1_password"/*; do :; done
REDISCLI_AUTH=$(cat "$version")
export REDISCLI_AUTH
shift
exec redis-cli --user "app_${version##*/}" "$@"
