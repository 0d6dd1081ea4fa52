#!/bin/sh
# mmdebstrap customize-hook, last of all: take out what must differ between machines or runs.
# Args: $1 the root folder.
set -eu
root=$1

authorities=
if [ -e "$root/.kvedge-later" ]; then
	while read -r one; do
		rm -f "$root$one"
		chroot "$root" dpkg-divert --quiet --local --rename --remove "$one"
		rmdir --ignore-fail-on-non-empty "$root${one%/*}"
	done <"$root/.kvedge-later"
	if [ -x "$root/usr/sbin/update-ca-certificates" ]; then
		chroot "$root" update-ca-certificates >/dev/null &
		authorities=$!
	fi
	# Lines of a verb and a unit, as maintainer scripts gave them; those let a unit's failure pass.
	sed 's/ [^ ]*$//' "$root/.kvedge-units" | sort -u | while read -r verb; do
		units=$(sed -n "s/^$verb \([^ ]*\)$/\1/p" "$root/.kvedge-units")
		# shellcheck disable=SC2086 # units have no spaces
		DPKG_MAINTSCRIPT_PACKAGE=kvedge chroot "$root" deb-systemd-helper $verb $units ||
			for unit in $units; do
				DPKG_MAINTSCRIPT_PACKAGE=kvedge chroot "$root" deb-systemd-helper $verb "$unit" || true
			done
	done
	rm -f "$root/.kvedge-later" "$root/.kvedge-units"
fi
# Byte code is compiled with unchecked hashes: under SOURCE_DATE_EPOCH py3compile writes checked ones,
# and checking them costs seconds at each boot of an emulated machine.
if [ -x "$root/usr/bin/python3" ]; then
	changed=$(cd "$root" && find usr opt -name '*.py' ${KVEDGE_STAMP:+-cnewer "$root/$KVEDGE_STAMP"} -printf '%h\n' 2>/dev/null | sort -u)
	if [ -n "$changed" ]; then
		printf '%s\n' "$changed" | chroot "$root" xargs -P "$(nproc)" -n 50 -d '\n' python3 -B -m compileall \
			-q -f -l --invalidation-mode unchecked-hash >/dev/null || true
	fi
fi
[ -z "$authorities" ] || wait "$authorities"
[ -z "${KVEDGE_STAMP:-}" ] || rm -f "$root/$KVEDGE_STAMP"

rm -f "$root"/etc/ssh/ssh_host_*
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/etc/apt/sources.list" "$root"/etc/apt/sources.list.d/*
rm -f "$root"/etc/*- "$root"/var/lib/dpkg/*-old "$root"/var/cache/debconf/*-old
rm -f "$root/var/cache/ldconfig/aux-cache" "$root/var/lib/apt/lists/lock"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*
rm -rf "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/lintian "$root"/usr/share/groff
find "$root/usr/share/doc" -type f ! -name copyright -delete 2>/dev/null || true
find "$root/usr/share/doc" -type l -delete 2>/dev/null || true
find "$root/usr/share/doc" -depth -type d -empty -delete 2>/dev/null || true
find "$root/usr/share/locale" -mindepth 1 -maxdepth 1 ! -name locale.alias -exec rm -rf {} + 2>/dev/null || true
find "$root/var/log" -type f -delete
# mmdebstrap keeps its apt configuration there until the end; without that it would touch the host's.
find "$root/tmp" "$root/var/tmp" -mindepth 1 ! -name 'mmdebstrap.*' -delete
rm -f "$root/etc/resolv.conf"
