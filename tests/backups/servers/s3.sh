#!/bin/sh
# Serves what S3 asks by OpenStack Swift, from /srv/copies.
# Usage: s3.sh account:user password certificate key
set -eu
mkdir -p /srv/copies/disk
cd /etc/swift
port=6200
for kind in object container account; do
    swift-ring-builder $kind.builder create 4 1 1 > /dev/null
    swift-ring-builder $kind.builder add r1z1-127.0.0.1:$port/disk 1 > /dev/null
    swift-ring-builder $kind.builder rebalance > /dev/null
    cat > $kind.conf <<CONF
[DEFAULT]
user = root
devices = /srv/copies
mount_check = false
bind_ip = 127.0.0.1
bind_port = $port
workers = 1
[pipeline:main]
pipeline = $kind-server
[app:$kind-server]
use = egg:swift#$kind
CONF
    port=$((port + 1))
done
printf '[swift-hash]\nswift_hash_path_suffix = copies\n' > swift.conf
cat > proxy.conf <<CONF
[DEFAULT]
user = root
bind_port = 8000
cert_file = $3
key_file = $4
workers = 1
[pipeline:main]
pipeline = catch_errors cache listing_formats s3api tempauth proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
[filter:tempauth]
use = egg:swift#tempauth
user_$(echo "$1" | tr : _) = $2 .admin
CONF
for kind in object container account; do
    swift-$kind-server $kind.conf &
done
exec swift-proxy-server proxy.conf
