#!/bin/bash
# Carries everything over from the server at the socket in /run/upgrade, which nobody writes to, into a new database cluster of
# this image's version, and holds the two against each other: roles, schema, and of every table the rows and a checksum of them.
# With a second word of `thorough` every index of the result is held against its table, too, and it is left running for whoever
# wants to try it. Says what it found in one line of JSON.
#
# Logically, by pg_dump: TimescaleDB's own catalogue differs with its version, and Debian has no two versions of PostgreSQL with the
# same. So hypertables are made anew and filled, as TimescaleDB's documentation moves schema and data apart.
set -euo pipefail
umask 077
target=/var/lib/postgresql/data/$1
thorough=${2-}
fresh=$target.unfinished
export PGOPTIONS='-c timezone=UTC -c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=1 -c client_min_messages=warning'
old='--host=/run/upgrade --username=postgres'
new='--host=/run/upgrade --port=5433 --username=postgres'

# All that is printed is kept for the reason why it failed; answers go to the third descriptor.
exec 3>&1 > /tmp/said 2>&1
step=""
end() {
    code=$?
    if [ $code -ne 0 ]; then
        pg_ctl stop --silent --pgdata="$fresh" --mode=immediate > /dev/null 2>&1 || true
        rm -rf "$fresh"
        printf '{"refused": "%s"}\n' "$(printf '%s: ' "$step"; grep -v '^$' /tmp/said | sed "s/PASSWORD '[^']*'/PASSWORD '...'/g" | tail -n 5 | tr -d '"\\' | tr '\n\t' '  ')" >&3
    fi
    exit $code
}
trap end EXIT
trap 'exit 143' TERM INT
# shellcheck disable=SC2086 # words, in these three
from() { psql -XAtq --set=ON_ERROR_STOP=1 $old "$@"; }
# shellcheck disable=SC2086
into() { psql -XAtq --set=ON_ERROR_STOP=1 $new "$@"; }
# shellcheck disable=SC2086
dump() { pg_dump $old --exclude-extension=timescaledb --exclude-schema='_timescaledb*' --exclude-schema='timescaledb_*' "$@"; }

settings() {
    printf -- '-c %s ' listen_addresses= unix_socket_directories=/run/upgrade port=5433 shared_preload_libraries=timescaledb \
        timescaledb.license=apache timescaledb.telemetry_level=off timescaledb.max_background_workers=0 max_connections=20 \
        shared_buffers=64MB maintenance_work_mem=64MB max_wal_size=1GB hba_file="/tmp/hba" "$@"
}

# Rows by table, and the sum of their checksums, which no order of the rows changes.
sums() {
    cat <<'SQL'
SELECT format('SELECT %L, count(*), coalesce(sum(hashtextextended((the_row_.*)::text, 0)::numeric), 0) FROM %I.%I AS the_row_',
    nspname || '.' || relname, nspname, relname)
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'm') AND relpersistence <> 't' AND nspname !~ '^(pg_|_?timescaledb_)' AND nspname <> 'information_schema'
ORDER BY 1 \gexec
SQL
}

# Debian's PostgreSQL 17 notes in the options of every column when that was changed, which no other version takes.
plain() { sed -E 's/, pg_attver=[0-9]+//; s/\(pg_attver=[0-9]+, /(/; / ALTER COLUMN .* SET \(pg_attver=[0-9]+\);$/d'; }

# What makes the hypertables that there are.
hypertables() {
    cat <<'SQL'
SELECT format(CASE WHEN dimension_number = 1 THEN 'SELECT create_hypertable(%L, %s, create_default_indexes => false);'
        ELSE 'SELECT add_dimension(%L, %s);' END || coalesce(format(' SELECT set_integer_now_func(%L, %L);', made, clock), ''),
    made, CASE WHEN dimension_type = 'Space' THEN format('by_hash(%L, %s)', column_name, num_partitions)
        ELSE format('by_range(%L, %s)', column_name,
            CASE WHEN time_interval IS NULL THEN integer_interval::text ELSE format('%L::interval', time_interval) END) END)
FROM timescaledb_information.dimensions, format('%I.%I', hypertable_schema, hypertable_name) AS made,
    LATERAL (SELECT (SELECT pronamespace::regnamespace || '.' || quote_ident(proname) FROM pg_proc WHERE proname = integer_now_func
        AND pronargs = 0 LIMIT 1) AS clock) AS clocks
ORDER BY made, dimension_number
SQL
}

