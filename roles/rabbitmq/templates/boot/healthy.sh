#!/bin/bash
# Whether RabbitMQ takes connections, without the second that its own commands need to start. The port of AMQP is
# opened last of all, and a connection without a word leaves none in the log; that the server still works through what
# it is asked shows in an answer over HTTP.
set -eu
setting() { sed -n "s/^$1 = //p" /tmp/rabbitmq.conf; }
exec 3<> "/dev/tcp/$(setting listeners.tcp.1 | tr : /)" 4<> "/dev/tcp/$(setting prometheus.tcp.ip)/15692"
printf 'GET / HTTP/1.0\r\n\r\n' >&4
read -r -t 4 status <&4
[[ $status == HTTP/* ]]
