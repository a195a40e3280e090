#!/bin/sh
# Has the application migrate and try the database that a drill has restored, whenever the drill asks; says how that went. They
# share the directory of its socket, which lets in whoever is there, and no network.
set -eu
cd /run/postgresql
trap 'exit 0' TERM
# The settings want passwords, and nobody asks for any.
echo none > /tmp/none
export DATABASE_PASSWORD_FILE=/tmp/none MIGRATION_DATABASE_PASSWORD_FILE=/tmp/none REDIS_CACHE_PASSWORD_FILE=/tmp/none

# Which revisions of the schema were missing, or what is wrong.
try() {
    missing=$(compose-app pending 2> /tmp/said) || { echo "refused the application cannot tell how old its schema is:"; return; }
    [ -z "$missing" ] || compose-app migrate > /tmp/said 2>&1 || { echo "refused its schema cannot be migrated:"; return; }
    compose-app smoke database > /tmp/said 2>&1 || { echo "refused the application does not work on it:"; return; }
    : > /tmp/said
    echo "works" $missing
}

while true; do
    [ -p asked ] || { sleep 2 & wait $!; continue; }
    cat asked > /tmp/asked & wait $!
    answer=$(try)
    cat /tmp/said >&2
    # What it says to whoever asks, if it has got so far; else the end of what it has logged.
    reason=$(grep '^smoke: ' /tmp/said || tail -n 3 /tmp/said)
    echo "$(cat /tmp/asked) $answer $(printf '%s' "$reason" | tr -d '"\\' | tr '\n\t' '  ' | tail -c 600)" > /tmp/answer
    # The drill may have gone away.
    timeout 10 sh -c 'cat /tmp/answer > answered' || true
done
