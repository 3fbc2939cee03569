#!/usr/bin/env bash
# What the other targets need: programs from Debian, a Python environment in .venv, Nix with flakes.
# Says what it does, does only what is missing, and is quick where nothing is.
#
#   tools/setup.sh           for using the project
#   tools/setup.sh --tests   for its tests too
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*"; }

fail() { # MESSAGE HINT
  printf 'setup: error: %s\n  %s\n' "$1" "$2" >&2
  exit 1
}

# First: one of root's own (pyenv) is where only root enters, and other accounts start it, too.
SYSTEM_PYTHON=/usr/bin/python3

has() { command -v "$1" >/dev/null; }

missing_packages() { # -> the Debian packages of what is not there, one per line
  has nix || echo nix-bin
  has git || echo git
  has ip || echo iproute2
  has ssh-keygen || echo openssh-client
  has mount || echo mount
  has systemd-nspawn || echo systemd-container
  # The modules that make an environment; Debian has them in a package of their own.
  "$SYSTEM_PYTHON" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  # For `orchestrate image lock`, which its tests run too: the keys of Debian's package lists.
  [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || echo debian-archive-keyring
  [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
  if $tests; then
    has sshd || echo openssh-server
    has sudo || echo sudo # a control host's account that is not root's
    # Machines that really netboot (SeaBIOS comes along), their cards' iPXE, UEFI, and disks.
    has qemu-system-x86_64 || echo qemu-system-x86
    [ -e /usr/lib/ipxe/qemu/pxe-virtio.rom ] || echo ipxe-qemu
    [ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || echo ovmf
    has sbsign || echo sbsigntool # signed images, as a user's own key makes them
    has openssl || echo openssl
    has mkfs.ext4 || echo e2fsprogs
    has cpio || echo cpio
    { has gpg && has gpg-agent; } || printf '%s\n' gpg gpg-agent # sign the tests' small Debian suites
    has zstd || echo zstd
    has veritysetup || echo cryptsetup-bin
    has dnsmasq || echo dnsmasq-base
    has nginx || echo nginx-light
    has nft || echo nftables
    has busybox || echo busybox # its TFTP client
    has unsquashfs || echo squashfs-tools
    has chromium || echo chromium # opens the reports
    # Libraries for the check of images; linking needs libc's own files.
    { has gcc && [ -e /usr/include/features.h ]; } || printf '%s\n' gcc libc6-dev
  fi
}

mask() { # PACKAGE UNIT...: if the package is about to be installed, its units shall not run
  local package=$1 unit
  shift
  [[ " ${packages[*]} " == *" $package "* ]] || return 0
  say "$package: for the tests only; masked, so that it does not run (systemctl unmask $*)"
  mkdir -p /etc/systemd/system
  for unit; do ln -sf /dev/null "/etc/systemd/system/$unit"; done
}

install_programs() {
  local packages
  mapfile -t packages < <(missing_packages)
  if [ "${#packages[@]}" = 0 ]; then
    say "programs: all there"
    return
  fi
  has apt-get || fail "these are missing, by their Debian names: ${packages[*]}" \
    "Install them with this system's package manager, then run it again."
  [ "$(id -u)" = 0 ] || fail "these packages are missing: ${packages[*]}" \
    "Run: sudo apt-get install ${packages[*]}"
  say "programs: installing ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # The tests start servers of their own; ones for the whole machine are not asked for.
  mask openssh-server ssh.service ssh.socket
  mask nginx-light nginx.service
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}

make_environment() {
  local python new='import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))'
  for python in "$SYSTEM_PYTHON" python3; do
    "$python" -c "$new" 2>/dev/null && break
  done
  "$python" -c "$new" ||
    fail "$("$python" --version) is too old: 3.11 or later is needed" "Debian 12 and later have it."
  # A moved checkout, another Python or other dependencies: made anew. Else there is nothing to do.
  local stamp=.venv/made-from made_from
  made_from="$PWD $python $("$python" --version) $(cat pyproject.toml requirements.txt | sha256sum)"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$made_from" ]; then
    say "Python: .venv is up to date"
    return
  fi
  say "Python: making .venv (orchestrate, and what it and its tests need)"
  rm -f "$stamp"
  local pip=(.venv/bin/python -m pip install -qq --disable-pip-version-check)
  "$python" -m venv --clear .venv
  # Wheels alone: building a source archive would download what no hash names.
  "${pip[@]}" --require-hashes --only-binary :all: --requirement requirements.txt
  # The project itself: nothing is downloaded, and setuptools is the locked one.
  "${pip[@]}" --no-index --no-deps --no-build-isolation --editable .
  echo "$made_from" >"$stamp"
}

# What Nix has to be told. The Makefile says it to its own commands in NIX_CONFIG; here it is for the
# user's shell, so that a plain `nix build` works.
nix_settings() {
  echo "extra-experimental-features = nix-command flakes"
  # A machine that cannot sandbox builds fails, unless sandbox = false is chosen.
  echo "sandbox-fallback = false"
  # root, without a daemon: builds run as root's own, in the sandbox.
  if [ "$(id -u)" = 0 ] && ! getent group nixbld >/dev/null; then
    echo "build-users-group ="
  fi
}

nix_is_set() {
  local shown
  shown=$(
    unset NIX_CONFIG
    nix config show 2>/dev/null || nix show-config 2>/dev/null
  ) || return 1
  grep -q '^experimental-features = .*flakes' <<<"$shown" || return 1
  grep -q '^sandbox-fallback = false' <<<"$shown" || return 1
  if nix_settings | grep -q build-users-group; then
    grep -qx 'build-users-group = *' <<<"$shown"
  fi
}

set_up_nix() {
  if nix_is_set; then
    say "Nix: set up"
    return
  fi
  local own="${XDG_CONFIG_HOME:-$HOME/.config}/nix/nix.conf"
  if [ -e "$own" ] || [ -e /etc/nix/nix.conf ] || [ -n "${NIX_USER_CONF_FILES:-}" ]; then
    say "Nix: not set up for this flake. make does without; for a plain 'nix build', add to $own:"
    nix_settings | sed 's/^/    /'
    return
  fi
  say "Nix: no nix.conf anywhere; writing $own"
  mkdir -p "${own%/*}"
  nix_settings >"$own"
}

# git, and Nix through it, refuse a checkout that is somebody else's. (With sudo they do not.)
own_checkout() {
  if ! [ -e .git ] || git rev-parse --git-dir >/dev/null 2>&1; then
    return
  fi
  [ "$(id -u)" = 0 ] || fail "git does not take $PWD as its own: $(git rev-parse 2>&1 | head -n 1)" \
    "Run: git config --global --add safe.directory '$PWD'"
  say "git: this checkout belongs to another user; adding it to root's safe.directory"
  git config --global --add safe.directory "$PWD"
}

# Debian 12's Nix cannot name a flake at such a place.
[[ "$PWD" != *[[:space:]]* ]] || fail "the checkout's path has a blank in it: $PWD" "Move it."

tests=false
[ "${1:-}" = --tests ] && tests=true
install_programs
make_environment
own_checkout
set_up_nix
