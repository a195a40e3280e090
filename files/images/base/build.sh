#!/bin/sh
# Makes the Debian base that every other image stands on, and imports it into Docker.
# Usage: build.sh <reference> <suite> <mirror> <security mirror> [stale]; http_proxy is honoured. With the last word, lists of
# packages past their date are taken, too.
set -eu

reference=$1 suite=$2 mirror=$3 security=$4 fresh=true
if [ "${5-}" = stale ]; then fresh=false; fi
signed='deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'

# Of two runs at once the second takes what the first has made: services must not stand on two bases.
exec 9>/var/lock/compose-stack-base
flock 9
if docker image inspect "$reference" >/dev/null 2>&1; then
    exit 0
fi

# Equal packages make an equal layer, which Docker then keeps once.
export SOURCE_DATE_EPOCH=1735689600

# A pipe into `docker import` would tag half an image when mmdebstrap fails: go through a file.
scratch=$(mktemp -d /var/tmp/compose-stack-base.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

# shellcheck disable=SC2016 # mmdebstrap's shell expands the hooks
TMPDIR=$scratch mmdebstrap --mode=root --variant=apt --include=passwd \
    --aptopt='Acquire::Languages "none"' \
    --aptopt='APT::Install-Recommends "false"' \
    --aptopt="Acquire::Check-Valid-Until \"$fresh\"" \
    --dpkgopt=force-unsafe-io \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/lintian/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/lib/*/gconv/*' \
    --customize-hook='printf "#!/bin/sh\nexit 101\n" >"$1/usr/sbin/policy-rc.d"' \
    --customize-hook='chmod 0755 "$1/usr/sbin/policy-rc.d"' \
    --customize-hook='rm -rf "$1"/var/cache/debconf/*-old "$1"/var/lib/dpkg/*-old' \
    --customize-hook='rm -rf "$1"/var/log/apt "$1"/var/log/dpkg.log' \
    "$suite" "$scratch/base.tar" \
    "$signed $mirror $suite main" \
    "$signed $mirror $suite-updates main" \
    "$signed $security $suite-security main"

docker import --change 'CMD ["/bin/sh"]' "$scratch/base.tar" "$reference"
