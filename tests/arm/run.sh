#!/bin/sh
# Proves the ARM side without a board: one training in an arm64 Python under qemu, whose losses must equal this
# machine's. (make arm-kernels runs the kernels' harness as four CPUs.)
#   tests/arm/run.sh [CACHE]     CACHE keeps the arm64 Python (400 MB); default $XDG_CACHE_HOME/edgetune-arm
# PYTHON names the interpreter with edgetune's dependencies (default python3), MIRROR the Debian mirror (default: the
# one that apt uses).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cache=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/edgetune-arm}
python=${PYTHON:-python3}
mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Codename: trixie' 2>/dev/null | grep -m 1 ^http || true)}
packages=python3,python3-numpy,libpython3-dev,python3-psutil,python3-yaml,python3-tqdm,python3-requests
packages=$packages,python3-jinja2,python3-click,python3-rich

for tool in aarch64-linux-gnu-gcc qemu-aarch64 debootstrap cmake dpkg; do
    if ! command -v "$tool" >/dev/null && ! [ -x "/usr/sbin/$tool" ]; then
        echo "skipped: $tool is missing (apt install gcc-aarch64-linux-gnu qemu-user debootstrap cmake)"
        exit 0
    fi
done

mkdir -p "$cache"
root=$cache/root
if ! [ -d "$root" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "skipped: making the arm64 Python in $cache needs root (debootstrap)"
        exit 0
    fi
    rm -rf "$root.tmp"
    # Downloaded and unpacked only: nothing of it runs but the interpreter, under qemu.
    PATH=$PATH:/usr/sbin debootstrap --arch=arm64 --variant=minbase --download-only --include="$packages" \
        trixie "$root.tmp" ${mirror:+"$mirror"} >"$cache/debootstrap.log" || { tail -5 "$cache/debootstrap.log"; exit 1; }
    for deb in "$root.tmp"/var/cache/apt/archives/*.deb; do
        dpkg -x "$deb" "$root.tmp"
        rm "$deb"
    done
    mv "$root.tmp" "$root"
fi
if ! [ -d "$cache/pure" ]; then
    rm -rf "$cache/pure.tmp"
    "$python" -m pip install --quiet --no-deps --target "$cache/pure.tmp" \
        "gguf==$("$python" -c 'from importlib.metadata import version; print(version("gguf"))')"
    mv "$cache/pure.tmp" "$cache/pure"
fi

lib=$root/usr/lib/aarch64-linux-gnu
cat >"$cache/python" <<END
#!/bin/sh
exec qemu-aarch64 -L "$root" -E "LD_LIBRARY_PATH=$lib/blas:$lib/lapack" "$root/usr/bin/python3.13" "\$@"
END
chmod +x "$cache/python"

build=$cache/build
cmake -S "$top/native" -B "$build" -DET_WERROR=ON \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc \
    -DCMAKE_C_FLAGS="-idirafter $root/usr/include" \
    -DPython_EXECUTABLE="$cache/python" -DPython_INCLUDE_DIR="$root/usr/include/python3.13" >"$cache/cmake.log"
cmake --build "$build" --parallel 2 >"$cache/build.log" || { tail -30 "$cache/build.log"; exit 1; }

site=$cache/site
rm -rf "$site"
mkdir "$site"
cp -r "$top/edgetune" "$site"
rm -f "$site"/edgetune/backends/_native*
cp "$build"/_native*.so "$site/edgetune/backends"
"$python" "$here/train_arm.py" make "$cache/tiny.gguf"
"$python" "$here/train_arm.py" train "$cache/tiny.gguf" >"$cache/here.json"
PYTHONPATH=$site:$cache/pure "$cache/python" "$here/train_arm.py" train "$cache/tiny.gguf" >"$cache/arm64.json"
"$python" "$here/train_arm.py" compare "$cache/here.json" "$cache/arm64.json"
