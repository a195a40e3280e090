#!/bin/sh
# Takes TSIG_SECRET, LIFE (seconds), and /certificate with cert.pem and key.pem, by which pebble is known.
set -eu
cat > /tmp/knot.conf <<EOF
server:
    listen: 0.0.0.0@53
    rundir: /tmp/knot
database:
    storage: /tmp/knot
key:
  - id: lego-acme-test
    algorithm: hmac-sha256
    secret: "$TSIG_SECRET"
acl:
  - id: update
    key: lego-acme-test
    action: update
zone:
  - domain: acme.test
    file: /tmp/acme.test.zone
    acl: update
EOF
cat > /tmp/acme.test.zone <<EOF
\$ORIGIN acme.test.
\$TTL 1
@ SOA ns hostmaster 1 60 60 3600 1
@ NS ns
ns A 127.0.0.1
EOF
mkdir -p /tmp/knot
knotd -c /tmp/knot.conf &
# How long certificates last is said in two ways: as pebble took it up to 2.6, and since.
for instance in short:14000:15000:$LIFE long:14001:15001:7776000; do
    IFS=: read -r name port management seconds <<EOF
$instance
EOF
    cat > "/tmp/$name.json" <<EOF
{"pebble": {"listenAddress": "0.0.0.0:$port", "managementListenAddress": "0.0.0.0:$management",
 "certificate": "/certificate/cert.pem", "privateKey": "/certificate/key.pem", "httpPort": 8080, "tlsPort": 8443,
 "ocspResponderURL": "", "externalAccountBindingRequired": false, "retryAfter": {"authz": 1, "order": 1},
 "certificateValidityPeriod": $seconds, "profiles": {"default": {"description": "", "validityPeriod": $seconds}}}}
EOF
    PEBBLE_VA_NOSLEEP=1 PEBBLE_AUTHZREUSE=0 pebble -strict -config "/tmp/$name.json" -dnsserver 127.0.0.1:53 &
done
wait
