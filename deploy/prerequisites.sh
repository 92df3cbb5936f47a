#!/bin/sh
# Makes sure of what the Python package index cannot give: Python with venv, and a C++ compiler.
# Installs the compiler where it may (root on a Debian machine); names what is missing where it may not.
set -eu
python=${PYTHON:-python3}

missing=""
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
  echo "Headrace needs Python 3.11 or newer (found: $("$python" --version 2>&1 || echo none)); set PYTHON=/path/to/python3" >&2
  exit 1
}
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
command -v c++ >/dev/null 2>&1 || missing="$missing g++"
echo '#include <Python.h>' | ${CXX:-c++} -E -x c++ -I"$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')" - >/dev/null 2>&1 || missing="$missing python3-dev"

[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "Installing$missing" >&2
  apt-get update -qq
  # shellcheck disable=SC2086 # a list of words
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
  echo "Missing:$missing.  On Debian: sudo apt-get install$missing" >&2
  exit 1
fi
