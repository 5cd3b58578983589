#!/bin/sh
# Creates the virtual environment FOLDER with pip in it, from the newest fitting Python. Keeps it if it already works.
# Usage: tools/make_venv.sh FOLDER          (PYTHON=python3.12 in the environment chooses the interpreter)
set -eu

venv=$1
here=$(cd "$(dirname "$0")/.." && pwd)

say() { printf '%s\n' "make_venv: $*" >&2; }

# Does command $1 run, as Python 3.11 or newer?
fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# Has interpreter $1 a torch that meets the bound of setup.cfg and imports?
torch_fits() {
    "$1" - "$here/setup.cfg" >/dev/null 2>&1 <<'PYTHON'
import configparser, re, sys
import torch
config = configparser.ConfigParser()
config.read(sys.argv[1])
bound = re.search(r"^torch>=([\d.]+)", config["options"]["install_requires"], re.M).group(1)
numbers = lambda version: [int(n) for n in re.match(r"[\d.]*\d", version).group().split(".")]
sys.exit(sys.prefix != sys.base_prefix or numbers(torch.__version__) < numbers(bound))
PYTHON
}

works() { "$venv/bin/python" -m pip --version >/dev/null 2>&1 && fits "$venv/bin/python"; }

if works; then exit 0; fi

python=
options=
if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || { say "PYTHON=$PYTHON does not run as Python 3.11 or newer"; exit 1; }
    python=$PYTHON
else
    # The interpreter that already has a fitting torch comes first, then the newest.
    if fits python3 && torch_fits python3; then python=python3; fi
    for candidate in python3.14 python3.13 python3.12 python3.11 python3 python; do
        if [ -z "$python" ] && fits "$candidate"; then python=$candidate; fi
    done
fi
if [ -z "$python" ]; then
    say "no Python 3.11 or newer found; install one (e.g. sudo apt install python3) or say make PYTHON=/path/to/python"
    exit 1
fi
# A torch that meets the bound is several GB that need not be installed twice: the environment then sees the system's
# packages, and pip keeps what meets its bounds. A torch that is too old stays out of sight.
if torch_fits "$python"; then
    options=--system-site-packages
    say "using the torch that $python already has"
fi

# An interrupted or failed attempt leaves nothing behind.
trap '[ $? -eq 0 ] || rm -rf "$venv"' EXIT
trap 'exit 1' INT TERM

# First the ordinary way; Debian and Ubuntu without python3-venv lack ensurepip, so then an environment without pip that
# the system's pip fills (pip 22.3 or newer), then virtualenv. $options is empty or one word.
"$python" -m venv --clear $options "$venv" >/dev/null 2>&1 && works && exit 0
"$python" -m venv --clear --without-pip $options "$venv" >/dev/null 2>&1 &&
    "$python" -m pip --python "$venv/bin/python" install --quiet --ignore-installed pip >/dev/null 2>&1 && works && exit 0
rm -rf "$venv"
"$python" -m virtualenv --quiet $options "$venv" >/dev/null 2>&1 && works && exit 0

package=python3-venv
if [ "$python" != python3 ]; then package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); fi
say "$python cannot create a virtual environment here; please type: sudo apt install $package"
exit 1
