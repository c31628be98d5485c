#!/bin/sh
# Makes or refreshes .venv, and does nothing when it is already right.
#
#   env/create.sh [extras]        extras: pyproject extras to install, default "dev"
#   PYTHON=python3.12 env/create.sh dev,gpu
#
# The stamp .venv/ready holds a checksum of everything the environment depends on, the folder
# included (an editable installation does not survive a move). It is written last, so an
# installation that was interrupted is done again.
set -eu
cd "$(dirname "$0")/.."
extras=${1:-dev}

version_of() { # "3.11" for a Python that runs and that we support, else fails; some names on PATH
    # are launchers for an interpreter that is not there, so each candidate is run
    "$1" -c 'import sys
v = sys.version_info[:2]
sys.exit(1) if v not in ((3, 11), (3, 12)) else print("%d.%d" % v)' 2>/dev/null
}

key() {
    { cat pyproject.toml env/constraints-py3*.txt env/create.sh; pwd; echo "$extras $1"; } | cksum
}

# nothing to do?
installed=$(version_of .venv/bin/python || true)
wanted=${PYTHON:+$(version_of "$PYTHON" || true)}
if [ -n "$installed" ] && [ "${wanted:-$installed}" = "$installed" ] &&
    [ -f .venv/ready ] && [ "$(cat .venv/ready)" = "$(key "$installed")" ]; then
    exit 0
fi

python=
for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
    if version=$(version_of "$candidate"); then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "env: ${PYTHON:-python3.11, python3.12, python3}: expected a Python 3.11 or 3.12 that runs," \
        "found none; install one or say: make PYTHON=/path/to/python3.12 ..." >&2
    exit 1
fi

if [ "$version" != "$installed" ]; then
    rm -rf .venv
    "$python" -m venv .venv || {
        rm -rf .venv
        echo "env: '$python -m venv' failed; some Linux distributions need the package" \
            "python$version-venv" >&2
        exit 1
    }
fi
rm -f .venv/ready
constraints=env/constraints-py$(echo "$version" | tr -d .).txt
echo "env: installing with Python $version and $constraints into .venv (about 2 minutes, 2 GB)"
.venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check \
    --constraint "$constraints" --editable ".[$extras]" || {
    echo "env: the installation did not finish (see above); .venv is incomplete, run it again" >&2
    exit 1
}
key "$version" >.venv/ready
