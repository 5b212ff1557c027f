#!/bin/sh
# Finds a browser for the tests of the report page, or installs one; says so where neither works.
present() {
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" >/dev/null && return 0
    done
    return 1
}

present && exit 0
if command -v apt-get >/dev/null; then
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then
        as_root="sudo -n" # nobody may be there to type
        [ -t 0 ] && as_root="sudo"
    fi
    echo "No Chromium on PATH: trying apt-get install chromium."
    { $as_root timeout 120 apt-get update -qq &&
        $as_root timeout 300 env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium; } \
        >/dev/null 2>&1
    present && exit 0
fi
echo "No browser could be had: put chromium, chromium-browser or google-chrome on PATH." >&2
exit 1
