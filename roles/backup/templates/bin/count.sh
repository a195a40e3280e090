# shellcheck shell=sh
# A part of other scripts: `count DATABASE [WAY]` says how many rows each table has, not of what an extension brings with it.
# The way is a setting: by default as PostgreSQL likes it best.
count() {
    PGOPTIONS="${2-}" psql --dbname="$1" <<'SQL'
SELECT format('SELECT %L, count(*) FROM ONLY %I.%I', nspname || '.' || relname, nspname, relname)
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'm') AND relpersistence <> 't' AND nspname !~ '^pg_' AND nspname <> 'information_schema'
AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
ORDER BY 1 \gexec
SQL
}

databases() {
    psql --dbname=postgres --command='SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1'
}
