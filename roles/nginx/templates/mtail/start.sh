#!/bin/sh
# A socket that a killed mtail left behind would keep the next one from starting.
set -eu
rm -f /run/nginx-log/access.sock
exec mtail --progs /etc/compose-stack/current/mtail --logs unixgram:///run/nginx-log/access.sock \
    --address 0.0.0.0 --port 3903 --emit_prog_label=false --logtostderr
