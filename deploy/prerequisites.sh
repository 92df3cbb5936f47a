#!/bin/sh
# Makes sure of what the Python package index cannot give: Python with venv, and a C++ compiler.  Wanted besides, but not
# needed: gRPC for C++, without which there is no native door, and doctest, without which the C++ tests are not built.
# Installs what it may (root on a Debian machine); names what is missing where it may not, and fails for what is needed.
set -eu
python=${PYTHON:-python3}
cxx=${CXX:-c++}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  echo "Headrace needs Python 3.11 or newer (found: $("$python" --version 2>&1 || echo none)); set PYTHON=/path/to/python3" >&2
  exit 1
}

has_header() {
  echo "#include <$1>" | "$cxx" -E -x c++ -std=c++17 -I"$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" - >/dev/null 2>&1
}

needed=""
"$python" -c 'import ensurepip, venv' 2>/dev/null || needed="$needed python3-venv"
command -v "$cxx" >/dev/null 2>&1 || needed="$needed g++"
has_header Python.h || needed="$needed python3-dev"
wanted=""
has_header grpcpp/generic/async_generic_service.h || wanted="$wanted libgrpc++-dev"
has_header doctest/doctest.h || wanted="$wanted doctest-dev"

[ -z "$needed$wanted" ] && exit 0
# shellcheck disable=SC2086 # lists of words
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  install() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "$@" >/dev/null; }
  echo "Installing$needed$wanted" >&2
  apt-get update -qq || echo "The list of packages could not be renewed" >&2
  [ -z "$needed" ] || install $needed
  for package in $wanted; do
    install "$package" || echo "Headrace goes without $package, which could not be installed" >&2
  done
else
  [ -z "$wanted" ] || echo "Headrace goes without$wanted.  On Debian: sudo apt-get install$wanted" >&2
  [ -z "$needed" ] || {
    echo "Missing:$needed.  On Debian: sudo apt-get install$needed" >&2
    exit 1
  }
fi
