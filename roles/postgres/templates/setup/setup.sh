#!/bin/sh
# Waits for the server, because `docker compose restart` starts everything at once; then puts roles,
# database and privileges right.
set -eu
tries=0
until pg_isready --quiet --host=/run/postgresql --username=postgres --dbname=postgres; do
    tries=$((tries + 1))
    [ "$tries" -lt 120 ] || { echo "PostgreSQL does not accept connections after 60 s"; exit 1; }
    sleep 0.5
done
exec psql --no-psqlrc --quiet --host=/run/postgresql --username=postgres --dbname=postgres \
    --set=ON_ERROR_STOP=1 --file=/etc/compose-stack/current/setup/setup.sql
