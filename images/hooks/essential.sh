#!/bin/sh
# mmdebstrap essential-hook: keep what a headless machine never reads out of the image.
# Given to mmdebstrap as --dpkgopt it would slow the first extraction sevenfold, so it is written here.
# Args: $1 the root folder.
set -eu
# What customize.sh makes anew or takes out is not made at all: byte code, package by package, where
# no compiler is found, and host keys, where some are there.
chroot "$1" dpkg-divert --local --rename --divert /usr/bin/py3compile.later --add /usr/bin/py3compile
mkdir -p "$1/etc/ssh"
for kind in ecdsa ed25519 rsa; do : >"$1/etc/ssh/ssh_host_${kind}_key"; done
cat >"$1/etc/dpkg/dpkg.cfg.d/kvedge-trim" <<'CONF'
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
