#!/bin/sh
# Starts Grafana. The password in its configuration counts only when the database is made; later ones are set here.
set -eu
home=/usr/share/grafana
config=/etc/compose-stack/current/boot/grafana.ini
password=/run/secrets/grafana_admin_password

if [ -s "$GF_PATHS_DATA/grafana.db" ]; then
    grafana cli --homepath="$home" --config="$config" admin reset-admin-password --password-from-stdin \
        <"$password" >/dev/null || echo "The administrator's password could not be set; the one before counts." >&2
fi
exec grafana server --homepath="$home" --config="$config" --packaging=docker
