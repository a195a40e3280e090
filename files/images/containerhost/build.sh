#!/bin/sh
# Builds the image of a bare machine: systemd, sshd and Python, nothing of the stack. Prints its reference.
# Usage: build.sh [debian-13 | ubuntu-24.04]
# The tag is a digest of this script, so an unchanged script finds its image again and builds nothing.
set -eu

distribution=${1:-debian-13}
case $distribution in
debian-13)
    mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian} suite=trixie keys=debian-archive-keyring
    set -- "deb $mirror trixie main"
    ;;
ubuntu-24.04)
    mirror=${UBUNTU_MIRROR:-http://archive.ubuntu.com/ubuntu} suite=noble keys=ubuntu-keyring
    set -- "deb $mirror noble main universe" "deb $mirror noble-updates main universe"
    ;;
*)
    echo "$0: $distribution is none of debian-13, ubuntu-24.04" >&2
    exit 2
    ;;
esac
keyring=/usr/share/keyrings/${distribution%%-*}-archive-keyring.gpg
if [ ! -e "$keyring" ]; then
    echo "$0: $keyring is missing: apt-get install $keys" >&2
    exit 2
fi
packages=systemd-sysv,dbus,python3,python3-apt,openssh-server,iproute2,sudo,ca-certificates,kmod,procps

image=compose-stack/containerhost:$distribution-$(printf '%s\n' "$mirror" | cat "$0" - | sha256sum | cut -c1-12)
if docker image inspect "$image" >/dev/null 2>&1; then
    echo "$image"
    exit 0
fi

echo "Building $image from $mirror ($suite), about a minute" >&2
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT INT TERM

# Host keys and the machine id are made at first boot: no two hosts may share them.
mmdebstrap --quiet --variant=apt --include="$packages" --keyring="$keyring" \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -f "$1"/etc/ssh/ssh_host_*' \
    --customize-hook=': > "$1/etc/machine-id"' \
    --customize-hook='install -d -m 0700 "$1/root/.ssh"' \
    --customize-hook='mkdir -p "$1/etc/systemd/system/ssh.service.d"; printf "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n" > "$1/etc/systemd/system/ssh.service.d/keys.conf"' \
    --customize-hook='chroot "$1" systemctl mask systemd-modules-load.service systemd-udevd.service systemd-resolved.service getty.target console-getty.service apt-daily.timer apt-daily-upgrade.timer' \
    --customize-hook='chroot "$1" systemctl enable ssh.service' \
    "$suite" "$root/host.tar" "$@"

docker import --change 'CMD ["/sbin/init"]' --change 'STOPSIGNAL SIGRTMIN+3' --change 'ENV container=docker' \
    "$root/host.tar" "$image" >/dev/null
echo "$image"