# What there is beside rows, a line each and in order; without what differs by itself, and a trigger that newer versions of
# TimescaleDB do without.
shape() {
    # shellcheck disable=SC2086
    pg_dump $1 --schema-only --exclude-extension=timescaledb --exclude-schema='_timescaledb*' --exclude-schema='timescaledb_*' "$2" \
        | plain | grep -Ev '^(--|\\(un)?restrict |CREATE TRIGGER ts_insert_blocker )' \
        | awk 'BEGIN { RS = "" } { gsub("\n", " "); print }' | sort
}
roles() {
    # shellcheck disable=SC2086
    pg_dumpall $1 --globals-only | grep -Ev '^(--|$|\\(un)?restrict |CREATE ROLE postgres;)'
}

carry() {
    timescale=$(from --dbname="$1" --command="SELECT 'CREATE EXTENSION timescaledb SCHEMA ' || extnamespace::regnamespace || ';'
        FROM pg_extension WHERE extname = 'timescaledb'")
    dump --create --section=pre-data "$1" | plain > /tmp/pre
    # `postgres` is there. The extension comes first, as functions and views may need it.
    grep -Ev '^CREATE DATABASE postgres ' /tmp/pre \
        | awk -v extension="$timescale" '{ print } /^\\connect / && extension { print extension; extension = "" }' \
        | into --dbname=template1
    : > /tmp/hypertables
    [ -z "$timescale" ] || from --dbname="$1" > /tmp/hypertables --command="
        SELECT format('%I.%I', hypertable_schema, hypertable_name) FROM timescaledb_information.hypertables ORDER BY 1"
    dump --format=custom --section=post-data --file=/tmp/post "$1"
    pg_restore --list /tmp/post | grep -Ev '^;| TRIGGER .* ts_insert_blocker ' > /tmp/rest || true
    if [ -s /tmp/hypertables ]; then
        [ "$(from --dbname="$1" --command="SELECT count(*) FROM timescaledb_information.hypertables WHERE compression_enabled")" = 0 ] \
            || { echo "its hypertables are compressed, which cannot be carried over"; exit 1; }
        while read -r table; do set -- "$@" "--table=$table"; done < /tmp/hypertables
        # While they are empty: their keys and indexes, by which they become hypertables.
        # shellcheck disable=SC2086
        pg_dump $old --format=custom --section=post-data --file=/tmp/keys "$@"
        pg_restore --list /tmp/keys | grep -E '^[0-9]+; [0-9]+ [0-9]+ (INDEX|CONSTRAINT) ' > /tmp/first || true
        # shellcheck disable=SC2086
        pg_restore $new --dbname="$1" --exit-on-error --use-list=/tmp/first /tmp/keys
        awk 'FILENAME == "/tmp/first" { first[$2 " " $3] = 1; next } !(($2 " " $3) in first)' /tmp/first /tmp/rest > /tmp/rest.new
        mv /tmp/rest.new /tmp/rest
        hypertables > /tmp/dimensions
        from --dbname="$1" --file=/tmp/dimensions | into --dbname="$1" > /dev/null
    fi
    database=$1; shift
    # shellcheck disable=SC2046 # words
    dump --section=data $(sed 's/^/--exclude-table-data=/' /tmp/hypertables) "$database" | into --dbname="$database" > /dev/null
    while read -r table; do
        columns=$(from --dbname="$database" --command="SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
            WHERE attrelid = '$table'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''" < /dev/null)
        from --dbname="$database" --command="COPY (SELECT $columns FROM $table) TO STDOUT (FORMAT binary)" < /dev/null \
            | into --dbname="$database" --command="COPY $table ($columns) FROM STDIN (FORMAT binary)"
    done < /tmp/hypertables
    # shellcheck disable=SC2086
    pg_restore $new --dbname="$database" --exit-on-error --use-list=/tmp/rest /tmp/post
}

compare() {
    sums | from --dbname="$1" > /tmp/sums.old &
    sums | into --dbname="$1" > /tmp/sums.new
    wait $!
    diff /tmp/sums.old /tmp/sums.new
    shape "$old" "$1" > /tmp/shape.old
    shape "$new" "$1" > /tmp/shape.new
    diff /tmp/shape.old /tmp/shape.new
    [ -z "$(from --dbname="$1" --command="SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")" ] || {
        hypertables > /tmp/dimensions
        from --dbname="$1" --file=/tmp/dimensions > /tmp/hypertables.old
        into --dbname="$1" --file=/tmp/dimensions > /tmp/hypertables.new
        diff /tmp/hypertables.old /tmp/hypertables.new
    }
    cat /tmp/sums.old >> /tmp/compared
}

began=$(date +%s)
step="the new database cluster cannot be made"
rm -rf "$fresh" "$target"
# As the first start does, in boot/start.sh.
initdb --pgdata="$fresh" --username=postgres --no-instructions --auth-local=peer --auth-host=scram-sha-256 --data-checksums \
    --encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8
from --dbname=postgres --command='SELECT system_identifier FROM pg_control_system()' > "$fresh/carried-from"
# No network, and nobody there but this and, in a rehearsal, the application that tries it.
echo 'local all all trust' > /tmp/hba
# What is lost with the power is begun anew.
pg_ctl start --silent --pgdata="$fresh" --options="$(settings fsync=off full_page_writes=off wal_level=minimal max_wal_senders=0 \
    autovacuum=off)"

step="the roles cannot be carried over"
roles "$old" > /tmp/roles.old
into --dbname=postgres --file=/tmp/roles.old
roles "$new" > /tmp/roles.new
diff /tmp/roles.old /tmp/roles.new
from --dbname=postgres --command='SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1' > /tmp/databases
for database in $(cat /tmp/databases); do
    step="the database $database cannot be carried over"
    carry "$database"
done
carried=$(date +%s)
: > /tmp/compared
for database in $(cat /tmp/databases); do
    step="the database $database arrived as another"
    compare "$database"
done

step="it cannot be analysed"
# shellcheck disable=SC2086
vacuumdb $new --all --analyze-only --jobs=2
size=$(into --dbname=postgres --command='SELECT sum(pg_database_size(oid))::bigint / 1048576 FROM pg_database')
step="it is damaged"
pg_ctl stop --silent --pgdata="$fresh" --mode=fast --timeout=600
pg_checksums --check --pgdata="$fresh"
step="it cannot be written to the disk"
initdb --sync-only --pgdata="$fresh"
# Last: whatever bears this name is whole.
mv "$fresh" "$target"
sync
awk -F '|' -v began="$began" -v carried="$carried" -v now="$(date +%s)" -v megabytes="$size" '{ rows += $2 }
    END { printf "{\"tables\": %d, \"rows\": %d, \"megabytes\": %d, \"carried\": %d, \"compared\": %d}\n",
          NR, rows, megabytes, carried - began, now - carried }' /tmp/compared >&3
[ "$thorough" = thorough ] || exit 0

step="what was carried over does not work"
fresh=$target
pg_ctl start --silent --pgdata="$fresh" --options="$(settings)"
# shellcheck disable=SC2086
pg_amcheck $new --all --install-missing --heapallindexed
# Elsewhere nobody signs in as this, but as members of it that have passwords.
into --dbname=postgres --command='ALTER ROLE app LOGIN'
touch /run/upgrade/ready
while sleep 1 & wait $!; do :; done
