#!/bin/sh
# mmdebstrap customize-hook of a layer: install packages into the tree that the setup-hook unpacked.
# Args: $1 the root folder. KVEDGE_PACKAGES, KVEDGE_DEBS: names, and paths of .deb files, by spaces.
set -eu
root=$1
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" DEBIAN_FRONTEND=noninteractive
: >"$root/$KVEDGE_STAMP"
sleep 0.02
names=""
for deb in ${KVEDGE_DEBS:-}; do
	cp "$deb" "$root/tmp/${deb##*/}"
	names="$names $root/tmp/${deb##*/}"
done
# shellcheck disable=SC2086 # names have no spaces
apt-get --yes --no-install-recommends -o DPkg::Chroot-Directory="$root" install ${KVEDGE_PACKAGES:-} $names
