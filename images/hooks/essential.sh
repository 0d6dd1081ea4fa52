#!/bin/sh
# mmdebstrap essential-hook: keep what a headless machine never reads out of the image.
# Given to mmdebstrap as --dpkgopt it would slow the first extraction sevenfold, so it is written here.
set -eu
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
