#!/bin/bash
# RabbitMQ has no dry run of its configuration and its definitions: start it on them, without network or data.
set -euo pipefail
boot=/etc/compose-stack/current/boot
mkdir /tmp/secrets
echo -n password > /tmp/secrets/rabbitmq_app_password
echo -n password > /tmp/secrets/operator_password
bash "$boot/start.sh" /tmp/secrets 127.0.0.1 > /tmp/log 2>&1 &
until bash "$boot/healthy.sh" 2> /dev/null; do
    kill -0 $! 2> /dev/null || { tail -n 20 /tmp/log; echo "RabbitMQ does not start on its new configuration"; exit 1; }
    [ "$SECONDS" -lt 60 ] || { tail -n 20 /tmp/log; echo "RabbitMQ does not get ready on its new configuration"; exit 1; }
    sleep 0.2
done
