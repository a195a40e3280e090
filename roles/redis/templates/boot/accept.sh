#!/bin/sh
# Usage: accept.sh cache|queue [start]. Writes the access list from the mounted secrets into memory, and has Redis read it. The
# application's account is named by the version of its password: with the version goes the account, and Redis ends its
# connections, and no others.
set -eu
umask 077
digest() { sha256sum "$1" | cut -d ' ' -f 1; }
{
    cat <<ACL
user default off
user health on nopass resetkeys resetchannels -@all +ping
user exporter on nopass resetkeys resetchannels -@all +ping +info +client|setname +slowlog|len +latency|latest
user reload on #$(digest /tmp/reload) resetkeys resetchannels -@all +acl|load
ACL
    for version in "/run/secrets/redis_$1_password"/*; do
        [ -f "$version" ] || { echo "there is no password in $version" >&2; exit 1; }
        echo "user app_${version##*/} on #$(digest "$version") ~* &* +@all -@admin -@dangerous +info"
    done
} > /tmp/users.new
mv /tmp/users.new /tmp/users.acl
[ "${2-}" != start ] || exit 0
said=$(REDISCLI_AUTH=$(cat /tmp/reload) redis-cli --user reload acl load)
[ "$said" = OK ] || { echo "Redis did not read it: $said" >&2; exit 1; }
