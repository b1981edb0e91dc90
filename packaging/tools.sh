# shellcheck shell=bash
# Functions that `build` and `build-plugin` share. Source it with $here set to this folder.

export LC_ALL=C TZ=UTC PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 NO_COLOR=1

say() { printf 'packages: %s\n' "$*"; }

die() { printf 'packages: %s\n' "$*" >&2; exit 1; }

# take_time_and_tools SOURCE: set the time of all files, and put nfpm, uv, build and hatchling on the path.
take_time_and_tools() {
    if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
        SOURCE_DATE_EPOCH=$(git -C "$1" log -1 --format=%ct 2>/dev/null) || die "no git history; set SOURCE_DATE_EPOCH"
    fi
    export SOURCE_DATE_EPOCH
    export MAINTAINER=${MAINTAINER:-The libvirt-volume-provisioner developers <libvirt-volume-provisioner@localhost>}
    maker=$(dirname "$here")/.venv/bin/python
    [ -x "$maker" ] || maker=python3
    tools=$({ "$maker" -V && cat "$here/requirements.txt"; } | sha256sum | cut -c1-16)
    tools=${XDG_CACHE_HOME:-$HOME/.cache}/libvirt-volume-provisioner/packaging-$tools
    (
        # Builds that run at the same time create the environment once.
        mkdir -p "$(dirname "$tools")" && exec 9>"$tools.lock" && flock 9
        [ ! -e "$tools/.made" ] || exit 0
        say "creating the build environment $tools"
        rm -rf "$tools"
        "$maker" -m venv "$tools"
        "$tools/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$here/requirements.txt"
        touch "$tools/.made"
    )
    PATH=$tools/bin:$PATH
}

# wheel_of SOURCE FOLDER: build the wheel.
wheel_of() {
    (cd "$1" && python -m build --no-isolation --wheel --outdir "$2" . >"$work/log" 2>&1) || die "$(cat "$work/log")"
}

# install_into FOLDER REQUIREMENT...: install for the package's target interpreter and machine.
install_into() {
    uv pip install --quiet --no-config --python "$tools/bin/python" --target "$1" \
        --python-version "$PYTHON_VERSION" --python-platform "$ARCH-manylinux_2_28" \
        --only-binary :all: --link-mode copy "${@:2}"
}

# without_installer_files FOLDER: remove the files that only pip and uv need.
without_installer_files() {
    rm -rf "$1/bin" "$1/.lock"
    find "$1" -name __pycache__ -prune -exec rm -rf {} +
    find "$1" -path '*.dist-info/*' \( -name RECORD -o -name INSTALLER -o -name REQUESTED \
        -o -name direct_url.json -o -name uv_cache.json \) -delete
}

# settle STAGE [PROGRAM]: set reproducible modes and times.
settle() {
    find "$1" -type d -exec chmod 755 {} +
    find "$1" -type f ! -path "${2:-}" -exec chmod 644 {} +
    find "$1" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
}

# package_as_both CONFIG STAGE FOLDER: build deb and rpm; in $STAGE, because nfpm reads scripts relative to its working folder.
package_as_both() {
    local format
    for format in deb rpm; do
        (cd "$2" && nfpm package --config "$1" --packager "$format" --target "$3") >"$work/log" 2>&1 || die "$(cat "$work/log")"
        say "$(sed -n 's/^created package: //p' "$work/log")"
    done
}
