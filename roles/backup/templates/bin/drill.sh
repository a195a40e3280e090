#!/bin/sh
# Waits until the keeper has laid out a database, tries it, and says what it found. The two share a volume, and no network.
# `drill.sh smoke` has the application try it, too, which shares the directory of the socket.
set -eu
cd /var/lib/postgresql/data
rm -f request taken
for pipe in asked answered; do
    [ "${1-}" != smoke ] || [ -p "/run/postgresql/$pipe" ] || mkfifo -m 666 "/run/postgresql/$pipe"
done
trap 'exit 0' TERM
while sleep 2 & wait $!; do
    mv request taken 2> /dev/null || continue
    # shellcheck disable=SC2046 # word by word
    sh /etc/compose-stack-backup/current/bin/try.sh "$@" $(cat taken) > result.new || true
    mv result.new result
    rm -f taken
done
