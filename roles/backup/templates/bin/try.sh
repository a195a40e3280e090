#!/bin/sh
# Starts what was laid out, without a network, lets it recover, reads every page and every index of it, and stops it.
# Says in one line of JSON what it found, or what is wrong. `try.sh [smoke] [dump]` has it tried by the application, and dumped.
set -eu
restored=/var/lib/postgresql/data/pgdata.restored
socket=/tmp
asked=" $* "

wanted() {
    case $asked in *" $1 "*) ;; *) return 1 ;; esac
}

refuse() {
    pg_ctl stop --silent --pgdata="$restored" --mode=immediate > /dev/null 2>&1 || true
    printf '{"refused": "%s"}\n' "$(printf '%s' "$1" | tr -d '"\\' | tr '\n\t' '  ')"
    exit 1
}

[ -s "$restored/PG_VERSION" ] || refuse "nothing is laid out in $restored"
options="-c config_file=/etc/compose-stack/current/config/postgresql.conf"
if wanted smoke; then
    socket=/run/postgresql
    options="$options -c hba_file=/etc/compose-stack-backup/current/config/drill_hba.conf"
fi
# Nobody is let in before the recovery has ended.
for setting in listen_addresses= unix_socket_directories=$socket hot_standby=off log_min_messages=log \
    shared_buffers=64MB maintenance_work_mem=64MB; do
    options="$options -c $setting"
done
rm -f /tmp/log
pg_ctl start --silent --pgdata="$restored" --log=/tmp/log --options="$options" > /dev/null 2>&1 || true
# However long the recovery takes.
while ! pg_isready --quiet --host="$socket"; do
    if pg_ctl status --pgdata="$restored" > /dev/null; then
        sleep 0.2
        continue
    fi
    case $(cat /tmp/log) in
        *"recovery ended before configured recovery target was reached"*)
            refuse "the WAL ends before that moment: say an earlier one, or TIME=latest for the last that there is" ;;
        *) refuse "it does not start: $(grep -E 'FATAL|PANIC|ERROR' /tmp/log | tail -n 3)" ;;
    esac
done
psql() { command psql -XAtq --set=ON_ERROR_STOP=1 --host="$socket" --username=postgres "$@"; }
last=$(sed -n 's/.*last completed transaction was at log time \(.*\)/\1/p' /tmp/log | tail -n 1)
found=$(pg_amcheck --host="$socket" --username=postgres --all --install-missing --heapallindexed 2>&1) \
    || refuse "a table or an index is damaged: $(printf '%s' "$found" | tail -n 3)"
. "${0%/*}/count.sh"
: > /tmp/counted
databases > /tmp/databases
# Neither checksums nor amcheck miss the rows of a file that was cut at a page, or emptied; the index still has them.
while read -r database; do
    { count "$database" '-c enable_indexscan=off -c enable_indexonlyscan=off' > /tmp/rows &&
        count "$database" '-c enable_seqscan=off -c enable_bitmapscan=off' > /tmp/entries; } 2> /tmp/said \
        || refuse "the rows of $database cannot be counted: $(tail -n 3 /tmp/said)"
    cmp -s /tmp/rows /tmp/entries \
        || refuse "rows of $database are missing, which an index has: $(diff /tmp/rows /tmp/entries | grep '^[<>]' | head -n 4)"
    cat /tmp/rows >> /tmp/counted
done < /tmp/databases
tables=$(wc -l < /tmp/counted)
rows=$(awk -F '|' '{ rows += $NF } END { printf "%d", rows }' /tmp/counted)
# There is none in what was backed up before there were any.
marker=$(psql --dbname=postgres --command='SELECT id FROM drill.markers ORDER BY at DESC LIMIT 1' 2> /dev/null) || marker=
size=$(psql --dbname=app --command='SELECT sum(pg_database_size(oid))::bigint / 1048576 FROM pg_database')
dump='{}'
if wanted dump; then
    dump=$(sh "${0%/*}/dump.sh" "$socket" /var/lib/postgresql/data/dump 2> /tmp/said) \
        || refuse "it cannot be dumped and restored: $(tail -n 3 /tmp/said)"
fi
# The last, as it writes.
migrated='' worked=false
if wanted smoke; then
    # Elsewhere nobody signs in as these, but as members of theirs that have passwords.
    psql --dbname=postgres --command='ALTER ROLE app LOGIN' --command='ALTER ROLE app_owner LOGIN' 2> /tmp/said \
        || refuse "it has no roles of the application: $(tail -n 3 /tmp/said)"
    id=$(cat /proc/sys/kernel/random/uuid)
    timeout 60 sh -c 'echo "$1" > "$2/asked"' sh "$id" "$socket" || refuse "the service drill-api does not answer: is it running?"
    answer=$(timeout 1800 cat "$socket/answered") || refuse "the service drill-api was not done after half an hour"
    case $answer in
        "$id works "*) worked=true migrated=$(printf '%s' "${answer#"$id works "}" | xargs) ;;
        "$id refused "*) refuse "${answer#"$id refused "}" ;;
        *) refuse "the service drill-api was restarted meanwhile" ;;
    esac
fi
pg_ctl stop --silent --pgdata="$restored" --mode=fast --timeout=600 || refuse "it does not stop"
found=$(pg_checksums --check --pgdata="$restored" 2>&1) || refuse "a page is damaged: $(printf '%s' "$found" | tail -n 3)"
printf '{"last": "%s", "tables": %s, "rows": %s, "megabytes": %s, "marker": "%s", "dump": %s, "worked": %s, "migrated": "%s"}\n' \
    "$last" "$tables" "$rows" "$size" "$marker" "$dump" "$worked" "$migrated"
