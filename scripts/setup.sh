#!/usr/bin/env bash
# Makes the virtual environment .venv for this machine; run it as `make install`.
#
# Does nothing when .venv was made from the same requirement files, for the same kind of machine; only puts the package
# in again when pyproject.toml changed. Otherwise .venv is made anew: an installation that was broken off, or a list that
# lost a package, leaves nothing behind.
#   ROUNDHOUSE_FLAVOUR=cpu|cuda   instead of looking for an NVIDIA GPU
#   PYTHON=…                      instead of python3.11
set -euo pipefail
cd "$(dirname "$0")/.."
readonly VENV=.venv
readonly STAMP=$VENV/roundhouse-install
readonly TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { printf '== %s\n' "$*"; }
die() { printf 'roundhouse: %s\n' "$*" >&2; exit 1; }

# The pins are resolved and tested for Python 3.11; later ones run where every pin has a wheel.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 is needed: on Debian 12, 'apt-get install python3 python3-venv'; or name one: 'make PYTHON=…'"
}

# A driver that answers, or the device files that containers are given; a card without its driver counts as none.
find_flavour() {
    if [[ -n ${ROUNDHOUSE_FLAVOUR:-} ]]; then
        [[ $ROUNDHOUSE_FLAVOUR =~ ^(cpu|cuda)$ ]] || die "ROUNDHOUSE_FLAVOUR is '$ROUNDHOUSE_FLAVOUR'; use cpu or cuda"
        echo "$ROUNDHOUSE_FLAVOUR"
    elif [[ -e /dev/nvidia0 || -e /proc/driver/nvidia/version ]] || nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
        echo cuda
    else
        echo cpu
    fi
}

# Debian leaves venv's ensurepip to a package of its own.
make_venv() {
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
            say "installing Debian's python3-venv"
            apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3-venv
        else
            die "$python lacks venv. Run 'sudo apt-get install python3-venv', then this again."
        fi
    fi
    "$python" -m venv --clear "$VENV"
}

pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps "$@"; }

# CPU torch is not on PyPI. Wheels that the environment brings (pip's find-links) come first and alone, then the indexes
# that are configured, then PyTorch's own.
install_cpu_torch() {
    local torch
    torch=$(grep '^torch==' requirements-cpu.txt)
    pip_install --no-index "$torch" 2>/dev/null ||
        pip_install "$torch" 2>/dev/null ||
        pip_install --index-url "$TORCH_CPU_INDEX" "$torch"
}

exec 9<.
flock 9  # one set-up at a time in this checkout; the second finds the stamp of the first

python=$(find_python)
flavour=$(find_flavour)
requirements=requirements.txt
[[ $flavour == cpu ]] && requirements='requirements-cpu.txt'
wanted="$flavour $("$python" -V) $PWD $(cat "$requirements" requirements-dev.txt | sha256sum)"
package="$wanted $(sha256sum < pyproject.toml)"

installed=$(cat "$STAMP" 2>/dev/null || true)
if [[ $installed == "$package" ]]; then
    exit 0
fi
started=$SECONDS
if [[ $installed != "$wanted "* ]]; then
    say "making $VENV from $requirements ($flavour, $("$python" -V)); this happens once"
    rm -f "$STAMP"
    make_venv
    if [[ $flavour == cpu ]]; then
        say "installing torch for CPU"
        install_cpu_torch
    fi
    say "installing $(cat "$requirements" requirements-dev.txt | sort -u | grep -c ==) packages"
    pip_install -r "$requirements" -r requirements-dev.txt
fi
# compat: a plain path file; the default is an import hook that every start of Python in .venv would pay for
pip_install --no-build-isolation --config-settings editable_mode=compat --editable .
printf '%s\n' "$package" > "$STAMP"
say "installed in $((SECONDS - started)) s"
