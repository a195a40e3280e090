#!/bin/sh
# Builds the image of a bare Debian 13 machine: systemd, sshd and Python, nothing of the stack. Prints its reference.
# The tag is a digest of this script, so an unchanged script finds its image again and builds nothing.
set -eu

name=${1:-compose-stack/containerhost}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
suite=trixie
packages=systemd-sysv,dbus,python3,python3-apt,openssh-server,iproute2,sudo,ca-certificates,kmod,procps

image=$name:$(printf '%s\n' "$mirror" | cat "$0" - | sha256sum | cut -c1-12)
if docker image inspect "$image" >/dev/null 2>&1; then
    echo "$image"
    exit 0
fi

echo "Building $image from $mirror ($suite), about a minute" >&2
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT INT TERM

# Host keys and the machine id are made at first boot: no two hosts may share them.
mmdebstrap --quiet --variant=apt --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
    --customize-hook=': > "$1/etc/machine-id"' \
    --customize-hook='install -d -m 0700 "$1/root/.ssh"' \
    --customize-hook='mkdir -p "$1/etc/systemd/system/ssh.service.d"; printf "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n" > "$1/etc/systemd/system/ssh.service.d/keys.conf"' \
    --customize-hook='chroot "$1" systemctl mask systemd-modules-load.service systemd-udevd.service systemd-resolved.service getty.target console-getty.service apt-daily.timer apt-daily-upgrade.timer' \
    --customize-hook='chroot "$1" systemctl enable ssh.service' \
    "$suite" "$root/host.tar" "$mirror"

docker import --change 'CMD ["/sbin/init"]' --change 'STOPSIGNAL SIGRTMIN+3' --change 'ENV container=docker' \
    "$root/host.tar" "$image" >/dev/null
echo "$image"
