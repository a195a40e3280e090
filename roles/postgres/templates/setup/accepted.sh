#!/bin/sh
# Who may sign in: a line for each, with the role it is a member of, its own name, and its password. The name says which
# version of the password it is, so that two of them may sign in while one takes the place of the other.
set -eu
while read -r role secret; do
    for version in "/run/secrets/$secret"/*; do
        [ -f "$version" ] || { echo "there is no password in $version" >&2; exit 1; }
        printf '%s\t%s\t%s\n' "$role" "${role}_${version##*/}" "$(sed 's/\\/\\\\/g' "$version")"
    done
done <<LOGINS
app_owner postgres_owner_password
app postgres_app_password
app_query postgres_query_password
exporter postgres_exporter_password
backup postgres_backup_password
LOGINS
