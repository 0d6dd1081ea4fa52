#!/bin/sh
# mmdebstrap essential-hook: keep what a headless machine never reads out of the image.
# Given to mmdebstrap as --dpkgopt it would slow the first extraction sevenfold, so it is written here.
# Args: $1 the root folder.
set -eu
# What customize.sh makes anew or takes out is not made package by package: byte code and the bundle of
# authorities, whose programs do nothing until then, and host keys, where some are there. Units are
# enabled all at once there as well; here they are only noted.
{
	for minor in 10 11 12 13; do echo "/usr/lib/python3.$minor/py_compile.py"; done
	echo /usr/bin/py3compile
	echo /usr/sbin/update-ca-certificates
	echo /usr/bin/deb-systemd-helper
} >"$1/.kvedge-later"
: >"$1/.kvedge-units"
while read -r one; do
	chroot "$1" dpkg-divert --quiet --local --rename --divert "$one.later" --add "$one"
	mkdir -p "$1${one%/*}"
	printf '#!/bin/sh\n' >"$1$one"
	chmod 755 "$1$one"
done <"$1/.kvedge-later"
cat >>"$1/usr/bin/deb-systemd-helper" <<'PROGRAM'
case " $* " in
*" enable "* | *" update-state "*) echo "$*" >>/.kvedge-units ;;
*" unmask "* | *" was-enabled "*) ;; # nothing is masked in a new tree, and all is to be enabled
*) exec /usr/bin/deb-systemd-helper.later "$@" ;;
esac
PROGRAM
mkdir -p "$1/etc/ssh"
for kind in ecdsa ed25519 rsa; do : >"$1/etc/ssh/ssh_host_${kind}_key"; done
cat >"$1/etc/dpkg/dpkg.cfg.d/kvedge-trim" <<'CONF'
path-exclude=/lib/udev/hwdb.d/*
path-exclude=/usr/lib/udev/hwdb.d/*
path-exclude=/usr/share/bash-completion/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/groff/*
path-exclude=/usr/share/i18n/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/linda/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/man/*
CONF
