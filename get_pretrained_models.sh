#!/usr/bin/env bash
# Fetch the published side-information models (SimCLR on the first 250 / 500 / 1000 ImageNet classes; TorchScript).
#
#     ./get_pretrained_models.sh          or, with the same effect:          source get_pretrained_models.sh
#
# Files that are there already are skipped; an interrupted download goes on where it stopped. REFILL_MODELS_URL and
# REFILL_MODELS_DIR name another server and another folder than checkpoints/.

# Sourced: another shell does the work, so that nothing of it stays in this one, which goes on whatever comes of it.
if (return 0 2>/dev/null); then
    command bash "${BASH_SOURCE:-$0}"
    return
fi

set -euo pipefail
CDPATH='' cd "$(dirname "$0")"

url=${REFILL_MODELS_URL:-https://docs-assets.developer.apple.com/ml-research/models/fct}
folder=${REFILL_MODELS_DIR:-checkpoints}

# File and SHA-256. Its publisher gives no checksums: `-` stands for unknown, and the one that came is printed.
models="
imagenet_250_simclr.pt  -
imagenet_500_simclr.pt  -
imagenet_1000_simclr.pt -
"

fail() {
    echo "error: $*" >&2
    exit 2
}

# Print the size in bytes that the server reports for a URL, or nothing where it reports none.
remote_size() {
    if command -v curl >/dev/null; then
        curl --fail --silent --location --head --connect-timeout 20 "$1"
    else
        wget --quiet --spider --server-response --timeout=20 --tries=1 "$1" 2>&1
    fi | tr -d '\r' | awk 'tolower($1) ~ /^http/ { size = "" } tolower($1) == "content-length:" { size = $2 } END { print size }'
}

# Fetch a URL into a file, from where the file ends.
download() {
    if command -v curl >/dev/null; then
        curl --fail --location --connect-timeout 20 --retry 3 --continue-at - --output "$2" "$1"
    elif command -v wget >/dev/null; then
        wget --timeout=20 --tries=3 --continue --output-document="$2" "$1"
    else
        fail "neither curl nor wget is installed"
    fi
}

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

# A TorchScript file is a zip archive, which holds a CRC-32 of everything in it.
is_intact_zip() {
    python3 -c 'import sys, zipfile; sys.exit(zipfile.ZipFile(sys.argv[1]).testzip() is not None)' "$1" 2>/dev/null
}

# Check a complete download; it is removed where it is wrong, so that the next run does not build on it.
check() {
    local path=$1 size=$2 recorded=$3 got problem=
    got=$(sha256 "$path")
    if [[ $recorded != - && $got != "$recorded" ]]; then
        problem="has the SHA-256 $got, expected $recorded"
    elif [[ -n $size && $(wc -c <"$path") -ne $size ]]; then
        problem="has $(wc -c <"$path") bytes, the server reports $size"
    elif ! is_intact_zip "$path"; then
        problem="is no intact TorchScript archive"
    fi
    if [[ -n $problem ]]; then
        rm -f "$path"
        fail "${path%.part}: what came from $url $problem; it was removed, run this script again"
    fi
    echo "${path%.part}: sha256 $got"
}

command -v python3 >/dev/null || fail "python3 is not installed; the downloads are checked with it"
mkdir -p "$folder"
while read -r name recorded; do
    [[ -n $name ]] || continue
    path=$folder/$name
    if [[ -e $path ]]; then
        echo "$path: is there already"
        continue
    fi
    size=$(remote_size "$url/$name") || fail "cannot reach $url/$name; is there a network?
Or fetch the file elsewhere and put it into $folder/"
    # A complete .part has nothing left to fetch, and servers answer such a request with an error.
    if [[ ! -e $path.part || -z $size || $(wc -c <"$path.part") -lt $size ]]; then
        echo "$path: fetching ${size:-an unknown number of} bytes"
        download "$url/$name" "$path.part" || fail "$url/$name: the download broke off; run this script again to go on"
    fi
    check "$path.part" "$size" "$recorded"
    mv "$path.part" "$path"
done <<<"$models"
