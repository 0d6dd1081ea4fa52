#!/bin/sh
# mmdebstrap extract-hook of a container's base: packages are unpacked, not installed, so what
# their scripts would have made is made here, and what a container never uses goes.
# Args: $1 the root folder.
set -eu
root=$1
cat "$root"/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
ln -sf python3.11 "$root/usr/bin/python3"
# Busybox's tar takes the place of GNU's.
rm -f "$root"/usr/bin/tar "$root"/usr/sbin/rmt* "$root"/usr/sbin/tarcat
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
# Engines in emulated machines unpack about 10 MB and 600 files a second, so what no program of ours
# loads goes: libraries of Debian's own tools and of Python's modules for terminals, NIS and old
# databases, character sets of other times, and Python's sources beside their byte code.
cd "$root/usr/lib/x86_64-linux-gnu"
rm -rf krb5 libacl.* libattr.* libcom_err.* libdb-5.* libexpatw.* libform* libgdbm* libgssapi_krb5.* \
	libhistory.* libk5crypto.* libkeyutils.* libkrb5* liblz4.* libmd.* libmenu* libncurses* libnsl.* \
	libsqlite3.* \
	libpanel* libpcre2-* libreadline.* libselinux.* libtic.* libtinfo.* libtirpc.* libzstd.* \
	engines-3 ossl-modules/legacy.so
cd "$root/usr/lib/python3.11"
find . -name '__pycache__' -prune -exec rm -rf {} +
rm -rf curses dbm sqlite3 _pydecimal.py antigravity.py doctest.py pydoc.py this.py turtle.py
rm -f lib-dynload/_codecs_* lib-dynload/_crypt.* lib-dynload/_curses* lib-dynload/_dbm.* lib-dynload/_gdbm.* \
	lib-dynload/_sqlite3.* \
	lib-dynload/_test* lib-dynload/nis.* lib-dynload/ossaudiodev.* lib-dynload/readline.* lib-dynload/xx*
cd encodings
rm -f big5* cp[789]* cp10* cp11* cp125[013-8]* euc_* gb* hp_roman8* hz* iso2022_* iso8859_[2-9]* \
	iso8859_1[0-6]* johab* koi8_* kz1048* mac_* ptcp154* shift_jis* tis_620*
cd "$root"
chroot "$root" /usr/bin/python3 -B -m compileall -b -q --invalidation-mode unchecked-hash /usr/lib/python3.11 >/dev/null
find usr/lib/python3.11 -name '*.py' -delete
# One archive, where Python looks first, is unpacked quicker than hundreds of files. Python finds its
# folder by os.pyc, and compiled modules stay files.
chroot "$root" /usr/bin/python3 -B - <<'END'
import pathlib, zipfile
top = pathlib.Path("/usr/lib/python3.11")
files = sorted(path for path in top.rglob("*") if path.is_file() and path.parent.name != "lib-dynload")
with zipfile.ZipFile("/usr/lib/python311.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
    for path in files:
        name = zipfile.ZipInfo(str(path.relative_to(top)))
        name.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(name, path.read_bytes())
END
find usr/lib/python3.11 -type f ! -path '*/lib-dynload/*' ! -name os.pyc -delete
find usr/lib/python3.11 -depth -type d -empty -delete
mkdir -p "$root/app" "$root/home" "$root/tmp" "$root/run"
chmod 1777 "$root/tmp"
