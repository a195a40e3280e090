#!/bin/sh
# Usage: start.sh cache|queue. Writes the access list from the mounted secret into memory, then becomes
# redis-server: no password stands in a configuration file, on a command line or in the environment.
set -eu
umask 077
digest=$(sha256sum "/run/secrets/redis_$1_password" | cut -d ' ' -f 1)
cat > /tmp/users.acl <<ACL
user default off
user health on nopass resetkeys resetchannels -@all +ping
user exporter on nopass resetkeys resetchannels -@all +ping +info +client|setname +slowlog|len +latency|latest
user app on #$digest ~* &* +@all -@admin -@dangerous +info
ACL
exec redis-server "/etc/compose-stack/current/$1/redis.conf"
