-- Roles, database, extension and privileges as they should be; safe to run again at every start.
SET client_min_messages = warning;
-- Statements hold passwords here: no log and no message quotes one.
\set VERBOSITY terse
SET log_min_duration_statement = -1;
SET log_min_error_statement = panic;

-- app_owner owns the schema and migrates it; app is what the application runs as; app_query reads what
-- migrations grant it, on one core at a time; exporter reads statistics; backup copies the files of the server by the
-- replication protocol, and reads no table. Nobody signs in as one of these, but as a member that has one password.
CREATE TEMPORARY TABLE kinds (role text, attributes text, settings text[]);
INSERT INTO kinds VALUES
    ('app_owner', 'NOREPLICATION', '{"role = app_owner"}'),
    ('app', 'NOREPLICATION', '{}'),
    ('app_query', 'NOREPLICATION', '{"default_transaction_read_only = on","max_parallel_workers_per_gather = 0"}'),
    ('exporter', 'NOREPLICATION CONNECTION LIMIT 3', '{"default_transaction_read_only = on","statement_timeout = ''5s''"}'),
    ('backup', 'REPLICATION CONNECTION LIMIT 10', '{}');
CREATE TEMPORARY TABLE accepted (role text, login text, password text);
\copy accepted FROM PROGRAM 'sh /etc/compose-stack/current/setup/accepted.sh'

SELECT 'CREATE ROLE ' || name FROM (SELECT role FROM kinds UNION ALL SELECT login FROM accepted) AS wanted (name)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
SELECT format('ALTER ROLE %I NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD NULL', role) FROM kinds \gexec
SELECT format('ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE %s PASSWORD %L', login,
    attributes, password) FROM accepted JOIN kinds USING (role) \gexec
SELECT format('GRANT %I TO %I', role, login) FROM accepted \gexec
SELECT format('ALTER ROLE %I SET %s', login, setting) FROM accepted JOIN kinds USING (role), unnest(settings) AS setting \gexec

-- What is not accepted any more cannot sign in, is cut off, and goes; also when a restore has brought it back.
CREATE TEMPORARY TABLE former AS SELECT rolname FROM pg_roles, kinds
WHERE rolname ~ ('^' || role || '_[0-9a-f]{12}$') AND rolname NOT IN (SELECT login FROM accepted);
SELECT format('ALTER ROLE %I NOLOGIN PASSWORD NULL', rolname) FROM former \gexec
SELECT count(pg_terminate_backend(pid, 5000)) AS ended FROM pg_stat_activity WHERE usename IN (SELECT rolname FROM former) \gset
DO $$
DECLARE
    login name;
BEGIN
    FOR login IN SELECT rolname FROM former LOOP
        BEGIN
            EXECUTE format('DROP ROLE %I', login);
        EXCEPTION WHEN dependent_objects_still_exist OR object_in_use THEN
            RAISE WARNING '% cannot be dropped; it cannot sign in', login;
        END;
    END LOOP;
END
$$;

GRANT pg_monitor TO exporter;
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
