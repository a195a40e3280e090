#!/bin/sh
# Creates the database cluster on the first start, then becomes postgres. The new cluster is renamed
# into place last, so that an interrupted start begins again instead of serving half a cluster.
set -eu
umask 077
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    rm -rf "$PGDATA.new"
    initdb --pgdata="$PGDATA.new" --username=postgres --no-instructions \
        --auth-local=peer --auth-host=scram-sha-256 --data-checksums \
        --encoding=UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8
    mv "$PGDATA.new" "$PGDATA"
fi
exec postgres -D "$PGDATA" -c config_file=/etc/compose-stack/current/config/postgresql.conf
