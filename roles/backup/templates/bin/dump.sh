#!/bin/sh
# Dumps all databases and roles of the server at the socket $1 into the directory $2, restores each dump beside what it was
# made of, and holds the rows of every table against it. Says how many tables and rows those are.
set -eu
socket=$1 to=$2
export PGHOST="$socket" PGUSER=postgres
psql() { command psql -XAtq --set=ON_ERROR_STOP=1 "$@"; }

. "${0%/*}/count.sh"

rm -rf "$to"
mkdir -m 0700 "$to"
pg_dumpall --globals-only --file="$to/roles.sql"
roles=$(psql --dbname=postgres --command="SELECT count(*) FROM pg_roles WHERE rolname !~ '^pg_'")
[ "$(grep -c '^CREATE ROLE ' "$to/roles.sql")" = "$roles" ] || { echo "roles.sql does not hold $roles roles" >&2; exit 1; }
: > /tmp/counted
databases > /tmp/databases
while read -r database; do
    pg_dump --format=custom --file="$to/$database.dump" "$database"
    psql --dbname=postgres --command='CREATE DATABASE dump_scratch TEMPLATE template0'
    timescale=$(psql --dbname="$database" --command="SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")
    # As TimescaleDB's documentation restores a logical backup.
    [ -z "$timescale" ] || psql --dbname=dump_scratch --command='CREATE EXTENSION timescaledb' \
        --command='SELECT timescaledb_pre_restore()' > /dev/null
    pg_restore --dbname=dump_scratch --exit-on-error "$to/$database.dump"
    [ -z "$timescale" ] || psql --dbname=dump_scratch --command='SELECT timescaledb_post_restore()' > /dev/null
    count "$database" > /tmp/before
    count dump_scratch > /tmp/after
    cmp -s /tmp/before /tmp/after || {
        echo "of $database another number of rows came back: $(diff /tmp/before /tmp/after | tail -n 2)" >&2
        exit 1
    }
    cat /tmp/before >> /tmp/counted
    psql --dbname=postgres --command='DROP DATABASE dump_scratch WITH (FORCE)'
done < /tmp/databases
(cd "$to" && sha256sum -- * > /tmp/sums && mv /tmp/sums SHA256SUMS)
awk -F '|' '{ rows += $NF } END { printf "{\"tables\": %d, \"rows\": %d}", NR, rows }' /tmp/counted
