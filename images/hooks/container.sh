#!/bin/sh
# mmdebstrap extract-hook of a container's base: packages are unpacked, not installed, so what
# their scripts would have made is made here, and what a container never uses goes.
# Args: $1 the root folder.
set -eu
root=$1
cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
ln -sf python3.11 "$root/usr/bin/python3"
chroot "$root" /usr/bin/busybox --install -s /bin

cd "$root/usr"
rm -rf share/bash-completion share/bug share/debconf share/dpkg share/groff share/info \
	share/initramfs-tools share/lintian share/locale share/man share/perl* share/pixmaps \
	share/polkit-1 share/applications share/readline share/ca-certificates \
	lib/x86_64-linux-gnu/gconv lib/x86_64-linux-gnu/perl* lib/dpkg libexec/dpkg lib/systemd lib/mime \
	lib/python3.11/ensurepip lib/python3.11/idlelib lib/python3.11/lib2to3 lib/python3.11/pydoc_data \
	lib/python3.11/test lib/python3.11/turtledemo lib/python3.11/tkinter lib/python3.11/config-3.11-*
rm -f bin/openssl bin/c_rehash bin/perl* bin/dpkg* bin/update-alternatives bin/debconf* bin/py3* \
	sbin/update-ca-certificates sbin/dpkg-* bin/deb* bin/pydoc* lib/x86_64-linux-gnu/libmvec.so.1
find share/doc -type f ! -name copyright -delete
find share/doc -type l -delete
find share/doc -depth -type d -empty -delete
cd "$root"
# dpkg's list stays, so that scanners can tell what is inside.
# What apt keeps is still in use here and is left out when the layer is written.
rm -rf etc/cron* usr/lib/apt usr/share/perl5 etc/logrotate.d etc/alternatives etc/kernel usr/lib/binfmt.d
find usr/lib/python3.11 -name '__pycache__' -prune -exec rm -rf {} +
chroot "$root" /usr/bin/python3 -m compileall -q --invalidation-mode unchecked-hash /usr/lib/python3.11 >/dev/null || true
mkdir -p "$root/app" "$root/home" "$root/tmp" "$root/run"
chmod 1777 "$root/tmp"
