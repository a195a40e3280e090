-- Roles, database, extension and privileges as they should be; safe to run again at every start.
\set owner_password `cat /run/secrets/postgres_owner_password`
\set app_password `cat /run/secrets/postgres_app_password`
\set query_password `cat /run/secrets/postgres_query_password`
\set exporter_password `cat /run/secrets/postgres_exporter_password`
\set backup_password `cat /run/secrets/postgres_backup_password`

SELECT 'CREATE ROLE ' || name FROM unnest(ARRAY['app_owner', 'app', 'app_query', 'exporter', 'backup']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
-- app_owner owns the schema and migrates it; app is what the application runs as; app_query reads what
-- migrations grant it, on one core at a time; exporter reads statistics.
ALTER ROLE app_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'owner_password';
ALTER ROLE app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'app_password';
ALTER ROLE app_query LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'query_password';
ALTER ROLE app_query SET default_transaction_read_only = on;
ALTER ROLE app_query SET max_parallel_workers_per_gather = 0;
ALTER ROLE exporter LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION CONNECTION LIMIT 3
    PASSWORD :'exporter_password';
ALTER ROLE exporter SET default_transaction_read_only = on;
ALTER ROLE exporter SET statement_timeout = '5s';
GRANT pg_monitor TO exporter;
-- backup copies the files of the server by the replication protocol, and reads no table.
ALTER ROLE backup LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE REPLICATION CONNECTION LIMIT 10 PASSWORD :'backup_password';
GRANT pg_read_all_settings, pg_read_all_stats, pg_checkpoint TO backup;
GRANT EXECUTE ON FUNCTION pg_switch_wal(), pg_create_restore_point(text), pg_backup_start(text, boolean), pg_backup_stop(boolean)
    TO backup;
-- Rows by which a restore that is tried can tell where it has stopped.
CREATE SCHEMA IF NOT EXISTS drill;
CREATE TABLE IF NOT EXISTS drill.markers (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT USAGE ON SCHEMA drill TO backup;
GRANT SELECT, INSERT, DELETE ON drill.markers TO backup;

SELECT 'CREATE DATABASE app OWNER app_owner'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'app') \gexec
REVOKE ALL ON DATABASE app FROM PUBLIC;
GRANT CONNECT ON DATABASE app TO app, app_query, exporter;
-- Batches are copied into a table of the session before they are counted.
GRANT TEMPORARY ON DATABASE app TO app;

\connect app
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS timescaledb;
ALTER SCHEMA public OWNER TO app_owner;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO app, app_query;
ALTER DEFAULT PRIVILEGES FOR ROLE app_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO app;
ALTER DEFAULT PRIVILEGES FOR ROLE app_owner IN SCHEMA public
    GRANT USAGE, SELECT ON SEQUENCES TO app;
