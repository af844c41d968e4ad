#!/usr/bin/env bash
# Makes the virtual environment .venv for this machine; run it as `make install`.
#
# Does nothing when .venv was made from the same requirement files, for the same kind of machine; only puts the package
# in again when pyproject.toml changed. Otherwise .venv is made anew: an installation that was broken off, or a list
# that lost a package, leaves nothing behind.
#   ROUNDHOUSE_FLAVOUR=cpu|cuda   instead of looking for an NVIDIA GPU
#   ROUNDHOUSE_PYTHON=…           instead of python3.11
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
    for candidate in ${ROUNDHOUSE_PYTHON:-python3.11 python3 python3.12 python3.13}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 is needed: on Debian 12, 'apt-get install python3 python3-venv'; or name one with ROUNDHOUSE_PYTHON=…"
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

# Debian packages that pip cannot bring: venv's ensurepip; libnuma, which vLLM's CPU kernels are linked to; and for
# Triton, which compiles at run time, a C compiler and Python's headers.
missing_packages() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    if [[ $flavour == cpu ]]; then
        "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || echo libnuma1
    else
        command -v cc >/dev/null || echo gcc
        [[ -e $("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] || echo python3-dev
    fi
}

install_system_packages() {
    local packages
    packages=$(missing_packages | paste -sd' ')
    [[ -n $packages ]] || return 0
    if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
        die "this machine lacks $packages: run 'sudo apt-get install $packages' (on Debian), then this again"
    fi
    apt_install "$packages"
}

# Triton's server, against which KServe V2 is tested, loads Python as a library. Where it cannot be had, as by users
# who are not root, those tests are skipped.
install_python_library() {
    local name
    name=$("$python" -c 'import sys; print("libpython%d.%d" % sys.version_info[:2])')
    if "$python" -c "import ctypes; ctypes.CDLL('$name.so.1.0')" 2>/dev/null; then return 0; fi
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null && apt_install "$name"; then return 0; fi
    say "without $name (on Debian: apt-get install $name) the tests against Triton are skipped"
}

apt_install() {
    say "installing from Debian: $1"
    apt-get update -qq
    # shellcheck disable=SC2086  # several words
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $1 >/dev/null
}

pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps "$@"; }

# Byte code for 24,000 files, on all cores; pip compiles them one after the other. Some are templates, not Python.
compile_packages() { "$VENV/bin/python" -m compileall -qq -j 0 "$VENV/lib" || true; }

# CPU torch is not on PyPI. Wheels that the environment brings (pip's find-links) come first and alone, then the indexes
# that are configured, then PyTorch's own.
install_cpu_torch() {
    local torch
    torch=$(grep '^torch==' requirements-cpu.txt)
    pip_install --no-compile --no-index "$torch" 2>/dev/null ||
        pip_install --no-compile "$torch" 2>/dev/null ||
        pip_install --no-compile --index-url "$TORCH_CPU_INDEX" "$torch"
}

exec 9<.
flock 9  # one set-up at a time in this checkout; the second finds the stamp of the first

flavour=$(find_flavour)
requirements=requirements.txt
[[ $flavour == cpu ]] && requirements='requirements-cpu.txt'
# Which Python made .venv does not matter while it works: another shell's PATH may name another, equally good.
wanted="$flavour ${ROUNDHOUSE_PYTHON:-} $PWD $(cat "$requirements" requirements-dev.txt | sha256sum)"
package="$wanted $(sha256sum < pyproject.toml)"

installed=$(cat "$STAMP" 2>/dev/null || true)
"$VENV/bin/python" -c '' 2>/dev/null || installed=''
if [[ $installed == "$package" ]]; then
    exit 0
fi
started=$SECONDS
if [[ $installed != "$wanted "* ]]; then
    python=$(find_python)
    say "making $VENV from $requirements ($flavour, $("$python" -V)); this happens once"
    rm -f "$STAMP"
    install_system_packages
    install_python_library
    "$python" -m venv --clear "$VENV"
    if [[ $flavour == cpu ]]; then
        say "installing torch for CPU"
        install_cpu_torch
    fi
    say "installing $(cat "$requirements" requirements-dev.txt | sort -u | grep -c ==) packages"
    pip_install --no-compile -r "$requirements" -r requirements-dev.txt
    compile_packages
fi
# compat: a plain path file; the default is an import hook that every start of Python in .venv would pay for
pip_install --no-build-isolation --config-settings editable_mode=compat --editable .
printf '%s\n' "$package" > "$STAMP"
say "installed in $((SECONDS - started)) s"
